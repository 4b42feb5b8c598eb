"""From a plan to the integer weights of every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from onnx_cbq.model import Array
from onnx_cbq.quantize.digits import DIGITS, few_digits
from onnx_cbq.quantize.grid import Channels, quantize_rows
from onnx_cbq.records import Layer, LayerWeights, Shared
from onnx_cbq.settings import MOST_BITS

# An int32 bias stays below this, so that the sum of products on top of it has room.
LARGEST_BIAS = 2.0**30


def quantize_layer(layer: Layer, weight: Array, bits: Array) -> LayerWeights:
    """Round a layer's weight to the nearest levels, each channel to its bits."""
    return as_weights(layer, quantize_rows(layer.rows(weight), bits, layer.rules, layer.lanes))


def distortions(layer: Layer, weight: Array) -> Array:
    """Squared error of each channel's weights at each width, relative to the layer's power, [channels, widths]."""
    rows = layer.rows(weight)
    power = float(np.square(rows, dtype=np.float64).sum()) or 1.0
    found = np.empty((layer.channels, MOST_BITS + 1))
    for bits in range(MOST_BITS + 1):
        values = quantize_rows(rows, np.full(layer.channels, bits), layer.rules, layer.lanes).values
        found[:, bits] = np.square(values - rows, dtype=np.float64).sum(axis=1) / power
    return found


def as_weights(layer: Layer, channels: Channels) -> LayerWeights:
    """Quantized rows as the weights of a layer."""
    return LayerWeights(layer.unrows(channels.codes), channels.scale, channels.bits, channels.grid)


def make_coarser(layer: Layer, weights: LayerWeights, factors: Array) -> LayerWeights:
    """Weights on scales that are at least so many times as coarse, factors at least 1, [channels].

    Pairs of codes then add up to less by as much, whichever they are: codes are cut, not rounded.
    """
    rows = layer.rows(weights.codes)
    factors = np.full_like(factors, factors.max()) if layer.rules.per_tensor else factors
    factors = np.exp2(np.ceil(np.log2(factors))) if layer.rules.power_of_two else factors
    codes = np.where(factors[:, None] > 1, np.trunc(rows / factors[:, None]), rows).astype(np.int8)
    return replace(weights, codes=layer.unrows(codes), scale=np.asarray(weights.scale * factors, np.float32))


def _coarser_table(weights: LayerWeights, table: Array, scale: Array, factor: float) -> LayerWeights:
    """Weights that share values at `factor` times their scale, all channels alike: values that meet become one."""
    moved = np.rint(table / factor).astype(np.int8)
    codes = moved[np.searchsorted(table, weights.codes)]
    coarse = np.maximum(weights.scale * np.float32(factor), scale)
    return replace(weights, codes=codes, scale=coarse, grid=Shared(np.unique(moved)))


def _needed(bias: Array, activation_scale: float, weights: LayerWeights) -> Array:
    """The finest scales that a bias allows, float32 [channels]."""
    # A transposed convolution of groups has a bias for the channel of each group, and one scale for all of these.
    largest = np.abs(bias.reshape(-1, min(bias.size, weights.scale.size))).max(axis=0)
    reach = min(activation_scale * LARGEST_BIAS, float(np.finfo(np.float32).max))
    needed = np.broadcast_to(largest, weights.scale.shape) / reach
    return np.maximum(needed, np.finfo(np.float32).smallest_normal).astype(np.float32)


def leave_room_for_biases(
    layer: Layer, weights: LayerWeights, biases: Sequence[tuple[Array, float]], *, short: bool = False
) -> LayerWeights:
    """Coarser scales for channels whose bias would not fit into int32 at scale s_x s_w; most layers have none.

    That happens where a channel's weights are next to nothing beside its bias; a channel of 0 bits takes the finest
    scale that its biases allow: with each the scale s_x of what its use of the layer reads. Where numbers are to be
    `short`, scales have few digits, and such a channel keeps what it has if that is coarser: its biases count in it.
    """
    needed = np.max([_needed(bias, scale, weights) for bias, scale in biases], axis=0)
    if short:
        needed = few_digits(needed, DIGITS, up=True)
    if layer.rules.per_tensor:
        return make_coarser(layer, weights, np.maximum(needed / weights.scale, 1))
    rows = layer.rows(weights.codes)
    empty = ~rows.any(axis=1)
    coarse = (needed > weights.scale) & ~empty
    finest = np.maximum(needed, weights.scale) if short else needed
    scale = np.where(empty | coarse, finest, weights.scale)
    if not coarse.any():
        return replace(weights, scale=scale)
    if isinstance(weights.grid, Shared):
        return _coarser_table(weights, weights.grid.table, scale, float((needed / weights.scale)[coarse].max()))
    # On the coarser scale a channel is rounded to the mid-tread grid of its width; 1 bit has none and becomes 0 bits.
    bits = np.where(coarse & (weights.bits == 1), 0, weights.bits).astype(np.int8)
    top = np.left_shift(1, np.maximum(bits.astype(np.int32) - 1, 0))[:, None] - 1
    rounded = np.clip(np.rint(rows * (weights.scale / scale)[:, None]), -top, top).astype(np.int8)
    codes = np.where(coarse[:, None], rounded, rows)
    return LayerWeights(layer.unrows(codes), scale, bits)
