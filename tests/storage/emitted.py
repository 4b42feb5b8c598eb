"""Quantize small models stage by stage, and compute what they should give by an independent simulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from onnx_cbq.graph.layers import find_layers
from onnx_cbq.graph.load import load
from onnx_cbq.graph.normalise import normalise
from onnx_cbq.graph.placement import NO_ACTIVATIONS, Placement, place_activations
from onnx_cbq.graph.shapes import Example
from onnx_cbq.model import Array, Model
from onnx_cbq.quantize.activations import Histogram, choose_grid
from onnx_cbq.quantize.weights import leave_room_for_biases, quantize_layer
from onnx_cbq.records import ActivationGrid, Layers, LayerWeights, WeightRules
from onnx_cbq.runtime import Session
from onnx_cbq.storage.files import write_model
from onnx_cbq.storage.qdq import emit_qdq
from tests.graphs import make_model


@dataclass(frozen=True)
class Emitted:
    """A quantized model and all that went into it."""

    original: Model
    layers: Layers
    weights: Mapping[str, LayerWeights]
    placement: Placement
    grids: Mapping[str, ActivationGrid]
    feeds: Mapping[str, Array]
    model: Model

    def save(self, folder: Path) -> Path:
        """The quantized model as a file."""
        write_model(self.model, folder / "quantized.onnx")
        return folder / "quantized.onnx"


def emitted(
    proto: onnx.ModelProto,
    bits: int = 6,
    *,
    activations: bool = True,
    samples: int = 3,
    activation_bits: int = 8,
    zeros: Mapping[str, Sequence[int]] | None = None,
) -> Emitted:
    """`proto` with every channel at `bits`, ranges from the random samples that come with it.

    Inputs of the model stay at 8 bits, all other activations get `activation_bits`; `zeros` are channels of 0 bits, by
    layer.
    """
    source = load(proto)
    random = np.random.default_rng(3)
    feeds = {
        spec.name: random.standard_normal([samples, *(size or 1 for size in (spec.shape or ())[1:])]).astype(np.float32)
        for spec in source.inputs
    }
    example = Example(feeds)
    model = normalise(source, example).model
    layers = find_layers(model, example.shapes(model))
    if activations:
        layers = Layers(tuple(replace(layer, rules=WeightRules(255)) for layer in layers))
    placement = place_activations(model, layers) if activations else NO_ACTIVATIONS
    inner = [name for name in placement.measured if name not in feeds]
    values = {**feeds, **Session(model.with_graph(outputs=inner or model.outputs)).run(feeds)}
    grids = {
        name: choose_grid(Histogram.empty().add(values[name]), 8 if name in feeds else activation_bits)
        for name in placement.measured
    }
    weights = {}
    for layer in layers:
        weight = model.constant(layer.weight)
        assert weight is not None
        widths = np.full(layer.channels, bits, np.int8)
        widths[list((zeros or {}).get(layer.name, ()))] = 0
        weights[layer.name] = quantize_layer(layer, weight, widths)
        for use in layer.uses:
            grid = grids.get(placement.grid_of(use.activation))
            if zeros and grid and use.bias:
                biases = [(model.weight(use.bias), grid.scale)]
                weights[layer.name] = leave_room_for_biases(layer, weights[layer.name], biases)
    output = emit_qdq(model, layers, weights, placement, grids)
    return Emitted(model, layers, weights, placement, grids, feeds, output)


def simulate(case: Emitted) -> dict[str, Array]:
    """Outputs of the float graph, node by node, every tensor that has a grid rounded to it.

    Weights are codes x scale and biases whole multiples of s_x s_w, as the ONNX standard defines the operators that are
    written; none of the package's own writing is used.
    """
    values: dict[str, Array] = {}
    for tensor in case.original.skeleton.graph.initializer:
        value = case.original.constant(tensor.name)
        assert value is not None
        values[tensor.name] = np.asarray(value)
    for layer in case.layers:
        found = case.weights[layer.name]
        shape = [-1 if axis == layer.weight_axis else 1 for axis in range(len(layer.weight_shape))]
        values[layer.weight] = found.codes * found.scale.reshape(shape)
    uses = {use.output: (layer, use) for layer in case.layers for use in layer.uses}
    for name, value in case.feeds.items():
        values[name] = rounded(value, case.grids.get(name))
    for node in case.original.nodes:
        inputs = {name: values[name] for name in node.input if name}
        if node.output[0] in uses and uses[node.output[0]][1].bias:
            layer, use = uses[node.output[0]]
            grid = case.grids.get(case.placement.grid_of(use.activation))
            bias = np.asarray(values[str(use.bias)])
            if grid is not None:
                step = case.weights[layer.name].scale * np.float32(grid.scale)
                inputs[str(use.bias)] = (np.rint(bias / step.astype(np.float64)) * step).astype(np.float32)
        outputs = evaluate_node(node, inputs, case.original.opset)
        for name, value in outputs.items():
            values[name] = rounded(value, case.grids.get(name))
    return {name: values[name] for name in case.original.outputs}


def rounded(value: Array, grid: ActivationGrid | None) -> Array:
    """The nearest levels of a grid."""
    if grid is None:
        return value
    codes = np.clip(np.rint(value / np.float32(grid.scale)) + grid.zero_point, 0, 2**grid.bits - 1)
    return np.asarray((codes - grid.zero_point) * np.float32(grid.scale), np.float32)


def evaluate_node(node: onnx.NodeProto, inputs: Mapping[str, Array], opset: int) -> dict[str, Array]:
    """One node by onnx's reference evaluator."""
    shapes = {name: value.shape for name, value in inputs.items()}
    dtypes = {name: value.dtype for name, value in inputs.items()}
    single = make_model([node], shapes, list(node.output), opset=opset, dtypes=dtypes)
    for info in single.graph.output:
        info.type.CopyFrom(helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None))
    return dict(zip(node.output, ReferenceEvaluator(single).run(None, dict(inputs)), strict=True))


def distance(values: Array, expected: Array) -> float:
    """Relative distance in norm."""
    return float(np.linalg.norm(values - expected) / np.linalg.norm(expected))
