"""Static ranges for activations: a streaming histogram, and the range of least squared error.

The histogram has bins of width 2^k around 0. When a value falls outside, neighbouring bins are merged and k grows, so
it takes the same memory for any number of samples and needs no second pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnx_cbq.model import Array
from onnx_cbq.records import UNSIGNED, ActivationGrid, ActivationRules

Response = Callable[[Array], Array]
_LOG2_HALF = 12
_HALF = 1 << _LOG2_HALF
# The reciprocal of the narrowest bin is a float32.
_LOWEST_EXPONENT = -120
LEVELS = 256
# More values than this at once are thinned out evenly before they are counted; minimum and maximum see all of them.
LARGEST_COUNT = 1 << 20
# Ends of the range are tried at these shares of the largest value seen.
_SHARES = np.linspace(0.02, 1.0, 99)
# What "percentile" cuts off at either end; of fewer values one, but of these none.
_TAIL, _FEWEST_CUT = 5e-5, 1000
_SWEEPS = 3
# Squared errors that differ by less than this share of the values' squares are alike.
_ALIKE = 1e-13
_SMALLEST = float(np.finfo(np.float32).smallest_normal)


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
        """The histogram with `values` counted too, but for infinities and NaN. Cost: about 5 ns per value."""
        flat = values.reshape(-1)
        with np.errstate(invalid="ignore", over="ignore"):
            finite = bool(np.isfinite(flat.sum(dtype=np.float64)))
        flat = flat if finite else flat[np.isfinite(flat)]
        if not flat.size:
            return self
        low, high = float(flat.min()), float(flat.max())
        # frexp: reach < 2^power, which is 4096 bins of width 2^(power - 12).
        reach = max(abs(low), abs(high))
        exponent = max(self.exponent, math.frexp(reach)[1] - _LOG2_HALF) if reach else self.exponent
        counts = self._widened(exponent)
        thin = flat[:: -(-len(flat) // LARGEST_COUNT)]
        bins = np.floor(thin * np.float32(2.0**-exponent)).astype(np.int32) + _HALF
        counts = counts + np.bincount(bins, minlength=2 * _HALF)
        return Histogram(counts, exponent, min(self.low, low), max(self.high, high))

    def joined(self, other: Histogram) -> Histogram:
        """What both counted: the same as if one of them had counted everything, in any order."""
        exponent = max(self.exponent, other.exponent)
        counts = self._widened(exponent) + other._widened(exponent)
        return Histogram(counts, exponent, min(self.low, other.low), max(self.high, other.high))

    def _widened(self, exponent: int) -> Array:
        counts = self.counts
        for _ in range(exponent - self.exponent if counts.any() else 0):
            counts = _merge_pairs(counts)
        return counts

    def centres(self, bins: Array) -> Array:
        """The values in the middle of bins, by their positions in `counts`."""
        return np.asarray((bins - _HALF + 0.5) * 2.0**self.exponent)


def choose_grid(
    histogram: Histogram,
    bits: int = 8,
    criterion: str = "mse",
    rules: ActivationRules = UNSIGNED,
    response: Response | None = None,
) -> ActivationGrid:
    """The grid of `bits` bits for what the histogram counted, within the rules; 0 is always a level.

    The criterion is one of `RANGES`; squared errors are those of `response`, what is made of the values ([n] -> [n]).
    Values that are never negative get the lowest code as zero point, unless it must be 0. Cost: a few milliseconds.
    """
    make = _Maker(bits, rules)
    used = np.flatnonzero(histogram.counts)
    if histogram.high <= 0 <= histogram.low or not used.size:
        return make(0.0, make.top / LEVELS)
    counts = histogram.counts[used]
    centres = histogram.centres(used)
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    seen = _Seen(counts, centres, _finite(response, centres) or _unchanged)
    return make(*RANGES[criterion](seen, (low, high), make))


def relative_error(histogram: Histogram, grid: ActivationGrid, response: Response | None = None) -> float:
    """Squared error of a grid for what the histogram counted, over the sum of the squares; 0 where all of these are 0.

    Both are those of `response`, as in `choose_grid`.
    """
    used = np.flatnonzero(histogram.counts)
    centres = histogram.centres(used)
    errors = _Errors.of(_Seen(histogram.counts[used], centres, _finite(response, centres) or _unchanged))
    return float(max(errors.of_grids([grid])[0], 0.0)) / errors.power if errors.power else 0.0


def join_grids(grids: Sequence[ActivationGrid], rules: ActivationRules = UNSIGNED) -> ActivationGrid:
    """One grid that reaches as far as all of them do."""
    lows, highs = zip(*(grid.ends for grid in grids), strict=True)
    widest = max(grids, key=lambda grid: grid.scale)
    return widest if rules.symmetric else _Maker(widest.bits, rules)(min(lows), max(highs))


@dataclass(frozen=True)
class _Maker:
    """Makes grids from the ends of their range."""

    bits: int
    rules: ActivationRules

    @property
    def top(self) -> int:
        """The number of steps above 0 of a grid whose range begins at 0."""
        return (1 << (self.bits - self.rules.symmetric)) - 1

    def __call__(self, low: float, high: float) -> ActivationGrid:
        rules = self.rules
        high = max(high, low + rules.least_range)
        reach = max(-low, high) if rules.symmetric else high - low
        scale = max(reach / self.top, _SMALLEST)
        scale = 2.0 ** math.ceil(math.log2(scale)) if rules.power_of_two else float(np.float32(scale))
        grid = ActivationGrid(scale, 0, self.bits, rules.signed)
        if rules.symmetric:
            return grid
        return replace(grid, zero_point=max(grid.bottom, min(grid.bottom + round(-low / scale), grid.top)))


@dataclass(frozen=True)
class _Seen:
    """Values that were counted, and what is made of them.

    Attributes:
        counts, centres: of the bins, ascending: [bins].
        response: values -> what is made of each.
    """

    counts: Array
    centres: Array
    response: Response


@dataclass(frozen=True)
class _Errors:
    """Squared errors of grids for counted values: sum c (f(v) - f(x))^2 = sum c f(x)^2 + f(v) (f(v) n - 2 s).

    f is the response. Of the values x that are nearest to a level v only their number n and the sum s of their f(x) are
    needed, which are differences of running sums.

    Attributes:
        seen: the values x, in bins.
        number, total: n and s of the values in front of each bin, and behind the last: [bins + 1].
        power: sum of the squares of all f(x).
    """

    seen: _Seen
    number: Array
    total: Array
    power: float

    @staticmethod
    def of(seen: _Seen) -> _Errors:
        becomes = seen.response(seen.centres)
        number, total = (np.concatenate([[0.0], np.cumsum(part)]) for part in (seen.counts, seen.counts * becomes))
        return _Errors(seen, number, total, float(seen.counts @ np.square(becomes)))

    def least(self, grids: Sequence[ActivationGrid]) -> int:
        """Which of grids of the same codes has the least; the first of those that differ by rounding alone."""
        return int(np.argmin(np.rint(self.of_grids(grids) / (_ALIKE * self.power))))

    def of_grids(self, grids: Sequence[ActivationGrid]) -> Array:
        """Those of grids of the same codes, [grids]."""
        scale = np.array([[grid.scale] for grid in grids])
        codes = np.arange(grids[0].bottom, grids[0].top + 1)
        levels = (codes - np.array([[grid.zero_point] for grid in grids])) * scale  # [grids, levels]
        behind = np.searchsorted(self.seen.centres, levels[:, :-1] + scale / 2)
        at = np.pad(behind, ((0, 0), (1, 1)), constant_values=((0, 0), (0, len(self.seen.centres))))
        number, total = np.diff(self.number[at]), np.diff(self.total[at])
        becomes = self.seen.response(levels)
        return np.asarray(self.power + (becomes * (becomes * number - 2 * total)).sum(axis=1))


def _least_error(seen: _Seen, ends: tuple[float, float], make: _Maker) -> tuple[float, float]:
    """The range of least squared error within `ends`; the two ends move in turn, or together if 0 is in the middle."""
    errors = _Errors.of(seen)
    if not errors.power:
        return ends

    def best(ranges: Sequence[tuple[float, float]]) -> tuple[float, float]:
        return ranges[errors.least([make(*both) for both in ranges])]

    low, high = ends
    if make.rules.symmetric:
        return best([(share * low, share * high) for share in _SHARES])
    found = low, high
    for _ in range(_SWEEPS):
        before = found
        found = best([(found[0], share * high) for share in _SHARES])
        if low == 0.0:
            break
        found = best([(share * low, found[1]) for share in _SHARES])
        if found == before:
            break
    return found


def _middle(seen: _Seen, ends: tuple[float, float], _: _Maker) -> tuple[float, float]:
    """The middle 99.99 % of the values; of a few thousand all but one at either end."""
    low, high = ends
    centres, rank, total = seen.centres, np.cumsum(seen.counts), int(seen.counts.sum())
    cut = max(int(_TAIL * total), int(total >= _FEWEST_CUT))
    low = max(low, min(float(centres[np.searchsorted(rank, cut, side="right")]), 0.0)) if low < 0 else 0.0
    return low, min(high, max(float(centres[np.searchsorted(rank, total - cut)]), 0.0))


def _all(_seen: _Seen, ends: tuple[float, float], _: _Maker) -> tuple[float, float]:
    """All values."""
    return ends


# How the range of a grid is found within the ends of what was seen.
RANGES: Mapping[str, Callable[[_Seen, tuple[float, float], _Maker], tuple[float, float]]] = {
    "mse": _least_error,
    "percentile": _middle,
    "minmax": _all,
}


def _unchanged(values: Array) -> Array:
    return values


def _finite(response: Response | None, centres: Array) -> Response | None:
    """A response whose values can be summed, else None: the squares of exp(x) may be infinite."""
    if response is None:
        return None
    with np.errstate(over="ignore"):
        return response if np.isfinite(np.square(response(centres))).all() else None


def _merge_pairs(counts: Array) -> Array:
    """Bins of twice the width around the same 0: [2n] -> [2n]."""
    merged = np.zeros_like(counts)
    quarter = len(counts) // 4
    merged[quarter : 3 * quarter] = counts.reshape(-1, 2).sum(axis=1)
    return merged
