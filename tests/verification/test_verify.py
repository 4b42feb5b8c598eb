"""Every way in which a written file can be wrong is noticed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_cbq import QuantizeConfig, quantize
from onnx_cbq.calibration import CalibrationSet
from onnx_cbq.errors import VerificationError
from onnx_cbq.graph.load import load
from onnx_cbq.graph.shapes import outputs_of_varying_size
from onnx_cbq.runtime import Session
from onnx_cbq.verification.verify import check_codes, check_file
from tests.graphs import make_model, node
from tests.storage.emitted import Emitted, emitted


def small_net() -> onnx.ModelProto:
    random = np.random.default_rng(0)
    proto = make_model(
        [node("Conv", "x w", "a"), node("Relu", "a", "r"), node("Flatten", "r", "f"), node("Gemm", "f v b")],
        {"x": ["N", 3, 4, 4]},
        ["y"],
        {
            "w": random.standard_normal((4, 3, 3, 3)).astype(np.float32),
            "v": random.standard_normal((16, 5)).astype(np.float32),
            "b": random.standard_normal(5).astype(np.float32),
        },
    )
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5]))
    return proto


@pytest.fixture
def case() -> Emitted:
    return emitted(small_net(), 5)


def check(case: Emitted, path: Path) -> None:
    check_file(path, case.original, case.layers, case.weights, case.feeds)


def test_a_right_file_passes(case: Emitted, tmp_path: Path) -> None:
    check(case, case.save(tmp_path))


def rename_output(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].name = "other"
    next(n for n in proto.graph.node if "y" in n.output).output[0] = "other"


def widen_output(proto: onnx.ModelProto) -> None:
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    proto.graph.output[0].type.tensor_type.shape.dim.extend(
        onnx.TensorShapeProto.Dimension(dim_param=name) for name in ("N", "C", "D")
    )
    next(n for n in proto.graph.node if "y" in n.output).output[0] = "flat"
    proto.graph.initializer.append(numpy_helper.from_array(np.array([-1, 5, 1]), "shape"))
    proto.graph.node.append(node("Reshape", "flat shape"))


def forget_a_weight(proto: onnx.ModelProto) -> None:
    del proto.graph.initializer[0]


def unknown_operator(proto: onnx.ModelProto) -> None:
    next(n for n in proto.graph.node if n.op_type == "Conv").op_type = "Convolve"


def wrong_type(proto: onnx.ModelProto) -> None:
    """The declared type of the output is not the one that comes out."""
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64


def not_finite(proto: onnx.ModelProto) -> None:
    """NaN in the last layer's weights. A comparison that counts NaN as no difference would let it through."""
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and list(tensor.dims) == [5]:
            tensor.CopyFrom(numpy_helper.from_array(np.full(5, np.nan, np.float32), tensor.name))


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [
        (rename_output, "output 'y' of the quantized model has another shape than in the float model"),
        (widen_output, "output 'y' of the quantized model has another shape than in the float model"),
        (forget_a_weight, "the quantized model is not valid: "),
        (unknown_operator, "the quantized model is not valid: "),
        (wrong_type, "the quantized model is not valid: "),
        (not_finite, "output 'y' of the quantized model holds NaN, which the float model does not; expected finite"),
    ],
)
def test_a_corrupted_file_is_noticed(
    case: Emitted, tmp_path: Path, corrupt: Callable[[onnx.ModelProto], None], message: str
) -> None:
    proto = onnx.load(case.save(tmp_path))
    corrupt(proto)
    onnx.save(proto, tmp_path / "corrupted.onnx")
    with pytest.raises(VerificationError, match=message) as caught:
        check(case, tmp_path / "corrupted.onnx")
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_noticed(case: Emitted, tmp_path: Path) -> None:
    path = case.save(tmp_path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(VerificationError, match="the quantized model is not valid"):
        check(case, path)


def test_codes_that_do_not_fit_are_noticed(case: Emitted, tmp_path: Path) -> None:
    name, weights = next(iter(case.weights.items()))
    codes = weights.codes.copy()
    codes[2, 0, 0, 0] = 32  # 5 bits end at 15, or 31 for odd codes
    wrong = replace(case, weights={**case.weights, name: replace(weights, codes=codes)})
    with pytest.raises(VerificationError, match=f"layer '{name}': the codes of channel 2 do not fit 5 bits"):
        check(wrong, case.save(tmp_path))


def test_codes_of_a_channel_are_held_against_its_own_bits() -> None:
    rows = np.array([[0, 0, 0], [1, -1, 1], [1, 0, -1], [127, -127, 3]], np.int8)
    check_codes("w", rows, np.array([0, 1, 2, 7]))
    for channel, bits in enumerate([[1, 1, 2, 7], [0, 0, 2, 7], [0, 1, 1, 7], [0, 1, 2, 6]]):
        with pytest.raises(VerificationError, match=f"channel {channel} do not fit {bits[channel]} bits"):
            check_codes("w", rows, np.array(bits))


def detector() -> onnx.ModelProto:
    """Class scores, and boxes of which as many are left as the values say."""
    nodes = [
        *(node("Conv", "x w", "c"), node("GlobalAveragePool", "c", "g"), node("Flatten", "g", "y")),
        *(node("Reshape", "c four", "f"), node("Transpose", "f", "boxes", perm=[0, 2, 1])),
        *(node("ReduceMax", "f axis", "s", keepdims=1), node("NonMaxSuppression", "boxes s most", "left")),
        node("NonZero", "c", "places"),
    ]
    random = np.random.default_rng(0)
    constants = {
        "w": random.standard_normal((4, 2, 3, 3)).astype(np.float32),
        "four": np.array([0, 4, -1]),
        "axis": np.array([1]),
        "most": np.array([9]),
    }
    return make_model(nodes, {"x": ["N", 2, 6, 6]}, ["y", "left", "places"], constants)


def test_outputs_may_be_as_long_as_their_values_say() -> None:
    """A box more or less is no other shape; what is not so may not differ."""
    x = np.random.default_rng(1).standard_normal((40, 2, 6, 6)).astype(np.float32)
    data, config = CalibrationSet.from_arrays(x, np.arange(40) % 4), QuantizeConfig(bits=2, method="uniform")
    found = quantize(detector(), data, config)
    outputs = [Session(model.SerializeToString()).run({"x": x}) for model in (detector(), found.proto)]
    assert outputs[0]["places"].shape != outputs[1]["places"].shape
    assert outputs_of_varying_size(load(detector())) == {"left", "places"}


def test_a_shape_that_the_source_declared_wrongly_is_no_fault_of_the_file() -> None:
    """skl2onnx declares the labels of several classes with one axis; that of the file is refused only if it is new."""
    proto = make_model([node("Gemm", "x w"), node("Greater", "y zero", "label")], {"x": ["N", 6]}, ["y", "label"], {
        "w": np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32), "zero": np.zeros(1, np.float32),
    })  # fmt: skip
    proto.graph.output[1].CopyFrom(helper.make_tensor_value_info("label", TensorProto.BOOL, ["N"]))
    x = np.random.default_rng(1).standard_normal((30, 6)).astype(np.float32)
    found = quantize(proto, CalibrationSet.from_arrays(x, np.arange(30) % 3), QuantizeConfig(method="uniform"))
    assert [(one.output, one.relative) for one in found.outputs] == [("label", None)]
