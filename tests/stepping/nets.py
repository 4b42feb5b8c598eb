"""Small nets with residual additions, padding, depthwise filters and a flattening, and subnets drawn at random."""

from __future__ import annotations

import numpy as np
import onnx

from onnx_cbq.graph.load import load
from onnx_cbq.graph.logits import find_logits
from onnx_cbq.graph.normalise import normalise
from onnx_cbq.graph.shapes import Example
from onnx_cbq.model import Array, Model, attributes
from onnx_cbq.stepping.masks import Nested
from onnx_cbq.stepping.units import Units, find_units
from tests.graphs import make_model, node

CLASSES = 5


def padded_net(seed: int = 0) -> onnx.ModelProto:
    """A residual block whose shortcut is strided and padded with channels of zeros, a depthwise one, a softmax."""
    random = np.random.default_rng(seed)
    shapes = {"w1": (6, 3, 3, 3), "w2": (10, 6, 3, 3), "w3": (10, 1, 3, 3), "w4": (10, 10, 1, 1), "w5": (160, CLASSES)}
    constants = {name: random.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    constants |= {
        f"b{i}": random.normal(0, 0.3, size).astype(np.float32) for i, size in enumerate((6, 10, 10, 10, 5), 1)
    }
    constants |= {
        "starts": np.array([0, 0]),
        "ends": np.array([99, 99]),
        "axes": np.array([2, 3]),
        "strides": np.array([2, 2]),
        "pads": np.array([0, 2, 0, 0, 0, 2, 0, 0]),
        "slope": random.random((10, 1, 1)).astype(np.float32),
    }
    pads = {"pads": [1, 1, 1, 1]}
    nodes = [
        node("Conv", "x w1 b1", "c1", **pads),
        node("Relu", "c1", "r1"),
        node("Conv", "r1 w2 b2", "c2", strides=[2, 2], **pads),
        node("Slice", "r1 starts ends axes strides", "s"),
        node("Pad", "s pads", "p"),
        node("Add", "c2 p", "a1"),
        node("PRelu", "a1 slope", "r2"),
        node("Conv", "r2 w3 b3", "c3", group=10, **pads),
        node("Sigmoid", "c3", "r3"),
        node("Conv", "r3 w4 b4", "c4"),
        node("Add", "r2 c4", "a2"),
        node("Flatten", "a2", "f"),
        node("Gemm", "f w5 b5", "z"),
        node("Softmax", "z", "y", axis=1),
    ]
    return make_model(nodes, {"x": ["N", 3, 8, 8]}, ["y"], constants)


def joined_net() -> onnx.ModelProto:
    """Two branches put together, a grouped convolution, and class scores pooled from a convolution."""
    random = np.random.default_rng(3)
    shapes = {"w1": (4, 2, 3, 3), "w2": (4, 2, 1, 1), "w3": (8, 2, 3, 3), "w4": (CLASSES, 8, 1, 1)}
    constants = {name: random.normal(0, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}
    constants |= {f"b{i}": random.normal(0, 0.4, size).astype(np.float32) for i, size in enumerate((4, 4, 8, 5), 1)}
    nodes = [
        node("Conv", "x w1 b1", "c1", pads=[1, 1, 1, 1]),
        node("Conv", "x w2 b2", "c2"),
        node("MaxPool", "c1", "m", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Concat", "c2 m", "j", axis=1),
        node("Conv", "j w3 b3", "c3", group=4, pads=[1, 1, 1, 1]),
        node("Elu", "c3", "e"),
        node("Conv", "e w4 b4", "c4"),
        node("GlobalAveragePool", "c4", "g"),
        node("Flatten", "g", "y"),
    ]
    return make_model(nodes, {"x": ["N", 2, 6, 6]}, ["y"], constants)


def units_of(proto: onnx.ModelProto) -> tuple[Units, Example]:
    source = load(proto)
    example = Example.made_up(source)
    model = normalise(source, example).model
    shapes = example.shapes(model)
    return find_units(model, shapes, find_logits(model, shapes)), example


def random_nested(units: Units, steps: int, seed: int) -> Nested:
    """Units anywhere, even in none, but one per layer in subnet 1; a bias of its own for every head."""
    random = np.random.default_rng(seed)
    assignment = np.concatenate([[1], random.integers(1, steps + 2, units.count - 1)])
    for product in units.hidden:
        own = units.of[product.use.output]
        if not (assignment[own] == 1).any():
            assignment[own[0]] = 1
    constants = {layer.weight: units.model.weight(layer.weight) for layer in units.layers}
    bias = units.head.use.bias
    biases = None if bias is None else random.normal(0, 1, (steps, units.logits.classes)).astype(np.float32)
    return Nested(assignment, constants, biases, steps)


def counted_macs(proto: onnx.ModelProto, feeds: dict[str, Array]) -> int:
    """Multiplications of a model for one sample: products are counted node by node from measured shapes."""
    found = Example(feeds).shapes(Model.from_proto(proto))
    constants = {tensor.name: list(tensor.dims) for tensor in proto.graph.initializer}
    total = 0
    for one in proto.graph.node:
        if one.op_type not in ("Conv", "Gemm"):
            continue
        weight, output = constants[one.input[1]], found[one.output[0]]
        if one.op_type == "Conv":
            assert weight[1] * attributes(one).get("group", 1) == found[one.input[0]][1]
            total += int(np.prod(weight)) * int(np.prod(output[2:]))
        else:
            total += int(np.prod(weight))
    return total
