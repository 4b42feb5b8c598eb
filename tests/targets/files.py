"""Quantized files for each target, and ways to look for and to change what is in one."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
from onnx import numpy_helper

from onnx_cbq import QuantizeConfig, quantize
from onnx_cbq.graph.load import load
from onnx_cbq.model import Array
from onnx_cbq.targets import find_target
from onnx_cbq.targets.lint import Violation, lint
from onnx_cbq.targets.reading import QdqFile
from onnx_cbq.targets.running import Run
from tests.conftest import random_set
from tests.graphs import make_model, node


def net() -> onnx.ModelProto:
    """Convolutions with a residual, a Concat, pools and matrices: all that targets differ in."""
    random = np.random.default_rng(0)

    def weights(*shape: int) -> Array:
        return np.asarray(random.standard_normal(shape) / np.sqrt(np.prod(shape[1:])), np.float32)

    nodes = [
        node("Conv", "x w1 b1", "c1", pads=[1, 1, 1, 1]),
        node("Relu", "c1", "r1"),
        node("MaxPool", "r1", "p1", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "p1 w2 b2", "c2", pads=[1, 1, 1, 1]),
        node("Relu", "c2", "r2"),
        node("Conv", "r2 w3 b3", "c3", pads=[1, 1, 1, 1]),
        node("Add", "c3 p1", "a"),
        node("Relu", "a", "r3"),
        node("Conv", "r3 w4", "c4", group=8, pads=[1, 1, 1, 1]),
        node("Relu", "c4", "r4"),
        node("Concat", "r3 r4", "j", axis=1),
        node("GlobalAveragePool", "j", "g"),
        node("Flatten", "g", "f"),
        node("Gemm", "f w5 b5", "h", transB=1),
        node("Relu", "h", "r5"),
        node("MatMul", "r5 w6"),
    ]
    constants = {
        "w1": weights(8, 3, 3, 3),
        "w2": weights(8, 8, 3, 3),
        "w3": weights(8, 8, 3, 3),
        "w4": weights(8, 1, 3, 3),
        "w5": weights(12, 16),
        "w6": weights(12, 5),
        **{f"b{i}": 0.1 * weights(8) for i in (1, 2, 3)},
        "b5": 0.1 * weights(12),
    }
    return make_model(nodes, {"x": ["N", 3, 8, 8]}, ["y"], constants, opset=17)


@cache
def made(target: str) -> onnx.ModelProto:
    """The net quantized to 8 bits for a target."""
    config = QuantizeConfig(
        bits=8, method="uniform", rounding="nearest", target=target, run_check=target != "vnni", equalize=False
    )
    return quantize(net(), random_set((3, 8, 8)), config).proto


def copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    found = onnx.ModelProto()
    found.CopyFrom(proto)
    return found


def found_in(proto: onnx.ModelProto, target: str) -> list[Violation]:
    file = QdqFile(load(proto))
    return list(lint(file, find_target(target), Run(file, proto.SerializeToString())))


def facts(proto: onnx.ModelProto, target: str) -> set[str]:
    return {violation.finding.fact for violation in found_in(proto, target)}


def nodes_of(proto: onnx.ModelProto, operator: str) -> list[onnx.NodeProto]:
    return [found for found in proto.graph.node if found.op_type == operator]


def maker(proto: onnx.ModelProto, name: str) -> onnx.NodeProto:
    producers: dict[str, onnx.NodeProto] = {output: found for found in proto.graph.node for output in found.output}
    return producers[name]


def value(proto: onnx.ModelProto, name: str) -> Array:
    return np.asarray(numpy_helper.to_array(next(t for t in proto.graph.initializer if t.name == name)))


def give(proto: onnx.ModelProto, at: onnx.NodeProto, index: int, new: Array) -> str:
    """A constant of its own as an input of a node; returns the name of what it was."""
    old = str(at.input[index]) if index < len(at.input) else ""
    name = f"{at.output[0]}_changed_{index}"
    proto.graph.initializer.append(numpy_helper.from_array(np.asarray(new), name))
    at.input.extend([""] * (index + 1 - len(at.input)))
    at.input[index] = name
    return old


def pair_at(proto: onnx.ModelProto, tensor: str) -> tuple[onnx.NodeProto, list[onnx.NodeProto]]:
    """The QuantizeLinear that reads a float tensor, and the DequantizeLinear nodes behind it."""
    quantizer = next(n for n in nodes_of(proto, "QuantizeLinear") if n.input[0] == tensor)
    return quantizer, [n for n in nodes_of(proto, "DequantizeLinear") if n.input[0] == quantizer.output[0]]


def regrid(proto: onnx.ModelProto, tensor: str, scale: Array | None = None, zero: Array | None = None) -> None:
    """Another scale or zero point for a tensor, in all its nodes."""
    quantizer, dequantizers = pair_at(proto, tensor)
    for at in (quantizer, *dequantizers):
        if scale is not None:
            give(proto, at, 1, scale)
        if zero is not None:
            give(proto, at, 2, zero)
