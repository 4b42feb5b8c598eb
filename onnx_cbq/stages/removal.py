"""Remove what 0 bits leave of a channel: a constant, which the layers behind it can add to their biases.

A channel without weights is its bias, whatever the sample, and so is what comes of it behind operators that treat every
number or every channel by itself. How large that is, is read from the quantized model as it runs, so it has gone
through all the roundings of biases and activations. A layer that reads constants c_i adds to its bias

    float activations     sum_i w_oi c_i                  in float64, rounded once
    activations on grids  sum_i q_oi k_i, c_i = s_x k_i   multiples of the bias's scale s_x s_w: nothing is rounded

with w = s_w q summed over the kernel, and does without these inputs. Under zero padding only c_i = 0 will do.

Where inputs go, other weights become neighbours in 16-bit lanes (see `records.lanes`). A channel that would not fit
them any more is put on a scale that is coarser by what is missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from onnx_cbq.graph.normalise import TOLERANCE, outputs_of, relative_error
from onnx_cbq.graph.placement import Placement
from onnx_cbq.graph.remove.analyse import Found, analyse
from onnx_cbq.graph.remove.build import input_axis, inputs_first
from onnx_cbq.graph.remove.cut import cut
from onnx_cbq.graph.shapes import Example, Shapes
from onnx_cbq.model import Array
from onnx_cbq.quantize.weights import make_coarser
from onnx_cbq.records import (
    KERNELS,
    ActivationGrid,
    FileRules,
    KeptZero,
    Layer,
    LayerWeights,
    Removal,
    Use,
    Written,
)
from onnx_cbq.runtime import Optimization, Session
from onnx_cbq.storage.qdq import emit_seen
from onnx_cbq.storage.writer import bias_codes

# onnxruntime's kernels for convolutions take channels in blocks, and a slow way for other numbers (measured): integers
# in fours, floats in eights on AVX2 and in sixteens on AVX-512 (MLAS, NCHWc). The first that divides a layer's counts.
INTEGER_BLOCKS, FLOAT_BLOCKS = (4,), (16, 8)
# Pooling rounds the mean of equal numbers; anything beyond that is a difference.
_EQUAL = 1e-5
_LARGEST_INT32 = 2**31 - 1


@dataclass(frozen=True)
class Run:
    """How the model runs.

    Attributes:
        placement, grids: activations that are quantized, and how.
        shapes: of the tensors of the float model.
        example: a few samples.
        file: how nodes are written.
    """

    placement: Placement
    grids: Mapping[str, ActivationGrid]
    shapes: Shapes
    example: Example
    file: FileRules = KERNELS

    @property
    def optimization(self) -> Optimization:
        """How far onnxruntime optimizes what is compared.

        Sums of integers are the same in any order, so what will run can be compared. Kernels for float activations
        round them in blocks, in others once some are gone; the plain graph does not.
        """
        return "all" if self.grids else "off"

    def grid(self, use: Use) -> ActivationGrid | None:
        """That of what a layer reads, whose multiples its bias counts; None if either is float."""
        return self.grids.get(self.placement.grid_of(use.activation)) if self.file.bias == "int32" else None


def remove_channels(plain: Written, run: Run) -> tuple[Written, Removal]:
    """`plain` without the channels that its outputs do not need, checked on the example; unchanged if that fails."""
    macs = plain.layers.macs
    if not any(_empty(layer, plain.weights[layer.name]).any() for layer in plain.layers.products):
        return plain, Removal({}, (), (macs, macs))
    values = _constants(plain, run)
    found = analyse(plain, run.shapes, values, INTEGER_BLOCKS if run.grids else FLOAT_BLOCKS)
    removed = {
        layer.name: tuple(np.flatnonzero(~found.stays_of(layer)).tolist())
        for layer in plain.layers
        if not found.stays_of(layer).all()
    }
    if not removed:
        return plain, Removal({}, _kept_zero(plain, found), (macs, macs))
    smaller, refusal = _checked(plain, found, values, run)
    roomier = _with_room(plain, smaller, found)
    if roomier is not plain:
        plain = roomier
        smaller, refusal = _checked(plain, found, values, run)
    if refusal:
        zeros = Counter({layer.name: int((plain.weights[layer.name].bits == 0).sum()) for layer in plain.layers})
        stay = tuple(KeptZero(name, count, refusal) for name, count in zeros.items() if count)
        note = f"no channels were removed: {refusal}"
        return plain, Removal({}, stay, (macs, macs), (note,))
    return smaller, Removal(removed, _kept_zero(plain, found), (macs, smaller.layers.macs))


def _with_room(plain: Written, smaller: Written, found: Found) -> Written:
    """`plain` with coarser scales for those channels whose weights would not fit the lanes of the `smaller` model."""
    coarser = {}
    for layer in smaller.layers:
        lanes, cut_off = layer.lanes, smaller.weights[layer.name]
        sums = np.zeros(layer.channels) if lanes is None else lanes.sums(layer.rows(cut_off.codes))
        if lanes is not None and sums.max() > lanes.limit:
            whole = plain.layers.by_name[layer.name]
            missing = np.ones(whole.channels)
            missing[found.stays_of(whole)] = sums / lanes.limit
            coarser[layer.name] = make_coarser(whole, plain.weights[layer.name], np.maximum(missing, 1))
    return replace(plain, weights={**plain.weights, **coarser}) if coarser else plain


def _empty(layer: Layer, weights: LayerWeights) -> Array:
    """Channels without any code but 0, bool [channels]."""
    return np.asarray(~layer.rows(weights.codes).any(axis=1))


def _constants(plain: Written, run: Run) -> dict[str, Array]:
    """What each layer reads, by channel, where that is the same for all samples and positions, else nan."""
    seen = emit_seen(plain, run.placement, run.grids, run.file)
    read = {
        use.activation: input_axis(layer, len(run.shapes[use.activation]))
        for layer in plain.layers.products
        for use in layer.uses
    }
    names = {name: seen.name(name) for name in read}
    feeds = run.example.feeds
    measured = [name for name in dict.fromkeys(names.values()) if name not in feeds]
    found = Session(seen.model.with_graph(outputs=measured), run.optimization).run(feeds) if measured else {}
    return {name: _uniform({**found, **feeds}[names[name]], axis) for name, axis in read.items()}


def _uniform(value: Array, axis: int) -> Array:
    """The one value of each channel, nan where there are several: -> [channels]."""
    rows = np.moveaxis(value, axis, 0).reshape(value.shape[axis], -1)
    low, high = rows.min(axis=1), rows.max(axis=1)
    with np.errstate(invalid="ignore"):
        equal = high - low <= _EQUAL * np.maximum(np.abs(low), np.abs(high))
    return np.where(equal, rows[:, 0].astype(np.float64), np.nan)


def _checked(plain: Written, found: Found, values: Mapping[str, Array], run: Run) -> tuple[Written, str]:
    """The smaller model, and why it cannot be used, if so."""
    biases: dict[str, Array] = {}
    for layer in plain.layers.products:
        for use in layer.uses:
            stays = found.stays(use.activation)
            if stays.all():  # of axes that are not followed, too
                continue
            constants = np.where(stays, 0, np.nan_to_num(values[use.activation]))
            if layer.groups > 1 or use.bias is None or not constants.any():
                continue
            bias = _taken_up(layer, plain, use, constants, run.grid(use))
            if bias is None:
                return plain, f"the bias of layer {layer.name!r} would leave the range of int32"
            biases[use.bias] = bias
    smaller = cut(plain, found, biases)
    models = (emit_seen(version, run.placement, run.grids, run.file).model for version in (plain, smaller))
    before, after = (outputs_of(model, run.example, run.optimization) for model in models)
    error = relative_error(after, before)
    return smaller, "" if error <= TOLERANCE else f"it would change an output by {error:.1e} of its largest value"


def _taken_up(layer: Layer, plain: Written, use: Use, constants: Array, grid: ActivationGrid | None) -> Array | None:
    """The bias with what `constants` [inputs] add to it; with a grid, whole multiples of its scale, in float64.

    None if these do not fit into int32.
    """
    weights, bias = plain.weights[layer.name], plain.model.weight(use.bias or "")
    sums = inputs_first(layer, weights.codes).sum(axis=2, dtype=np.int64)
    if grid is None:
        return np.asarray(bias + weights.scale * (sums @ constants), bias.dtype)
    scale = weights.bias_scale(grid.scale)
    codes = bias_codes(bias, scale) + sums @ np.rint(constants / np.float32(grid.scale))
    return codes * scale if np.abs(codes).max() <= _LARGEST_INT32 else None


def _kept_zero(plain: Written, found: Found) -> tuple[KeptZero, ...]:
    """Channels of 0 bits that stay, by layer and reason."""
    counts: Counter[tuple[str, str]] = Counter()
    for layer in plain.layers:
        stays = found.stays_of(layer)
        for channel in np.flatnonzero((plain.weights[layer.name].bits == 0) & stays).tolist():
            counts[layer.name, found.reason_of(layer, channel)] += 1
    return tuple(KeptZero(name, count, reason) for (name, reason), count in counts.items())
