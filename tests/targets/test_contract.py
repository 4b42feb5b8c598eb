"""Whatever a model is made of, what is written for a target is fit for it, or it is refused in one line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_cbq import QuantizeConfig, check, quantize
from onnx_cbq.errors import ModelError
from onnx_cbq.model import Array
from onnx_cbq.targets import TARGETS
from tests.conftest import random_set
from tests.graphs import make_model, node

NAMES = [target.name for target in TARGETS]
_RANDOM = np.random.default_rng(3)


def weight(*shape: int) -> Array:
    return np.asarray(_RANDOM.standard_normal(shape) / np.sqrt(np.prod(shape[1:])), np.float32)


def classifier(
    nodes: Sequence[onnx.NodeProto], constants: dict[str, Array], batch: int | str = "N", opset: int = 18
) -> onnx.ModelProto:
    """`nodes` make `h`, [N, 6, 8, 8] or so, of `c`, which a first convolution gives; a Gemm ends in 4 classes."""
    all_nodes = [
        node("Conv", "x first bias", "a", pads=[1, 1, 1, 1]),
        node("Relu", "a", "c"),
        *nodes,
        node("GlobalAveragePool", "h", "p"),
        node("Flatten", "p", "f"),
        node("Gemm", "f last", "y", transB=1),
    ]
    ends = {"first": weight(6, 3, 3, 3), "bias": weight(6)}
    return make_model(
        all_nodes, {"x": [batch, 3, 8, 8]}, ["y"], {**ends, "last": weight(4, 6), **constants}, opset=opset
    )


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "concat-of-relu-and-signed": lambda: classifier(
        [node("Conv", "c w", "b"), node("Concat", "c b", "j", axis=1), node("Conv", "j v", "h")],
        {"w": weight(6, 6, 1, 1), "v": weight(6, 12, 1, 1)},
    ),
    "upsampling-by-channel": lambda: classifier(
        [node("ConvTranspose", "c w", "h", group=6, strides=[2, 2])], {"w": weight(6, 1, 2, 2)}
    ),
    "grouped-transposed": lambda: classifier(
        [node("ConvTranspose", "c w d", "h", group=3, strides=[2, 2])], {"w": weight(6, 2, 2, 2), "d": weight(6)}
    ),
    "weight-on-the-left": lambda: classifier(
        [node("Reshape", "c rows", "r"), node("MatMul", "w r", "m"), node("Reshape", "m image", "h")],
        {"w": weight(6, 6), "rows": np.array([0, 6, 64]), "image": np.array([0, 6, 8, 8])},
    ),
    "gemm-of-a-transposed-input": lambda: classifier(
        [
            node("Conv", "c w", "b"),
            node("ReduceMean", "b", "m", axes=[0, 3], keepdims=0),
            node("Gemm", "m v", "g", transA=1),
            node("Reshape", "g row", "k"),
            node("Mul", "b k", "h"),
        ],
        {"w": weight(6, 6, 1, 1), "v": weight(6, 6), "row": np.array([1, 6, 8, 1])},
        opset=17,
    ),
    "depthwise": lambda: classifier([node("Conv", "c w", "h", group=6, pads=[1, 1, 1, 1])], {"w": weight(6, 1, 3, 3)}),
    "moved-before-a-relu-at-opset-21": lambda: classifier(
        [node("Conv", "c w", "b"), node("Reshape", "b same", "r"), node("Relu", "r", "h")],
        {"w": weight(6, 6, 1, 1), "same": np.array([0, 6, 8, 8])},
        opset=21,
    ),
    "batch-of-4": lambda: classifier([node("Conv", "c w", "h")], {"w": weight(6, 6, 1, 1)}, batch=4),
}

REFUSED = {
    ("batch-of-4", "vitis"): "a batch of 1",
    ("moved-before-a-relu-at-opset-21", "tensorrt"): "opset 20",
}
"""What is not written: model and target -> what to export instead."""


@pytest.mark.parametrize("target", NAMES)
@pytest.mark.parametrize("model", MODELS)
def test_what_is_written_is_fit_for_its_target(model: str, target: str, tmp_path: Path) -> None:
    config = QuantizeConfig(
        *(8, "uniform"), rounding="nearest", target=target, run_check=target != "vnni", samples=None
    )
    data = random_set((3, 8, 8), classes=4)
    if (model, target) in REFUSED:
        with pytest.raises(ModelError, match=f"export it again with {REFUSED[model, target]}"):
            quantize(MODELS[model](), data, config)
        return
    result = quantize(MODELS[model](), data, config)
    result.save(tmp_path / "q.onnx")
    found = check(tmp_path / "q.onnx", target)
    assert [str(v) for v in found.violations if v.effect != "slow"] == []
    assert found.pair_safe or target == "vnni"
    # What the target runs in float, or elsewhere, is told.
    assert any("in float or elsewhere" in note for note in result.notes) == bool(found.violations)


@pytest.mark.parametrize("bits", [0, 4])
@pytest.mark.parametrize("target", [target.name for target in TARGETS if {0, 4} <= set(target.activation_bits)])
def test_so_it_is_with_other_activations(target: str, bits: int, tmp_path: Path) -> None:
    """No pair can overflow then, so `vnni` needs no such processor."""
    config = QuantizeConfig(8, "uniform", rounding="nearest", target=target, activation_bits=bits, samples=None)
    result = quantize(MODELS["depthwise"](), random_set((3, 8, 8), classes=4), config)
    result.save(tmp_path / "q.onnx")
    found = check(tmp_path / "q.onnx", target)
    assert [str(v) for v in found.violations if v.effect != "slow"] == []
    assert any("in float or elsewhere" in note for note in result.notes) == bool(found.violations)
