"""Cross-layer equalization: make the channels between two layers alike in size, without changing what a model computes.

Between two layers that nothing but f stands between, with f(s x) = s f(x) for s > 0 in every channel,

    W2 f(W1 u + b1)  =  (W2 S) f(S^-1 W1 u + S^-1 b1),    S = diag(s), s > 0

(Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, arXiv 1906.04721). The paper
chooses s by the ranges of the weights. Here weights have a scale per channel of their own, and it is the activation in
between that has a single one; so s is a power of its channels' measured ranges r,

    s = (r / R)^strength <= 1

where R is the largest of them, or the upper bound of a Clip that is part of f. In that case f is not homogeneous, but
as s >= r / R no value that was measured is cut off by it: channels are only ever enlarged, up to the bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from onnx import NodeProto

from onnx_cbq.graph.shapes import Shapes
from onnx_cbq.model import Array, Model
from onnx_cbq.records import Layer, Layers

_POINTWISE = frozenset(("Relu", "LeakyRelu"))
_POOLING = frozenset(("MaxPool", "AveragePool", "GlobalAveragePool"))
_RESHAPING = frozenset(("Flatten", "Reshape", "Squeeze"))
_OPERATORS = ("Conv", "Gemm")
# A range is taken as at least this share of the largest one; a channel that is always 0 stays as it is.
SMALLEST_RANGE = 2.0**-16


@dataclass(frozen=True)
class Pair:
    """Two layers and what lies between them.

    Attributes:
        tensor: what the ranges r are taken of; its channels lie along `channel_axis`.
        path: the tensors from the first layer's output to the second layer's input.
        columns: input columns of the second layer per channel; above 1 where positions were laid flat.
        bound: the upper bound of a Clip between them.
    """

    first: Layer
    second: Layer
    tensor: str
    channel_axis: int
    path: tuple[str, ...]
    columns: int = 1
    bound: float = math.inf

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.first.name} -> {self.second.name}"


def find_pairs(model: Model, layers: Layers, shapes: Shapes) -> tuple[Pair, ...]:
    """The pairs that can be equalized: nothing else may read what the first layer makes, nor either layer's weight."""
    simple = [layer for layer in layers if _is_simple(layer)]
    by_activation = {layer.uses[0].activation: layer for layer in simple}
    pairs = (_walk(model, layer, by_activation, shapes) for layer in simple if _owns_bias(model, layer))
    return tuple(pair for pair in pairs if pair is not None)


def factors(ranges: Array, strength: float, bound: float = math.inf) -> Array:
    """s for channels of these ranges, [channels] in (0, 1]."""
    largest = float(ranges.max(initial=0.0)) if math.isinf(bound) else bound
    shares = np.clip(np.where(ranges > 0, ranges, largest) / (largest or 1.0), SMALLEST_RANGE, 1.0)
    return np.asarray(shares**strength if largest else np.ones(len(ranges)), np.float64)


def scale_columns(pair: Pair, weight: Array, scales: Array) -> Array:
    """The second layer's weight W2 S in float64: what reads channel c is multiplied by scales[c]."""
    per_input = np.repeat(scales, pair.columns)
    if pair.second.operator == "Gemm":
        return np.asarray(weight * np.expand_dims(per_input, pair.second.weight_axis))
    # [I] -> [g, 1, I/g] -> [g, O/g, I/g] -> [O, I/g, *1]
    groups, outputs = pair.second.groups, pair.second.channels
    grouped = per_input.reshape(groups, 1, -1).repeat(outputs // groups, axis=1)
    return np.asarray(weight * grouped.reshape(*weight.shape[:2], *(1,) * (weight.ndim - 2)))


def equalized(model: Model, scales: Mapping[Pair, Array]) -> Model:
    """`model` with the channels of every pair divided by its s [channels]. Rounded once, at the end."""
    constants: dict[str, Array] = {}

    def value(name: str) -> Array:
        return constants[name] if name in constants else model.weight(name).astype(np.float64)

    for pair, scale in scales.items():
        first, second, bias = pair.first, pair.second, pair.first.uses[0].bias
        constants[first.weight] = first.unrows(first.rows(value(first.weight)) / scale[:, None])
        constants[second.weight] = scale_columns(pair, value(second.weight), scale)
        if bias is not None:
            constants[bias] = value(bias) / scale
    return model.with_constants({name: array.astype(np.float32) for name, array in constants.items()})


def _is_simple(layer: Layer) -> bool:
    """Whether the layer is a Conv or Gemm that is used once."""
    return layer.operator in _OPERATORS and len(layer.uses) == 1


def _owns_bias(model: Model, layer: Layer) -> bool:
    use = layer.uses[0]
    given = [name for name in model.producers[use.output].input[2:] if name]
    if use.bias is None:
        return not given
    return model.weight(use.bias).shape == (layer.channels,) and len(model.consumers[use.bias]) == 1


def _walk(model: Model, first: Layer, by_activation: Mapping[str, Layer], shapes: Shapes) -> Pair | None:
    """The pair that starts with a layer, if there is one: follow its output from reader to reader."""
    use = first.uses[0]
    pair = Pair(first, first, use.output, use.channel_axis, ())
    name, axis = use.output, use.channel_axis
    while True:
        readers = model.consumers.get(name, [])
        if len(readers) != 1 or name in model.outputs:
            return None
        pair = replace(pair, path=(*pair.path, name))
        node = readers[0]
        second = by_activation.get(name)
        if second is not None and second.uses[0].output == node.output[0]:
            return replace(pair, second=second) if _reads_channels(node, pair, axis, shapes) else None
        following = _step(model, node, pair, axis, shapes)
        if following is None:
            return None
        (pair, axis), name = following, node.output[0]


def _step(model: Model, node: NodeProto, pair: Pair, axis: int, shapes: Shapes) -> tuple[Pair, int] | None:
    """What is known behind `node`, and the axis of the channels there; None if it treats channels unlike."""
    source, result = node.input[0], node.output[0]
    if pair.path[-1] != source or len(node.output) != 1:
        return None
    if node.op_type in _POINTWISE and pair.columns == 1:
        return replace(pair, tensor=result, channel_axis=axis), axis
    if node.op_type in _POINTWISE or (node.op_type in _POOLING and axis == 1 and pair.columns == 1):
        return pair, axis
    if node.op_type == "Clip" and pair.columns == 1 and math.isinf(pair.bound):
        bound = _upper_bound(model, node)
        return None if bound is None else (replace(pair, tensor=result, channel_axis=axis, bound=bound), axis)
    if node.op_type in _RESHAPING:
        before, after = shapes[source], shapes[result]
        # The last axis holds the channels, positions within: [.., C, *P] -> [.., C P]
        inner = math.prod(before[axis + 1 :])
        if after and after[-1] == before[axis] * inner:
            return replace(pair, columns=pair.columns * inner), len(after) - 1
    return None


def _upper_bound(model: Model, node: NodeProto) -> float | None:
    """Where a Clip from 0 ends, None for other Clips."""
    low, high = (*(model.constant(name) if name else None for name in node.input[1:]), None, None)[:2]
    if low is None or low.item() != 0 or (high is None and len(node.input) > 2 and node.input[2]):
        return None
    bound = math.inf if high is None else float(high.item())
    return bound if bound > 0 else None


def _reads_channels(node: NodeProto, pair: Pair, axis: int, shapes: Shapes) -> bool:
    """Whether the channels lie along the axis that the second layer sums over."""
    shape = shapes[node.input[0]]
    if node.op_type == "Conv":
        return axis == 1 and pair.columns == 1 and shape[1] == pair.first.channels
    return axis == len(shape) - 1 and shape[axis] == pair.first.channels * pair.columns
