"""Cross-layer equalization: make the channels between two layers alike in size, without changing what a model computes.

Between two layers that nothing but f stands between, with f(s x) = s f(x) for s > 0 in every channel (`graph.paths`),

    W2 f(W1 u + b1)  =  (W2 S) f(S^-1 W1 u + S^-1 b1),    S = diag(s), s > 0

(Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, arXiv 1906.04721). The first
may be the vector of a normalization as well, and the second several layers (`graph.pairs`). The paper chooses s by the
ranges of the weights. Here weights have a scale per channel of their own, and it is the activation in
between that has a single one; so s is a power of its channels' measured ranges r,

    s = (r / R)^strength <= 1

where R is the largest of them, or the upper bound of a Clip that is part of f. In that case f is not homogeneous, but
as s >= r / R no value that was measured is cut off by it: channels are only ever enlarged, up to the bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from onnx_cbq.graph.layouts import spread
from onnx_cbq.graph.pairs import Pair, Reader
from onnx_cbq.model import Array, Model

# A range is taken as at least this share of the largest one; a channel that is always 0 stays as it is.
SMALLEST_RANGE = 2.0**-16


def factors(ranges: Array, strength: float, bound: float = math.inf) -> Array:
    """s for channels of these ranges, [channels] in (0, 1]."""
    largest = float(ranges.max(initial=0.0)) if math.isinf(bound) else bound
    shares = np.clip(np.where(ranges > 0, ranges, largest) / (largest or 1.0), SMALLEST_RANGE, 1.0)
    return np.asarray(shares**strength if largest else np.ones(len(ranges)), np.float64)


def scale_columns(reader: Reader, weight: Array, scales: Array) -> Array:
    """The weight W2 S of a layer that reads channels, in float64: what reads channel c is multiplied by scales[c]."""
    layer, per_input = reader.layer, spread(reader.axis, scales)
    if layer.operator != "Conv":
        return np.asarray(weight * np.expand_dims(per_input, layer.weight_axis))
    # [I] -> [g, 1, I/g] -> [g, O/g, I/g] -> [O, I/g, *1]
    groups, outputs = layer.groups, layer.channels
    grouped = per_input.reshape(groups, 1, -1).repeat(outputs // groups, axis=1)
    return np.asarray(weight * grouped.reshape(*weight.shape[:2], *(1,) * (weight.ndim - 2)))


def equalized(model: Model, scales: Mapping[Pair, Array]) -> Model:
    """`model` with the channels of every pair divided by its s [channels]. Rounded once, at the end."""
    constants: dict[str, Array] = {}

    def value(name: str) -> Array:
        return constants[name] if name in constants else model.weight(name).astype(np.float64)

    for pair, scale in scales.items():
        for name, axis in pair.maker.constants:
            constants[name] = _divided(value(name), axis, pair.channels, scale)
        for reader in pair.readers:
            name = reader.layer.weight
            constants[name] = scale_columns(reader, value(name), scale)
    return model.with_constants({name: array.astype(np.float32) for name, array in constants.items()})


def _divided(value: Array, axis: int, channels: tuple[int, int], scale: Array) -> Array:
    """Channels from start to stop along an axis divided by theirs."""
    all_scales = np.ones(value.shape[axis])
    all_scales[slice(*channels)] = scale
    return np.asarray(value / all_scales.reshape(-1, *(1,) * (value.ndim - 1 - axis)))
