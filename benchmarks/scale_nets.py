"""Nets for measuring growth: made ones of any width and number of classes, and what a widened one would ask for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnx_cbq import CalibrationSet
from onnx_cbq.evidence.tables import _moment_bytes
from onnx_cbq.quantize.moments import WIDEST
from onnx_cbq.records import Layer

SIDE = 8


def made_net(width: int, classes: int, side: int = SIDE) -> ModelProto:
    """Three convolutions and a product over images of 3 x side x side, the weights random but always the same."""
    random = np.random.default_rng(0)
    shapes = {"a": (width, 3, 3, 3), "b": (2 * width, width, 3, 3), "c": (2 * width, 2 * width, 3, 3)}
    nodes, weights, reads = [], [], "x"
    for name, shape in shapes.items():
        values = random.standard_normal(shape).astype(np.float32) * np.float32(math.sqrt(2 / math.prod(shape[1:])))
        weights += [numpy_helper.from_array(values, f"w{name}"), _zeros(shape[0], f"b{name}")]
        stride = [2, 2] if name == "b" else [1, 1]
        pads = [1, 1, 1, 1]
        nodes.append(helper.make_node("Conv", [reads, f"w{name}", f"b{name}"], [f"z{name}"], pads=pads, strides=stride))
        nodes.append(helper.make_node("Relu", [f"z{name}"], [reads := f"y{name}"]))
    last = random.standard_normal((2 * width, classes)).astype(np.float32) / np.float32(math.sqrt(2 * width))
    weights += [numpy_helper.from_array(last, "wd"), _zeros(classes, "bd")]
    nodes.append(helper.make_node("GlobalAveragePool", [reads], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
    nodes.append(helper.make_node("Gemm", ["flat", "wd", "bd"], ["scores"]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, side, side])]
    outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", classes])]
    graph = helper.make_graph(nodes, "made", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def made_samples(count: int, classes: int, side: int = SIDE) -> CalibrationSet:
    """So many random images, evenly of all classes."""
    images = np.random.default_rng(1).standard_normal((count, 3, side, side)).astype(np.float32)
    return CalibrationSet.from_arrays(images, np.arange(count) % classes, [f"c{i}" for i in range(classes)])


def _zeros(count: int, name: str) -> TensorProto:
    return numpy_helper.from_array(np.zeros(count, np.float32), name)


@dataclass(frozen=True)
class Net:
    """The sizes of a net that costs depend on.

    Attributes:
        weights: of all layers; `macs` multiplications with them for a sample.
        channels: of all layers, `neurons` their outputs for a sample.
        moment_bytes: of all layers together.
        solver: multiplications of one candidate of the solver: every weight with those of its channel, up to `WIDEST`.
    """

    weights: int
    macs: int
    channels: int
    neurons: int
    classes: int
    moment_bytes: int
    solver: int
    layers: int

    @staticmethod
    def of(layers: Sequence[Layer], classes: int) -> Net:
        """The sizes of these layers."""
        return Net(
            weights=sum(layer.size for layer in layers),
            macs=sum(layer.macs for layer in layers),
            channels=sum(layer.channels for layer in layers),
            neurons=sum(math.prod(use.output_shape) // layer.samples for layer in layers for use in layer.uses),
            classes=classes,
            moment_bytes=sum(_moment_bytes(layer) for layer in layers),
            solver=sum(layer.size * min(layer.weights_per_channel, WIDEST) for layer in layers),
            layers=len(layers),
        )


def widened(layers: Sequence[Layer], times: float, classes: int) -> list[Layer]:
    """The layers of a net with so many times the channels everywhere, and so many classes behind the last of them.

    What the first layer reads stays, positions do too; weights of depthwise layers have one channel to read.
    """
    found = []
    for number, layer in enumerate(layers):
        ends = (number == 0, number == len(layers) - 1)
        found.append(_widened(layer, times, classes, ends))
    return found


def _widened(layer: Layer, times: float, classes: int, ends: tuple[bool, bool]) -> Layer:
    shape, axis = list(layer.weight_shape), layer.weight_axis
    first, last = ends
    for place in range(min(len(shape), 2)):
        if place == axis:
            shape[place] = classes if last else max(round(shape[place] * times), 1)
        elif shape[place] > 1 and not first:
            shape[place] = round(shape[place] * times)
    groups = layer.groups if layer.groups == 1 else max(round(layer.groups * times), 1)
    channels = shape[axis] if layer.kind == "product" else None
    uses = []
    for use in layer.uses:
        output = list(use.output_shape)
        output[use.channel_axis] = channels or round(output[use.channel_axis] * times)
        uses.append(replace(use, output_shape=tuple(output)))
    return replace(layer, weight_shape=tuple(shape), groups=groups, uses=tuple(uses))


def of_size(layers: Sequence[Layer], weights: int, classes: int) -> tuple[list[Layer], float]:
    """The layers of a net widened until it has so many weights, and how many times it was widened."""
    low, high = 1 / 64, 4096.0
    while high / low > 1.0001:
        middle = math.sqrt(low * high)
        size = sum(layer.size for layer in widened(layers, middle, classes))
        low, high = (middle, high) if size < weights else (low, middle)
    return widened(layers, high, classes), high
