"""Integer grids for the weights of one channel, and the scale that fits them best.

A channel of b bits is int8 codes times one scale, zero point 0, on one of two grids:

    mid-tread   codes -q .. q, q = 2^(b-1) - 1                has a zero, 2^b - 1 levels   b = 2 .. 8
    mid-rise    odd codes -(2^b - 1) .. 2^b - 1               no zero, all 2^b levels      b = 1 .. 7

The scale of a mid-rise grid is half the distance of its levels, so both are plain DequantizeLinear. A channel of 0 bits
has the code 0 everywhere.

Where weights meet in 16-bit lanes (see `records.lanes`), codes up to 64 always fit. So only 8 bits are held within
bounds there, and 7 bits have the mid-tread grid alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnx_cbq.model import Array
from onnx_cbq.quantize.promising import promising
from onnx_cbq.records import FREE, UNIFORM, Lanes, WeightGrid, WeightRules, largest_code
from onnx_cbq.settings import MOST_BITS
from onnx_cbq.system.workers import in_threads

# A scale is tried at these shares of the one that just reaches the largest weight; few bits want to clip far.
_RATIOS = np.linspace(0.15, 1.0, 35)
_FINE_RATIOS = np.linspace(0.8, 1.0, 9)
_FINE_BITS = 6
# Where pairs of weights are held within bounds, the scale that leaves all of them as they are may be twice that.
_PAIR_RATIOS = np.linspace(0.8, 2.0, 25)
_REFITS = 2
# Powers of two that are tried, from the one that clips nothing downwards.
_EXPONENTS = 5
# A row that stays below this counts as zeros: its scale would vanish in float32.
_SMALLEST = np.float32(1e-30)
_ONE = np.ones(1, np.float32)
# Rows are rounded in blocks of so many weights: what is made of one on the way stays in the processor's cache.
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Channels:
    """Quantized rows: value = f(codes) * scale, f as the grid says.

    Attributes:
        codes: int8 [channels, weights per channel]; uint8 where they are positions in a table.
        scale: float32 [channels], above 0.
        bits: int8 [channels].
        grid: what the codes stand for.
    """

    codes: Array
    scale: Array
    bits: Array
    grid: WeightGrid = UNIFORM

    @property
    def values(self) -> Array:
        """What the codes stand for, float32 [channels, weights per channel]."""
        return np.asarray(self.grid.levels(self.codes) * self.scale[:, None])

    def some(self, rows: slice) -> Channels:
        """A few of the rows."""
        return Channels(self.codes[rows], self.scale[rows], self.bits[rows], self.grid.kept(rows))


def quantize_rows(rows: Array, bits: Array, rules: WeightRules = FREE, lanes: Lanes | None = None) -> Channels:
    """Round each row to `bits[row]` bits, on the grid and with the scale of least squared error that `rules` allow.

    A row of zeros that would get 1 bit, where there is no zero, gets 0 bits. Cost: about 15 passes over the weights of
    long rows, 80 over those of short ones, on all cores.
    """
    blocks = [slice(None)] if rules.per_tensor else row_blocks(rows.shape)
    codes, scale = np.empty(rows.shape, np.int8), np.empty(len(rows), np.float32)
    found = np.empty(len(rows), np.int8)
    quantized = in_threads(lambda block: _quantize_block(rows[block], bits[block], rules, lanes), blocks)
    for block, part in zip(blocks, quantized, strict=True):
        codes[block], scale[block], found[block] = part
    return Channels(codes, scale, found)


def row_blocks(shape: tuple[int, ...]) -> list[slice]:
    """The rows of a matrix of that shape, a few at a time."""
    size = max(_BLOCK // max(shape[1], 1), 1)
    return [slice(start, start + size) for start in range(0, shape[0], size)]


def _quantize_block(rows: Array, bits: Array, rules: WeightRules, lanes: Lanes | None) -> tuple[Array, Array, Array]:
    """Codes, scale and bits of each row."""
    rows = np.where(np.abs(rows).max(axis=1, keepdims=True) < _SMALLEST, 0, rows)
    bits = np.where((bits == 1) & ~rows.any(axis=1), 0, bits)
    codes = np.zeros(rows.shape, np.int8)
    scale = np.ones(len(rows), np.float32)
    for width in np.unique(bits):
        chosen = np.flatnonzero(bits == width)
        if width > 0:
            codes[chosen], scale[chosen] = _best_of_both(rows[chosen], int(width), rules, lanes)
    return codes, scale, bits


def round_to_grid(rows: Array, scale: Array, bits: int, *, mid_rise: bool, lanes: Lanes | None = None) -> Array:
    """Codes of the nearest levels, int8, for rows [channels, n] and scales [channels]; with `lanes` they fit these."""
    spacings = rows / scale[:, None]
    top = largest_code(bits, mid_rise=mid_rise)
    if mid_rise:
        return np.clip(2.0 * np.floor(spacings / 2.0) + 1.0, -top, top).astype(np.int8)
    if lanes is not None and 2 * top > lanes.limit:
        return lanes.nearest(spacings).astype(np.int8)
    return np.clip(np.rint(spacings), -top, top).astype(np.int8)


def has_grid(bits: Array, *, mid_rise: bool, lanes: Lanes | None = None) -> Array:
    """Whether there is a grid of that kind, by width; 0 bits counts as a mid-tread grid with one level."""
    widest = MOST_BITS - 1 if lanes is None else MOST_BITS - 2
    return (bits > 0) & (bits <= widest) if mid_rise else bits != 1


def is_mid_rise(codes: Array, bits: Array) -> Array:
    """Which rows of codes [channels, n] lie on a mid-rise grid of their bits, [channels]."""
    return np.asarray((codes % 2 != 0).all(axis=1) & (bits > 0) & (bits < MOST_BITS))


@dataclass(frozen=True)
class Grid:
    """Levels of many rows at once: codes offset + k stride up to +-top, times scale; each field as the rows, [...]."""

    scale: Array
    top: Array
    stride: Array
    offset: Array

    @staticmethod
    def of(scale: Array, bits: Array, mid_rise: Array) -> Grid:
        """The grids of `bits` bits; all three arrays have the shape of the rows."""
        tread = np.left_shift(1, np.maximum(bits.astype(np.int32) - 1, 0)) - 1
        rise = np.left_shift(1, bits.astype(np.int32)) - 1
        top = np.where(mid_rise, rise, tread).astype(np.float32)
        return Grid(scale, top, np.where(mid_rise, 2, 1).astype(np.float32), np.asarray(mid_rise, np.float32))

    def box(self, levels: Array, lanes: Lanes | None, *, positive: bool) -> tuple[Array, Array]:
        """Bounds for the codes of rows near `levels` [..., n]: any within fit the lanes, and are not below 0."""
        top = np.broadcast_to(self.top[..., None], levels.shape)
        low, high = -top, top
        if lanes is not None:
            bounded = (2 * self.top > lanes.limit)[..., None]
            fitting = lanes.box(levels / self.scale[..., None])
            low, high = (np.where(bounded, near, end) for near, end in zip(fitting, (low, high), strict=True))
        # The lowest code above 0 is 1 where there is no 0.
        return np.minimum(np.maximum(low, self.offset[..., None]), high) if positive else low, high

    def nearest(self, values: Array, _weight: Array | None = None, bounds: tuple[Array, Array] | None = None) -> Array:
        """The nearest level of each value, whatever its error counts; one value per row, [...]; bounds are codes."""
        codes = self.stride * np.rint((values / self.scale - self.offset) / self.stride) + self.offset
        low, high = bounds or (-self.top, self.top)
        return np.asarray(np.clip(codes, low, high) * self.scale)


def search_scale(
    rows: Array,
    weights: Array | None,
    bits: int,
    *,
    mid_rise: bool,
    rules: WeightRules = FREE,
    lanes: Lanes | None = None,
) -> tuple[Array, Array, Array]:
    """Codes, scale and error of each row on one grid: the scale of least weighted squared error, rounding to nearest.

    Args:
        rows: float32 [channels, n].
        weights: what a squared error counts, broadcasts to [channels, n]; None where all count alike.
        bits: the width of all rows.
        mid_rise: which grid.
        rules: of scales.
        lanes: which weights meet, where that matters.
    """
    together = _sum_of_all if rules.per_tensor else _each
    top = largest_code(bits, mid_rise=mid_rise)
    bounded = lanes is not None and 2 * top > lanes.limit
    reach = np.abs(rows).max(axis=1) / top
    reach = np.full_like(reach, reach.max(initial=0)) if rules.per_tensor else reach
    reach = np.where(reach > 0, reach, 1.0).astype(np.float32)
    alike, weights = weights is None, np.broadcast_to(_ONE if weights is None else weights, rows.shape)
    best_error, best_scale = np.full(len(rows), np.inf), reach

    def attempt(scale: Array) -> None:
        nonlocal best_error, best_scale
        codes = round_to_grid(rows, scale, bits, mid_rise=mid_rise, lanes=lanes)
        error = _squared_error(rows, weights, codes, scale)
        better = together(error) < together(best_error)
        best_error, best_scale = np.where(better, error, best_error), np.where(better, scale, best_scale)

    scales = _tried(reach, bits, rules, bounded=bounded)
    if alike and not bounded and not rules.per_tensor:
        best_error, best_scale = _best_promising(rows, reach, scales, bits, mid_rise=mid_rise)
    else:
        for scale in scales:
            attempt(scale)
    if rules.power_of_two:
        return round_to_grid(rows, best_scale, bits, mid_rise=mid_rise, lanes=lanes), best_scale, best_error
    for _ in range(_REFITS):
        # With the codes fixed, the best scale is <w, c> / <c, c>; with that scale the codes may change again.
        codes = round_to_grid(rows, best_scale, bits, mid_rise=mid_rise, lanes=lanes).astype(np.float32)
        squares = together(np.einsum("ck,ck,ck->c", weights, codes, codes))
        scale = together(np.einsum("ck,ck,ck->c", weights, rows, codes)) / np.maximum(squares, 1e-30)
        attempt(np.where(scale > 0, scale, best_scale).astype(np.float32))
    return round_to_grid(rows, best_scale, bits, mid_rise=mid_rise, lanes=lanes), best_scale, best_error


def _tried(reach: Array, bits: int, rules: WeightRules, *, bounded: bool) -> Array:
    """The scales that are tried for each row, in order, float32 [scales, rows]; `reach` clips nothing."""
    if rules.power_of_two:
        exponents = np.ceil(np.log2(reach)) - np.arange(_EXPONENTS, dtype=np.float32)[:, None]
        return np.asarray(np.exp2(exponents).astype(np.float32))
    ratios = _PAIR_RATIOS if bounded else _FINE_RATIOS if bits >= _FINE_BITS else _RATIOS
    return np.asarray(reach * ratios.astype(np.float32)[:, None])


def _best_promising(rows: Array, reach: Array, scales: Array, bits: int, *, mid_rise: bool) -> tuple[Array, Array]:
    """Error and scale of each row, the first of least error, `reach` where none has one; the others are not tried."""
    best_error, best_scale = np.full(len(rows), np.inf), reach.copy()
    waiting = promising(rows, scales, bits, mid_rise=mid_rise)
    while (among := np.flatnonzero(waiting.any(axis=0))).size:
        turn = waiting[:, among].argmax(axis=0)
        waiting[turn, among] = False
        scale, part = scales[turn, among], rows if among.size == len(rows) else rows[among]
        codes = round_to_grid(part, scale, bits, mid_rise=mid_rise)
        error = _squared_error(part, np.broadcast_to(_ONE, part.shape), codes, scale)
        better = error < best_error[among]
        best_error[among[better]], best_scale[among[better]] = error[better], scale[better]
    return best_error, best_scale


def _best_of_both(rows: Array, bits: int, rules: WeightRules, lanes: Lanes | None) -> tuple[Array, Array]:
    kinds = [kind for kind in (False, True) if has_grid(np.array(bits), mid_rise=kind, lanes=lanes)]
    if rules.per_tensor and bits > 1:
        kinds = kinds[:1]  # one scale means one grid
    results = [search_scale(rows, None, bits, mid_rise=kind, rules=rules, lanes=lanes) for kind in kinds]
    best = np.argmin([error for _, _, error in results], axis=0)
    codes = np.choose(best[:, None], [codes for codes, _, _ in results])
    return codes, np.choose(best, [scale for _, scale, _ in results])


def _each(values: Array) -> Array:
    return values


def _sum_of_all(values: Array) -> Array:
    return np.full_like(values, values.sum())


def _squared_error(rows: Array, weights: Array, codes: Array, scale: Array) -> Array:
    difference = codes * scale[:, None] - rows
    return np.asarray(np.einsum("ck,ck,ck->c", weights, difference, difference))
