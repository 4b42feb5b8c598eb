"""Static ranges for activations: a streaming histogram, and the range of least squared error.

The histogram has bins of width 2^k around 0. When a value falls outside, neighbouring bins are merged and k grows, so
it takes the same memory for any number of samples and needs no second pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from onnx_cbq.model import Array
from onnx_cbq.records import ActivationGrid

_LOG2_HALF = 12
_HALF = 1 << _LOG2_HALF
# The reciprocal of the narrowest bin is a float32.
_LOWEST_EXPONENT = -120
LEVELS = 256
# More values than this at once are thinned out evenly before they are counted; minimum and maximum see all of them.
LARGEST_COUNT = 1 << 20
# Ends of the range are tried at these shares of the largest value seen.
_SHARES = np.linspace(0.02, 1.0, 99)
# What "percentile" cuts off at either end.
_TAIL = 5e-5
_SWEEPS = 3


@dataclass(frozen=True)
class Histogram:
    """Bin i counts the values in [(i - 4096) width, (i - 4095) width), width = 2^exponent."""

    counts: Array
    exponent: int
    low: float
    high: float

    @staticmethod
    def empty() -> Histogram:
        """No values yet; the first ones that are not 0 set the width."""
        return Histogram(np.zeros(2 * _HALF, np.int64), _LOWEST_EXPONENT, math.inf, -math.inf)

    def add(self, values: Array) -> Histogram:
        """The histogram with `values` counted too. Cost: about 5 ns per value."""
        flat = values.reshape(-1)
        low, high = float(flat.min()), float(flat.max())
        # frexp: reach < 2^power, which is 4096 bins of width 2^(power - 12).
        reach = max(abs(low), abs(high))
        exponent = max(self.exponent, math.frexp(reach)[1] - _LOG2_HALF) if reach else self.exponent
        counts = self.counts
        for _ in range(exponent - self.exponent if counts.any() else 0):
            counts = _merge_pairs(counts)
        thin = flat[:: -(-len(flat) // LARGEST_COUNT)]
        bins = np.floor(thin * np.float32(2.0**-exponent)).astype(np.int32) + _HALF
        counts = counts + np.bincount(bins, minlength=2 * _HALF)
        return Histogram(counts, exponent, min(self.low, low), max(self.high, high))


def choose_grid(histogram: Histogram, bits: int = 8, criterion: str = "mse") -> ActivationGrid:
    """The grid of `bits` bits for what the histogram counted; 0 is always a level.

    The criterion "mse" takes the range of least squared error, "percentile" the middle 99.99 % of the values, "minmax"
    all of them. Values that are never negative get zero point 0. Cost: a few hundred passes over the bins.
    """
    used = np.flatnonzero(histogram.counts)
    if histogram.high <= 0 <= histogram.low or not used.size:
        return ActivationGrid(scale=1.0 / LEVELS, zero_point=0, bits=bits)
    counts = histogram.counts[used]
    centres = (used - _HALF + 0.5) * 2.0**histogram.exponent
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if criterion == "percentile":
        rank = np.cumsum(counts) / counts.sum()
        low = max(low, min(float(centres[np.searchsorted(rank, _TAIL)]), 0.0)) if low < 0 else 0.0
        high = min(high, max(float(centres[np.searchsorted(rank, 1 - _TAIL)]), 0.0))
    elif criterion == "mse":
        low, high = _least_error(counts, centres, (low, high), bits)
    return _grid(low, high, bits)


def _least_error(counts: Array, centres: Array, ends: tuple[float, float], bits: int) -> tuple[float, float]:
    """The range of least squared error within `ends`; the two ends move in turn."""
    low, high = ends
    best_low, best_high = low, high
    for _ in range(_SWEEPS):
        best_high = min((share * high for share in _SHARES), key=lambda h: _error(counts, centres, best_low, h, bits))
        if low == 0.0:
            break
        best_low = min((share * low for share in _SHARES), key=lambda lo: _error(counts, centres, lo, best_high, bits))
    return best_low, best_high


def _grid(low: float, high: float, bits: int) -> ActivationGrid:
    top = (1 << bits) - 1
    scale = max((high - low) / top, float(np.finfo(np.float32).smallest_normal))
    return ActivationGrid(float(np.float32(scale)), int(np.clip(round(-low / scale), 0, top)), bits)


def _error(counts: Array, centres: Array, low: float, high: float, bits: int) -> float:
    grid = _grid(low, high, bits)
    codes = np.clip(np.rint(centres / grid.scale) + grid.zero_point, 0, grid.top)
    difference = (codes - grid.zero_point) * grid.scale - centres
    return float(counts @ (difference * difference))


def _merge_pairs(counts: Array) -> Array:
    """Bins of twice the width around the same 0: [2n] -> [2n]."""
    merged = np.zeros_like(counts)
    quarter = len(counts) // 4
    merged[quarter : 3 * quarter] = counts.reshape(-1, 2).sum(axis=1)
    return merged
