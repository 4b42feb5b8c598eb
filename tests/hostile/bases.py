"""Small models of every kind that loading knows, to be damaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnx_cbq import CalibrationSet, QuantizeConfig, quantize
from onnx_cbq.jobs.data_free import quantize_data_free
from onnx_cbq.model import Array
from tests.graphs import make_model, node

CLASSES = 4
SHAPE = (1, 6, 6)
_RANDOM = np.random.default_rng(0)


def _float(*shape: int) -> Array:
    return np.asarray(_RANDOM.standard_normal(shape) / np.sqrt(np.prod(shape[1:])), np.float32)


CONSTANTS: dict[str, Array] = {
    "w": _float(8, 1, 3, 3),
    "b": _float(8),
    "v": _float(8, 1, 3, 3),
    "s": np.array([1.5], np.float32),
    "fc": _float(72, CLASSES),
    "c": _float(CLASSES),
    "to": np.array([0, 72], np.int64),
}


def _net(
    middle: Sequence[onnx.NodeProto] = (), opset: int = 17, more: dict[str, Array] | None = None
) -> onnx.ModelProto:
    """Conv, depthwise Conv, pool, Gemm; `middle` takes `r` and gives `m`."""
    nodes = [
        node("Conv", "x w b", "a", pads=[1, 1, 1, 1]),
        node("Relu", "a", "r"),
        *(middle or [node("Mul", "r s", "m")]),
        node("Conv", "m v", "d", pads=[1, 1, 1, 1], group=8),
        node("MaxPool", "d", "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("Reshape", "p to", "f"),
        node("Gemm", "f fc c", "y"),
    ]
    model = make_model(nodes, {"x": ["N", *SHAPE]}, ["y"], {**CONSTANTS, **(more or {})}, opset=opset)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", CLASSES]))
    model.metadata_props.add(key="names", value="a, b")
    return model


def _branching() -> onnx.ModelProto:
    branches = [
        helper.make_graph([node(operator, "r", "q")], operator, [], [helper.make_empty_tensor_value_info("q")])
        for operator in ("Neg", "Abs")
    ]
    choice = helper.make_node("If", ["yes"], ["m"], then_branch=branches[0], else_branch=branches[1])
    return _net([choice], more={"yes": np.array(1, bool)})


def _looping() -> onnx.ModelProto:
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Identity", "on", "on2"), node("Add", "state r", "state2")],
        "body",
        [info("i", TensorProto.INT64, []), info("on", TensorProto.BOOL, []), info("state", TensorProto.FLOAT, None)],
        [info("on2", TensorProto.BOOL, []), info("state2", TensorProto.FLOAT, None)],
    )
    return _net([helper.make_node("Loop", ["n", "", "r"], ["m"], body=body)], more={"n": np.array(2, np.int64)})


def _calling() -> onnx.ModelProto:
    ids = [helper.make_opsetid("", 17), helper.make_opsetid("l", 1)]
    inner = helper.make_function("l", "Inner", ["X"], ["Y"], [node("Neg", "X", "Y")], ids)
    body = [helper.make_node("Inner", ["X"], ["t"], domain="l"), node("Relu", "t", "Y")]
    outer = helper.make_function("l", "Outer", ["X"], ["Y"], body, ids)
    model = _net([helper.make_node("Outer", ["r"], ["m"], domain="l")])
    model.functions.extend([outer, inner])
    model.opset_import.append(helper.make_opsetid("l", 1))
    return model


def _folding() -> onnx.ModelProto:
    """Constants that are computed: what could grow beyond all measure."""
    middle = [
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.array([2], np.int64), "")),
        helper.make_node("ConstantOfShape", ["k"], ["z"], value=numpy_helper.from_array(np.ones(1, np.float32), "")),
        node("ReduceSum", "z", "t", keepdims=0),
        node("Tile", "s rep", "ss"),
        node("Expand", "ss shape", "e"),
        node("ReduceMean", "e", "em"),
        node("Mul", "r em", "u"),
        node("Mul", "u t", "m"),
    ]
    return _net(middle, more={"rep": np.array([2], np.int64), "shape": np.array([3, 2], np.int64)})


def _resizing() -> onnx.ModelProto:
    middle = [
        node("Pad", "r pads", "q"),
        node("Resize", "q _ scales", "z", mode="linear"),
        node("AveragePool", "z", "u", kernel_shape=[2, 2], strides=[2, 2]),
        node("Slice", "u starts ends axes", "m"),
    ]
    more: dict[str, Array] = {
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "starts": np.array([1, 1], np.int64),
        "ends": np.array([7, 7], np.int64),
        "axes": np.array([2, 3], np.int64),
    }
    return _net(middle, more=more)


def _attention() -> onnx.ModelProto:
    nodes = [
        node("Reshape", "x tokens", "t"),
        node("MatMul", "t wq", "q"),
        node("Transpose", "q", "k", perm=[0, 2, 1]),
        node("MatMul", "q k", "qk"),
        node("Softmax", "qk", "p", axis=-1),
        node("MatMul", "p q", "o"),
        node("LayerNormalization", "o g g", "n", axis=-1),
        node("ReduceMean", "n", "f", axes=[1], keepdims=0),
        node("Gemm", "f fc c", "y", transB=1),
    ]
    constants: dict[str, Array] = {
        "tokens": np.array([0, 6, 6], np.int64),
        "wq": _float(6, 6),
        "g": np.ones(6, np.float32),
        "fc": _float(CLASSES, 6),
        "c": _float(CLASSES),
    }
    return make_model(nodes, {"x": ["N", *SHAPE]}, ["y"], constants, opset=17)


def _old() -> onnx.ModelProto:
    middle = [
        node("Clip", "r", "q", min=0.0, max=6.0),
        node("Upsample", "q", "u", mode="nearest", scales=[1.0, 1.0, 2.0, 2.0]),
        node("MaxPool", "u", "m", kernel_shape=[2, 2], strides=[2, 2]),
    ]
    return _net(middle, opset=8)


def _sparse() -> onnx.ModelProto:
    model = _net()
    entry = model.graph.sparse_initializer.add(dims=[1])
    entry.values.CopyFrom(numpy_helper.from_array(np.array([1.5], np.float32), "s2"))
    entry.indices.CopyFrom(numpy_helper.from_array(np.array([0], np.int64), ""))
    model.graph.node[2].input[1] = "s2"
    return model


def quantized() -> onnx.ModelProto:
    """A file that onnx-cbq wrote, with float activations."""
    return quantize_data_free(_net(), None, {}).model.to_proto()


def on_integers() -> onnx.ModelProto:
    """One with quantized activations."""
    random = np.random.default_rng(0)
    x, y = random.standard_normal((40, *SHAPE)).astype(np.float32), np.arange(40) % CLASSES
    config = QuantizeConfig(bits=6, method="uniform", rounding="nearest", equalize=False, samples=16)
    return quantize(_net(), CalibrationSet.from_arrays(x, y), config).model.to_proto()


FLOAT: tuple[Callable[[], onnx.ModelProto], ...] = (
    _net,
    _branching,
    _looping,
    _calling,
    _folding,
    _resizing,
    _attention,
    _old,
    _sparse,
)
