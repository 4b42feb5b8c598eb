"""What a target cannot express is refused before anything runs, with those that can."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_cbq import ConfigError, ModelError, QuantizeConfig, quantize
from onnx_cbq.graph.load import load
from onnx_cbq.targets import TARGETS, find_target
from onnx_cbq.targets.fit import check_model, target_of
from tests.graphs import make_model, node


def config(**settings: object) -> QuantizeConfig:
    return QuantizeConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "tensorrt", "codebook": "kmeans"}, "--codebook kmeans .* tensorrt: weights cannot share values"),
        ({"target": "qnn", "activation_bits": 4}, "--activation-bits 4 .* qnn: activations there have 8 bits"),
        ({"target": "qnn", "activation_bits": 0}, "--activation-bits 0 .* qnn: activations there have 8 bits"),
        ({"target": "tensorrt", "activation_bits": 6}, "activations there have float or 8 bits"),
        ({"target": "tensorrt", "storage": "packed"}, "--storage packed .* tensorrt: its weights are stored as int8"),
        ({"target": "vitis", "storage": "archive"}, "--storage archive .* vitis: its weights are stored as int8"),
        ({"target": "qnn", "storage": "archive"}, "its weights are stored as int8 or packed"),
    ],
)
def test_settings_that_a_target_cannot_express_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        target_of(config(**settings))
    assert "targets that can: cpu, vnni, arm64, openvino" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_refusals_come_before_the_model_is_read() -> None:
    with pytest.raises(ConfigError, match="--codebook kmeans"):
        quantize("missing.onnx", "missing.toml", config(target="vitis", codebook="kmeans"))
    with pytest.raises(ConfigError, match="--target: expected cpu or vnni"):
        quantize("missing.onnx", "missing.toml", config(target="cuda"))


def test_an_unknown_target_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        find_target("openvin")
    assert all(target.name in str(caught.value) for target in TARGETS)
    assert str(caught.value).endswith("did you mean openvino?")


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_every_target_expresses_the_defaults(target: object) -> None:
    name = target.name  # type: ignore[attr-defined]
    assert target_of(config(target=name)) is target
    assert target_of(config(target=name, method="uniform", bits=8)) is target


def test_a_later_opset_is_refused(tmp_path: Path) -> None:
    proto = make_model([node("Gemm", "x w")], {"x": ["N", 4]}, ["y"], {"w": np.ones((4, 2), np.float32)}, opset=21)
    onnx.save(proto, tmp_path / "model.onnx")
    model = load(tmp_path / "model.onnx")
    check_model(model, find_target("qnn"))
    with pytest.raises(ModelError, match="opset 21, expected 20 or earlier for --target tensorrt"):
        check_model(model, find_target("tensorrt"))
