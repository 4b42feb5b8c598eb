"""What onnxruntime makes of a file counts, however the file is written; and each form is run beside its plain graph."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper

from onnx_cbq import QuantizeConfig, check, quantize
from onnx_cbq.graph.load import load
from onnx_cbq.jobs.inspect import inspect
from onnx_cbq.model import Array
from onnx_cbq.runtime import Session
from onnx_cbq.verification.saturation import saturates
from tests.conftest import random_set
from tests.graphs import make_model, node
from tests.targets.files import net

X = np.full((1, 8), 2.55, np.float32)
Form = Callable[[], onnx.ModelProto]


def product(
    front: list[onnx.NodeProto],
    weight: list[onnx.NodeProto],
    constants: dict[str, Array],
    inputs: str = "d v",
    operator: str = "MatMul",
) -> onnx.ModelProto:
    """A product between grids of uint8, with codes of 127 in every weight."""
    nodes = [
        node("QuantizeLinear", "x s z", "q"),
        node("DequantizeLinear", "q s z", "d"),
        *front,
        *weight,
        node(operator, inputs, "p"),
        node("QuantizeLinear", "p t z", "r"),
        node("DequantizeLinear", "r t z", "y"),
    ]
    scales: dict[str, Array] = {
        "s": np.array(0.01, np.float32),
        "z": np.array(0, np.uint8),
        "t": np.array(0.2, np.float32),
    }
    weights: dict[str, Array] = {
        "k": np.full((8, 4), 127, np.int8),
        "u": np.full(4, 0.01, np.float32),
        "o": np.zeros(4, np.int8),
    }
    return make_model(nodes, {"x": [1, 8]}, ["y"], {**scales, **weights, **constants})


DEQUANTIZE = node("DequantizeLinear", "k u o", "v", axis=1)
FORMS: dict[str, Form] = {
    "plain": lambda: product([], [DEQUANTIZE], {}),
    "weight-quantized-in-the-file": lambda: product(
        [],
        [node("QuantizeLinear", "f u o", "g", axis=1), node("DequantizeLinear", "g u o", "v", axis=1)],
        {"f": np.full((8, 4), 1.27, np.float32)},
    ),
    "weight-transposed": lambda: product(
        [],
        [node("DequantizeLinear", "l u1 o1", "e"), node("Transpose", "e", "v", perm=[1, 0])],
        {"l": np.full((4, 8), 127, np.int8), "u1": np.array(0.01, np.float32), "o1": np.array(0, np.int8)},
    ),
    "weight-behind-identity": lambda: product([], [DEQUANTIZE, node("Identity", "v", "e")], {}, "d e"),
    "activation-reshaped": lambda: product(
        [node("Reshape", "d shape", "e")], [DEQUANTIZE], {"shape": np.array([1, 8])}, "e v"
    ),
    "weight-left-float": lambda: product([], [], {"v": np.full((8, 4), 1.27, np.float32)}, operator="Gemm"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_saturates_is_found_in_every_form(form: str) -> None:
    """By what saturates here, where this processor does: the outputs of the two graphs are far apart then."""
    proto = FORMS[form]()
    real, plain = (Session(load(proto), kind).run({"x": X})["y"] for kind in ("all", "off"))
    real = Session(proto.SerializeToString()).run({"x": X})["y"]
    wrong = bool(np.abs(real - plain).max() > 1)
    found = check(proto)
    assert not (wrong and found.pair_safe)
    if saturates():
        assert found.pair_safe is not wrong
    if not found.pair_safe:
        assert "pairs" in {violation.finding.fact for violation in found.violations}


@pytest.mark.parametrize("form", ["plain", "weight-quantized-in-the-file", "weight-left-float"])
def test_integers_are_counted_as_they_are_run(form: str) -> None:
    found = check(FORMS[form]())
    assert (found.fused, found.products) == (1, 1)


def test_types_without_an_integer_kernel_are_not_counted() -> None:
    proto = product([], [node("DequantizeLinear", "k4 u o4", "v", axis=1)], {})
    for name, value in (("k4", [3] * 32), ("o4", [0] * 4)):
        shape = [8, 4] if name == "k4" else [4]
        proto.graph.initializer.append(helper.make_tensor(name, onnx.TensorProto.INT4, shape, value))
    proto.opset_import[0].version, proto.ir_version = 21, 10
    assert check(proto).fused == 0


def test_codes_that_are_multiplied_as_int8_are_exact() -> None:
    """Operators on codes stay as they are; between QuantizeLinear and DequantizeLinear int8 becomes uint8 on x86."""
    nodes = [
        node("QuantizeLinear", "x s z", "q"),
        node("QLinearMatMul", "q s z k u o t z", "r"),
        node("DequantizeLinear", "r t z", "y"),
    ]
    constants: dict[str, Array] = {
        "s": np.array(0.02, np.float32),
        "z": np.array(0, np.int8),
        "t": np.array(0.4, np.float32),
        "k": np.full((8, 4), 127, np.int8),
        "u": np.array(0.01, np.float32),
        "o": np.array(0, np.int8),
    }
    proto = make_model(nodes, {"x": [1, 8]}, ["y"], constants)
    real, plain = (Session(load(proto), kind).run({"x": X})["y"] for kind in ("all", "off"))
    np.testing.assert_array_equal(real, plain)
    assert check(proto).pair_safe


def test_products_of_another_tool_are_listed() -> None:
    found = inspect(FORMS["plain"]())
    assert found.plan is None
    assert [(p.operator, p.codes is not None) for p in found.products] == [("MatMul", True)]
    assert set(found.unsafe.values()) == {254}


@pytest.mark.parametrize("storage", ["int8", "packed"])
@pytest.mark.parametrize("target", ["cpu", "openvino"])
def test_files_of_fewer_activation_bits_stay_fit_once_a_clip_is_fused(target: str, storage: str) -> None:
    """onnxruntime makes a FusedConv of a Conv and the Clip that keeps codes small, which was then not seen."""
    config = QuantizeConfig(8, "uniform", rounding="nearest", target=target, activation_bits=6, storage=storage)
    found = quantize(net(), random_set((3, 8, 8)), config)
    assert found.proto.graph.node
