"""What a target cannot express is refused before anything runs, with those that can."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_cbq import ConfigError, ModelError, QuantizeConfig
from onnx_cbq.graph.load import load
from onnx_cbq.targets import TARGETS, find_target
from onnx_cbq.targets.fit import check_model, check_target
from onnx_cbq.targets.target import Target
from tests.command import Command
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
        config(**settings)
    assert "targets that can: cpu, vnni, arm64, openvino" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_refusals_come_before_the_model_is_read(command: Command) -> None:
    missing = ("quantize", "missing.onnx", "--data", "missing.toml")
    for options, message in (
        (("--target", "vitis", "--codebook", "kmeans"), "--codebook kmeans cannot be had with --target vitis"),
        (("--target", "cuda"), "--target: expected cpu or vnni"),
    ):
        done = command(*missing, *options)
        assert done.code == 1
        assert message in done.err


def test_what_a_target_cannot_express_says_why_and_which_can() -> None:
    """The option that makes weights share values is the caller's; a storage that nobody knows is nobody's."""
    check_target(find_target("cpu"), (4,), "archive", "--codebook kmeans")
    with pytest.raises(ConfigError) as caught:
        check_target(find_target("tensorrt"), (8,), "int8", "--codebook kmeans")
    assert str(caught.value).startswith("--codebook kmeans cannot be had with --target tensorrt: weights cannot share ")
    with pytest.raises(ConfigError, match=r"--activation-bits 4 cannot be had with --target qnn: .* 8 bits; targets t"):
        check_target(find_target("qnn"), (4,), "int8")


def test_an_unknown_target_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        find_target("openvin")
    assert all(target.name in str(caught.value) for target in TARGETS)
    assert str(caught.value).endswith("did you mean openvino?")


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_every_target_expresses_the_defaults(target: Target) -> None:
    assert config(target=target.name).choice.target is target
    assert config(target=target.name, method="uniform", bits=8).choice.target is target


def test_a_later_opset_is_refused(tmp_path: Path) -> None:
    proto = make_model([node("Gemm", "x w")], {"x": ["N", 4]}, ["y"], {"w": np.ones((4, 2), np.float32)}, opset=21)
    onnx.save(proto, tmp_path / "model.onnx")
    model = load(tmp_path / "model.onnx")
    check_model(model, find_target("qnn"))
    with pytest.raises(ModelError, match="opset 21, expected 20 or earlier for --target tensorrt"):
        check_model(model, find_target("tensorrt"))
