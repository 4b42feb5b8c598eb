"""Which scales can be a row's best, found without rounding it to each of them.

A row is sorted by size once. The error of any scale then follows from running sums at the middles of its levels: where
code c begins there, sum (|w| - c s)^2 = sum w^2 - 2 s sum c |w| + s^2 sum c^2. That is another rounding of the same sum
than float32 gives weight by weight, so a scale is ruled out only where no rounding could make it the best: the choice
among the others is left to the sum in float32, and comes out to the last bit as if every scale had been tried.
"""

from __future__ import annotations

import numpy as np

from onnx_cbq.model import Array
from onnx_cbq.records import largest_code

# A shorter row is rounded to every scale in less time than it takes to rule some out.
LEAST_WEIGHTS = 512
# Largest weights between which no square leaves the range of float32.
_SIZES = (1e-12, 1e12)
_HALF, _DOUBLE_HALF = 2.0**-24, 2.0**-53


def promising(rows: Array, scales: Array, bits: int, *, mid_rise: bool) -> Array:
    """Whether a scale can have the least squared error of its row, bool [scales, rows].

    Args:
        rows: float32 [rows, n], without NaN or infinity.
        scales: float32 [scales, rows], above 0.
        bits: the width of all rows, 1 to 8.
        mid_rise: which grid.
    """
    count = rows.shape[1]
    if count < LEAST_WEIGHTS or len(scales) < 2:
        return np.ones(scales.shape, bool)
    sizes = np.sort(np.abs(rows), axis=1)
    sums = np.zeros((len(rows), count + 1))
    np.cumsum(sizes, axis=1, dtype=np.float64, out=sums[:, 1:])
    power = np.einsum("rk,rk->r", sizes, sizes, dtype=np.float64)
    error = _errors(sizes, sums, power, scales.T.astype(np.float64), _Levels.of(bits, mid_rise=mid_rise))
    low, high = _bounds(error, power[:, None], count)
    usual = (sizes[:, -1] > _SIZES[0]) & (sizes[:, -1] < _SIZES[1])
    return np.asarray((low <= high.min(axis=1, keepdims=True)) | ~usual[:, None]).T


class _Levels:
    """The levels of a grid above 0: the first code, and at each middle where the next begins what c and c^2 rise by."""

    def __init__(self, first: int, middles: Array, rise: int) -> None:
        codes = first + rise * np.arange(len(middles) + 1)
        self.first, self.middles, self.rise = float(first), middles, float(rise)
        self.squares = np.diff(codes.astype(np.float64) ** 2)

    @staticmethod
    def of(bits: int, *, mid_rise: bool) -> _Levels:
        top = largest_code(bits, mid_rise=mid_rise)
        if mid_rise:
            return _Levels(1, np.arange(2.0, top, 2), 2)
        return _Levels(0, np.arange(top) + 0.5, 1)


def _errors(sizes: Array, sums: Array, power: Array, scales: Array, levels: _Levels) -> Array:
    """Squared error of each row [rows, n], sorted, at each of its scales, [rows, scales]."""
    rows, count = sizes.shape
    total = sums[:, -1:]
    error = power[:, None] - 2 * levels.first * scales * total + levels.first**2 * scales**2 * count
    if not len(levels.middles):
        return np.asarray(error)
    edges = (scales[:, :, None] * levels.middles).astype(np.float32).reshape(rows, -1)
    below = np.stack([np.searchsorted(row, edge) for row, edge in zip(sizes, edges, strict=True)])
    beyond = (total - np.take_along_axis(sums, below, axis=1)).reshape(*scales.shape, -1).sum(axis=2)
    squares = (count - below).reshape(*scales.shape, -1) @ levels.squares
    return np.asarray(error - 2 * levels.rise * scales * beyond + scales**2 * squares)


def _bounds(error: Array, power: Array, count: int) -> tuple[Array, Array]:
    """What a sum of float32 squares, one by one, can come out at where the error is `error`.

    Every difference is off by at most a few roundings of itself and of the weight, every sum by one of itself; the
    error here by as many of float64 as there are weights, of all that was added up.
    """
    doubt = 32 * count * _DOUBLE_HALF * (power + np.abs(error))
    slack = 16 * _HALF * np.sqrt(power)
    shares = 16 * _HALF, 2 * (count + 16) * _HALF
    low = np.maximum(np.sqrt(np.maximum(error - doubt, 0)) * (1 - shares[0]) - slack, 0) ** 2 * max(1 - shares[1], 0)
    high = (np.sqrt(np.maximum(error + doubt, 0)) * (1 + shares[0]) + slack) ** 2 * (1 + shares[1])
    return low, high
