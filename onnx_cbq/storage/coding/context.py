"""What a code is expected to be, from the codes before it in the same kernel: integers only.

A weight [channels, inputs, *kernel] is coded position by position of the kernel, all channels and inputs at once. For
position k with earlier positions j (at most 8, the nearest):

    centre     c = sum_j a[k, j] x[j] / 16                          x: the code less the middle of its group's grid
    usual      u = mean |x| of the channel * mean |x| of the input  over all positions before k; the latter relative
    magnitude  m = (sum_j |x[j]| + 8 u) / (n + 8)                   n: how many j
    sigma      log2 s = (log2 m) / 2 + s[k] + s_group               in 1/8 octave

Neighbours in a kernel of a trained filter resemble each other, which is worth 8 % on ResNet-20; the magnitudes, 1 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from onnx_cbq.model import Array
from onnx_cbq.storage.coding.density import END, LARGEST_MAGNITUDE, SIGMAS, UNIT, logarithms

NEIGHBOURS = 8
CELL = 16
_LARGEST_COUNT = (1 << 16) - 1
TREAD, RISE, RANGE = 0, 1, 2
LARGEST_CODE = 255  # of uint8; those of int8 are smaller
FRACTION = 16  # of a coefficient
# How many codes the expectation from elsewhere counts for.
_PRIOR = 8
_CHANNEL_PRIOR = 32
_INPUT_PRIOR = 2 << 8
_LARGEST_RATIO = 64  # of an input's magnitude to the mean
_SIXTEENTHS = 16  # magnitudes are in 1/16 of a code
# A kernel of more positions is taken for a row of inputs, as are kernels too few to learn anything from.
_MOST_POSITIONS = 64
_FEWEST_KERNELS = 256


@dataclass(frozen=True)
class Group:
    """Channels of one width on one kind of grid: code = low + stride * symbol, symbol 0 .. count - 1.

    Attributes:
        width: bits, as in the plan.
        kind: TREAD, RISE, or RANGE for whatever lies between two codes.
        low: the smallest code.
        count: how many there are.
        middle: of the distribution.
        magnitude: mean distance from the middle, in 1/16.
        sigma: added to the index of a standard deviation.
        shape: of the distribution.
        counts: how often each code occurs, up to 65,535, where that says more than a distribution; else empty.
    """

    width: int
    kind: int
    low: int
    count: int
    middle: int = 0
    magnitude: int = 1
    sigma: int = 0
    shape: int = 0
    counts: tuple[int, ...] = ()

    @property
    def stride(self) -> int:
        """Distance of two codes."""
        return 2 if self.kind == RISE else 1

    @cached_property
    def limits(self) -> Array:
        """What lies between the codes, those of 16 codes to a row: float32 [cells, 17].

        With counts, how many codes are below; else edges in units, relative to the middle. The outermost edges are far
        away: whatever is beyond the first or the last code counts for it.
        """
        cells = -(-self.count // CELL)
        levels = CELL * np.arange(cells)[:, None] + np.arange(CELL + 1)
        if self.counts:
            sums = np.cumsum([0, *self.counts], dtype=np.float32)  # exact: below 2^24
            return np.asarray(sums[np.minimum(levels, self.count)])
        edges = (2 * (self.low - self.middle) + self.stride * (2 * levels - 1)) * (UNIT // 2)
        return np.where(levels <= 0, -END, np.where(levels >= self.count, END, edges)).astype(np.float32)


def grid(width: int, kind: int) -> tuple[int, int]:
    """The smallest code of a mid-tread or mid-rise grid, and how many there are."""
    top = (1 << width) - 1 if kind == RISE else (1 << max(width - 1, 0)) - 1
    return -top, 1 << width if kind == RISE else 2 * top + 1


@dataclass(frozen=True)
class Geometry:
    """How the codes of a weight lie: `axis` is that of the channels."""

    shape: tuple[int, ...]
    axis: int

    @cached_property
    def kernel(self) -> tuple[int, ...]:
        """Shape of a kernel; (1,) if there is none, or one that is very large."""
        rest = self._rest[1:]
        positions = math.prod(rest)
        few = math.prod(self.shape) < _FEWEST_KERNELS * positions
        return rest if 1 < positions <= _MOST_POSITIONS and not few else (1,)

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.shape[self.axis]

    @property
    def positions(self) -> int:
        """Number of weights of a kernel."""
        return math.prod(self.kernel)

    @property
    def inputs(self) -> int:
        """Number of kernels of a channel."""
        return math.prod(self._rest) // self.positions

    @property
    def _rest(self) -> tuple[int, ...]:
        return tuple(size for i, size in enumerate(self.shape) if i != self.axis)

    def rows(self, weight: Array) -> Array:
        """Weight shape -> [channels, inputs x positions]."""
        return np.moveaxis(weight, self.axis, 0).reshape(self.channels, -1)

    def from_rows(self, rows: Array) -> Array:
        """The inverse: [channels, inputs x positions] -> weight shape."""
        return np.ascontiguousarray(np.moveaxis(rows.reshape(self.channels, *self._rest), 0, self.axis))

    def by_position(self, weight: Array) -> Array:
        """Weight shape -> [positions, channels, inputs]."""
        rows = self.rows(weight).reshape(self.channels, self.inputs, self.positions)
        return np.ascontiguousarray(rows.transpose(2, 0, 1))

    def whole(self, planes: Array) -> Array:
        """The inverse: [positions, channels, inputs] -> weight shape."""
        return self.from_rows(planes.transpose(1, 2, 0))

    @property
    def neighbours(self) -> tuple[tuple[int, ...], ...]:
        """For each position the nearest earlier ones; of equal distance, those just before come first."""
        return _neighbours(self.kernel)


@dataclass(frozen=True)
class Predictor:
    """The numbers of a layer, int8: `coefficients` of all positions in a row, `sigmas` [positions]."""

    coefficients: Array
    sigmas: Array

    @staticmethod
    def empty(geometry: Geometry) -> Predictor:
        """Expects nothing of any code."""
        count = sum(map(len, geometry.neighbours))
        return Predictor(np.zeros(count, np.int8), np.zeros(geometry.positions, np.int8))

    def of_position(self, geometry: Geometry, position: int) -> Array:
        """The coefficients of a position, int32 [neighbours]."""
        start = sum(map(len, geometry.neighbours[:position]))
        return self.coefficients[start : start + len(geometry.neighbours[position])].astype(np.int32)


def magnitude(geometry: Geometry, planes: Array, position: int, groups: Array) -> Array:
    """Logarithms of the expected magnitude of the codes at a position, in 1/8 octave: int32 [channels, inputs].

    Args:
        geometry: of the weight.
        planes: codes less the middle, int16 [positions, channels, inputs]; those before `position` are read.
        position: in the kernel.
        groups: the magnitude of each channel's group, int32 [channels].
    """
    near = geometry.neighbours[position]
    total = np.abs(planes[list(near)]).sum(axis=0, dtype=np.int32)
    mean = (_SIXTEENTHS * total + _PRIOR * _usual(planes[:position], groups)) // (len(near) + _PRIOR)
    return np.asarray(logarithms()[np.minimum(mean, LARGEST_MAGNITUDE)])


def _usual(earlier: Array, groups: Array) -> Array:
    """The mean magnitude of the channel times that of the input: int32 [channels, inputs] from [k, channels, inputs].

    Each is pulled to that of the group, and to the mean of all inputs. A magnitude counts in 1/16 of a code in the one,
    and in 1/256 of its group's in the other.
    """
    positions, _, inputs = earlier.shape
    size = np.abs(earlier)
    channel = _SIXTEENTHS * size.sum(axis=(0, 2), dtype=np.int64) + _CHANNEL_PRIOR * groups
    channel //= positions * inputs + _CHANNEL_PRIOR
    scale = (_SIXTEENTHS << 8) // np.maximum(groups, 1)
    of_input = scale @ size.sum(axis=0, dtype=np.int64) + _INPUT_PRIOR
    relative = np.minimum((inputs << 8) * of_input // of_input.sum(), _LARGEST_RATIO << 8)
    return np.asarray(channel.astype(np.int32)[:, None] * relative.astype(np.int32) >> 8)


def centre(geometry: Geometry, planes: Array, position: int, coefficients: Array) -> Array:
    """Expected codes less the middle, in units: float32 [channels, inputs] of whole numbers."""
    total = np.zeros(planes.shape[1:], np.int32)
    for a, j in zip(coefficients.tolist(), geometry.neighbours[position], strict=True):
        if a:
            total += (a * UNIT // FRACTION) * planes[j].astype(np.int32)
    return total.astype(np.float32)


def sigma(logarithm: Array, of_position: int, of_group: Array) -> Array:
    """Indices of standard deviations: int32 [channels, inputs]."""
    return np.asarray(np.clip((logarithm >> 1) + of_position + of_group[:, None], 0, SIGMAS - 1))


def stored_counts(counts: Array) -> Array:
    """How often codes occur, int64, as it is stored: the most frequent 65,535 times, one that occurs at least once.

    In whole numbers: divided in float the largest may come out above 65,535, which two bytes do not hold.
    """
    return -(-counts * _LARGEST_COUNT // max(int(counts.max(initial=0)), 1))


@cache
def _neighbours(kernel: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    points = np.array(list(np.ndindex(kernel)))
    found = []
    for k, point in enumerate(points):
        distance = ((points[:k] - point) ** 2).sum(axis=1)
        nearest = np.lexsort((-np.arange(k), distance))[:NEIGHBOURS]
        found.append(tuple(nearest.tolist()))
    return tuple(found)
