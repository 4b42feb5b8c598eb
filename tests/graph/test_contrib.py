"""What onnxruntime's optimizer writes is read as what it was made of; onnxruntime's own kernels are the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from onnx_cbq.graph.layers import find_layers
from onnx_cbq.graph.load import load
from onnx_cbq.graph.normalise import normalise
from onnx_cbq.graph.shapes import Example
from onnx_cbq.model import Array
from onnx_cbq.runtime import Session
from tests.graphs import make_model, node

RANDOM = np.random.default_rng(5)


def normal(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


def contrib(
    operator: str, inputs: str, outputs: str = "y", domain: str = "com.microsoft", **attrs: Any
) -> onnx.NodeProto:
    made = node(operator, inputs, outputs, **attrs)
    made.domain = domain
    return made


ROW: list[int | str] = ["N", 4]
ROWS: list[int | str] = ["N", 3, 4]
IMAGE: list[int | str] = ["N", 4, 6, 6]
FILTERS = {"w": normal(4, 4, 3, 3)}
BIASED = {**FILTERS, "b": normal(4)}
NORM = {"g": normal(4), "b": normal(4)}


def conv(inputs: str, activation: str, *parameters: float) -> onnx.NodeProto:
    given: dict[str, Any] = {"activation_params": parameters} if parameters else {}
    return contrib("FusedConv", inputs, activation=activation, kernel_shape=[3, 3], pads=[1, 1, 1, 1], **given)


CASES: dict[str, tuple[onnx.NodeProto, dict[str, Array], list[int | str]]] = {
    "gelu": (contrib("Gelu", "x"), {}, ROW),
    "bias-gelu": (contrib("BiasGelu", "x b"), {"b": normal(4)}, ROW),
    "fast-gelu": (contrib("FastGelu", "x"), {}, ROW),
    "fast-gelu-bias": (contrib("FastGelu", "x b"), {"b": normal(4)}, ROW),
    "quick-gelu": (contrib("QuickGelu", "x"), {}, ROW),
    "quick-gelu-alpha": (contrib("QuickGelu", "x", alpha=1.2), {}, ROW),
    "conv-relu": (conv("x w b", "Relu"), BIASED, IMAGE),
    "conv-leaky": (conv("x w", "LeakyRelu", 0.2), FILTERS, IMAGE),
    "conv-clip": (conv("x w", "Clip", -0.3, 0.8), FILTERS, IMAGE),
    "conv-hard": (conv("x w", "HardSigmoid", 0.3, 0.4), FILTERS, IMAGE),
    "conv-sum": (conv("x w b x", "Relu"), BIASED, IMAGE),
    "gemm": (
        contrib("FusedGemm", "x w b", activation="LeakyRelu", activation_alpha=0.3, transB=1, alpha=0.5),
        {"w": normal(6, 4), "b": normal(6)},
        ROW,
    ),
    "matmul": (contrib("FusedMatMul", "x w", alpha=0.25, transB=1), {"w": normal(6, 4)}, ROW),
    "matmul-left": (contrib("FusedMatMul", "x w", transA=1), {"w": normal(3, 6)}, ROWS),
    "skip": (contrib("SkipLayerNormalization", "x x g b", epsilon=1e-3), NORM, ROWS),
    "skip-bias": (contrib("SkipLayerNormalization", "x x g b c", "y _ _ s"), {**NORM, "c": normal(4)}, ROWS),
    "simple": (contrib("SimplifiedLayerNormalization", "x g", domain="", axis=-1, epsilon=1e-3), NORM, ROWS),
    "simple-skip": (contrib("SkipSimplifiedLayerNormalization", "x x g"), NORM, ROWS),
}


@pytest.mark.parametrize("opset", [13, 17, 18])
@pytest.mark.parametrize(("made", "constants", "shape"), CASES.values(), ids=CASES)
def test_a_known_operator_is_written_out(
    made: onnx.NodeProto, constants: dict[str, Array], shape: list[int | str], opset: int
) -> None:
    """Otherwise its layers are not found, and the default method knows no gradient."""
    outputs = [name for name in made.output if name]
    proto = make_model([made], {"x": shape}, outputs, constants, opset=opset)
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model = load(proto)
    example = Example.made_up(model)
    found = normalise(model, example)
    assert found.notes == ()
    assert {n.domain for n in found.model.nodes} == {""}
    onnx.checker.check_model(found.model.to_proto())
    before, after = Session(model, "off").run(example.feeds), Session(found.model, "off").run(example.feeds)
    for name in outputs:
        # float32 rounds to 6e-8; sums of up to a hundred products stay below 1e-5 of the largest.
        np.testing.assert_allclose(after[name], before[name], atol=1e-5 * float(np.abs(before[name]).max()))


def test_unknown_operators_stay_and_layers_beside_them_are_found() -> None:
    nodes = [node("MatMul", "x w", "h"), contrib("Inverse", "h", "i"), node("Flatten", "i", "f"), node("Gemm", "f v")]
    proto = make_model(nodes, {"x": ["N", 4, 4]}, ["y"], {"w": normal(4, 4), "v": normal(16, 3)})
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model = load(proto)
    example = Example.made_up(model)
    found = normalise(model, example).model
    assert "Inverse" in {n.op_type for n in found.nodes}
    assert [layer.weight for layer in find_layers(found, example.shapes(found))] == ["w", "v"]
