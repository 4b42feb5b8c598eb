"""Signal and noise: how far tensors of a quantized file are from those of the float model."""

from __future__ import annotations

import math

import numpy as np

from onnx_cbq.model import Array
from onnx_cbq.targets.reading import Grid

# Ratios beyond are not told apart: what float32 leaves of a product that is computed in another order is no noise.
MOST_DB = 110.0
_FOUR_BITS = {"int4": (-8, 7), "uint4": (0, 15)}


class Noise:
    """Sums of squares over batches: of what was wanted, of what came, and of both."""

    def __init__(self) -> None:
        self._wanted = self._error = self._both = 0.0

    def add(self, wanted: Array, found: Array, factors: Array | None = None, axis: int = 1) -> None:
        """Take in a batch, of any shape that both have; what was found is divided by the factors of its channels."""
        expected = wanted.astype(np.float64)
        given = divided(found.reshape(wanted.shape), factors, axis).astype(np.float64)
        self._wanted += float(np.vdot(expected, expected))
        self._both += float(np.vdot(expected, given))
        self._error += float(np.square(given - expected).sum())

    @property
    def ratio(self) -> float | None:
        """Signal over noise in dB, 10 log10(sum y^2 / sum (y^ - y)^2), at most `MOST_DB` off 0; None without signal."""
        if not self._wanted:
            return None
        share = self._error / self._wanted
        if not math.isfinite(share):
            return -MOST_DB
        return MOST_DB if share == 0 else max(min(-10 * math.log10(share), MOST_DB), -MOST_DB)

    @property
    def gain(self) -> float | None:
        """How many times as large as wanted, by least squares: sum y^ y / sum y^2."""
        share = self._both / self._wanted if self._wanted else math.nan
        return share if math.isfinite(share) else None


def divided(values: Array, factors: Array | None, axis: int) -> Array:
    """Values by the factors of the channels, which lie along an axis."""
    return values if factors is None else values / _along(factors, axis, values.ndim)


def multiplied(values: Array, factors: Array | None, axis: int) -> Array:
    """Values times the factors of the channels, in their own type."""
    return values if factors is None else (values * _along(factors, axis, values.ndim)).astype(values.dtype)


def _along(factors: Array, axis: int, rank: int) -> Array:
    shape = [1] * rank
    shape[axis] = -1
    return factors.reshape(shape)


def limits(grid: Grid, largest: int) -> tuple[float, float] | None:
    """The least and the greatest number on a grid of one scale; None for one of several, or of no integers.

    `largest` is the greatest code as uint8, where a Clip holds codes below what their type has.
    """
    low, high = _codes(grid, largest)
    if grid.scale is None or grid.scale.size != 1 or low == high:
        return None
    scale, zero = float(grid.scale.reshape(-1)[0]), _zero(grid)
    return scale * (low - zero), scale * (high - zero)


def rounded(values: Array, grid: Grid, largest: int) -> Array:
    """Values on a grid: s (clip(round(x / s) + z, low, high) - z), of the same type; see `limits`."""
    low, high = _codes(grid, largest)
    assert grid.scale is not None
    scale, zero = grid.scale.reshape(-1)[0].astype(np.float32), _zero(grid)
    codes = np.clip(np.rint(values / scale) + zero, low, high)
    return np.asarray((codes - zero) * scale, values.dtype)


def _zero(grid: Grid) -> int:
    return 0 if grid.zero_point is None else int(grid.zero_point.reshape(-1)[0])


def _codes(grid: Grid, largest: int) -> tuple[int, int]:
    """The range of the codes; nothing for numbers that are no integers, as those of 8 bits with a point."""
    kind = grid.dtype or np.dtype(np.uint8)
    if kind.kind not in "iu":
        return _FOUR_BITS.get(str(kind), (0, 0))
    info = np.iinfo(str(kind))
    return int(info.min), int(info.min) + largest if kind.itemsize == 1 else int(info.max)
