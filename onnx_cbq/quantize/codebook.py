"""Values that weights share (Choi et al., "Towards the Limit of Network Quantization", arXiv 1612.01543).

A weight w whose error counts h (the diagonal of the loss's Hessian, or 1) takes one of k centres c_j.

    k-means   least sum h (w - c_j)^2: each weight takes the nearest centre, c_j = sum h w / sum h over its cluster
    ECSQ      least mean of h (w - c_j)^2 - lambda log2 p_j, p_j the share of the weights in cluster j: each weight
              takes the centre of least such cost, then c_j and p_j follow, and clusters without weights are dropped

k-means is for code words of one length, where k alone decides the rate; entropy-constrained scalar quantization (ECSQ)
for words of varying length, where lambda does. Both only ever lower their objective, and end in a local minimum, so
k-means starts from several guesses, and ECSQ from uniform spacings: 6 lambda = s^2 ln 2 mean h at high rate.

The centres then become whole numbers -127 .. 127 times one scale, so that a table of them is int8 and onnxruntime's
integer kernels stay in use. Where weights meet in 16-bit lanes (see `records.lanes`) any two of the values may, so
there the numbers are at most half of what a pair may add up to: -64 .. 64. Centres that meet on the same number become
one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from onnx_cbq.model import Array
from onnx_cbq.records import Lanes
from onnx_cbq.records.ranks import index_bits

LARGEST = 127
# int8 has that many numbers of which none is without its negative.
MOST_VALUES = 2 * LARGEST + 1
_KMEANS_ROUNDS = 300
_ECSQ_ROUNDS = 60
# ECSQ ends when a round lowers the cost by less than this share.
_SETTLED = 1e-4
_BINS = 2048
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Codebook:
    """Values that weights share: table * scale.

    Attributes:
        table: int8 [k], rising, each in -largest .. largest.
        scale: above 0.
        lengths: bits of each value's code word, float32 [k]; zeros where all have the same length.
        largest: that a number of the table may be.
    """

    table: Array
    scale: float
    lengths: Array
    largest: int = LARGEST

    @property
    def levels(self) -> Array:
        """The values, float32 [k], rising."""
        return np.asarray(self.table * np.float32(self.scale))

    @property
    def bits(self) -> int:
        """Bits of an index into the table, at least 1."""
        return index_bits(len(self.table))


def largest_number(lanes: Lanes | None) -> int:
    """What a number of a table may be, so that any two of them may meet."""
    return LARGEST if lanes is None else min(lanes.limit // 2, LARGEST)


def make_codebook(centres: Array, shares: Array | None = None, largest: int = LARGEST) -> Codebook:
    """The codebook of float centres [k], in any order; `shares` of the weights, [k], give the lengths of code words."""
    scale = float(np.float32(np.abs(centres).max(initial=0) / largest)) or 1.0
    table, where = np.unique(np.clip(np.rint(centres / scale), -largest, largest).astype(np.int8), return_inverse=True)
    lengths = np.zeros(len(table), np.float32)
    if shares is not None:
        lengths = code_lengths(np.bincount(where.reshape(-1), shares, len(table)))
    return Codebook(table, scale, lengths, largest)


def code_lengths(counts: Array) -> Array:
    """-log2 of the share of each, float32 [k]; what does not occur counts as if it occurred half a time."""
    known = np.where(counts > 0, counts, min(float(counts[counts > 0].min(initial=1.0)), 1.0) / 2)
    return np.asarray(np.log2(counts.sum() / known), np.float32)


def kmeans(values: Array, weights: Array, count: int) -> Array:
    """At most `count` rising centres of least sum of weights * (values - nearest centre)^2, float64.

    Args:
        values: [n].
        weights: what a squared error counts, at least 0, [n].
        count: k; fewer centres come where there are fewer different values.

    Cost: a sort, and k log n for each of some hundred rounds.
    """
    line = _Line.of(values, weights)
    found = [_lloyd(line, start) for start in _starts(line, count)]
    return min(found, key=line.error)


def kmeans_error(values: Array, weights: Array, centres: Array) -> float:
    """What k-means makes least: sum of weights * (values - nearest centre)^2."""
    return _Line.of(values, weights).error(np.sort(centres))


@dataclass(frozen=True)
class _Line:
    """Sorted values with running sums of h, h v and h v^2, each with a 0 in front, so a cluster is two look-ups."""

    values: Array
    mass: Array
    moment: Array
    square: Array

    @staticmethod
    def of(values: Array, weights: Array) -> _Line:
        order = np.argsort(values, kind="stable")
        v, h = values[order].astype(np.float64), weights[order].astype(np.float64)
        if not h.any():  # nothing counts: then everything counts alike
            h = np.ones_like(h)
        return _Line(v, *(np.concatenate([[0.0], np.cumsum(part)]) for part in (h, h * v, h * v * v)))

    def edges(self, centres: Array) -> Array:
        """Where the cluster of each centre begins and the last one ends, [k + 1]."""
        inner = np.searchsorted(self.values, (centres[1:] + centres[:-1]) / 2)
        return np.concatenate([[0], inner, [len(self.values)]])

    def error(self, centres: Array) -> float:
        edges = self.edges(centres)
        mass, moment, square = (np.diff(part[edges]) for part in (self.mass, self.moment, self.square))
        return float((square - 2 * centres * moment + centres**2 * mass).sum())


def _lloyd(line: _Line, centres: Array) -> Array:
    edges = line.edges(centres)
    for _ in range(_KMEANS_ROUNDS):
        mass, moment = np.diff(line.mass[edges]), np.diff(line.moment[edges])
        centres = moment[mass > 0] / mass[mass > 0]
        moved = line.edges(centres)
        if np.array_equal(moved, edges):
            break
        edges = moved
    return centres


def _starts(line: _Line, count: int) -> list[Array]:
    """Guesses of rising centres: evenly over the range, by weight, and by the density that is best at high rate.

    That one goes with the cube root of the weighted density (Panter and Dite, 1951).
    """
    low, high = float(line.values[0]), float(line.values[-1])
    if low == high:
        return [np.array([low])]
    points = np.linspace(low, high, _BINS + 1)
    mass = np.diff(line.mass[np.searchsorted(line.values, points[:-1])], append=line.mass[-1])
    quantiles = (np.arange(count) + 0.5) / count
    starts = [low + (high - low) * quantiles]
    for power in (1.0, 1 / 3):
        share = np.concatenate([[0.0], np.cumsum(mass**power)])
        starts.append(np.unique(np.interp(quantiles, share / share[-1], points)))
    return starts


@dataclass(frozen=True)
class Clusters:
    """A state of ECSQ: rising centres float64 [k], how many values each has [k], and the cost that they come from."""

    centres: Array
    counts: Array
    cost: float = float("inf")


def ecsq(values: Array, weights: Array, price: float) -> Clusters:
    """Centres and how many values take them, by the paper's iteration.

    Args:
        values: [n].
        weights: h, at least 0, [n].
        price: lambda, what a bit costs in units of h w^2.

    Cost: up to `_ECSQ_ROUNDS` n k operations.
    """
    clusters = ecsq_start(values, weights, price)
    for _ in range(_ECSQ_ROUNDS):
        better = ecsq_round(values, weights, price, clusters)
        settled = better.cost > (1 - _SETTLED) * clusters.cost
        clusters = better
        if settled:
            break
    return clusters


def ecsq_start(values: Array, weights: Array, price: float) -> Clusters:
    """Even spacings through 0, of the size that is best at high rate; every value in the cluster nearest to it."""
    low, high = float(values.min()), float(values.max())
    mean = max(float(weights.mean(dtype=np.float64)), np.finfo(np.float64).tiny)
    spacing = max(np.sqrt(6 * price / (mean * np.log(2))), (high - low) / (MOST_VALUES - 3), np.finfo(np.float32).tiny)
    centres = spacing * np.arange(np.floor(low / spacing), np.ceil(high / spacing) + 1)
    nearest = np.searchsorted((centres[1:] + centres[:-1]) / 2, values)
    counts = np.bincount(nearest, minlength=len(centres))
    return Clusters(centres[counts > 0], counts[counts > 0])


def ecsq_round(values: Array, weights: Array, price: float, clusters: Clusters) -> Clusters:
    """One round of the paper's iteration: assign, then update; its cost is that of the assignment."""
    levels, lengths = clusters.centres, code_lengths(clusters.counts)
    size = len(levels)
    counts, mass, moment, cost = np.zeros(size), np.zeros(size), np.zeros(size), 0.0
    for start in range(0, len(values), _CHUNK):
        v, h = (part[start : start + _CHUNK].astype(np.float64) for part in (values, weights))
        index, least = cheapest(v, h, levels, price * lengths)
        counts += np.bincount(index, minlength=size)
        mass += np.bincount(index, h, size)
        moment += np.bincount(index, h * v, size)
        cost += float(least.sum())
    kept = counts > 0
    centres = np.where(mass > 0, moment / np.where(mass > 0, mass, 1), levels)[kept]
    order = np.argsort(centres, kind="stable")
    return Clusters(centres[order], counts[kept][order], cost / len(values))


def cheapest(values: Array, weights: Array, levels: Array, charges: Array) -> tuple[Array, Array]:
    """The level j of least weights * (values - levels[j])^2 + charges[j], and that cost, for values [n]."""
    costs = np.square(values[:, None] - levels) * weights[:, None] + charges
    best = costs.argmin(axis=1)
    return best, np.take_along_axis(costs, best[:, None], 1)[:, 0]


def with_counts(book: Codebook, codes: Array) -> Codebook:
    """The codebook with lengths by how often each of its values occurs among int8 codes of any shape."""
    counts = np.bincount(np.searchsorted(book.table, codes.reshape(-1)), minlength=len(book.table))
    return replace(book, lengths=code_lengths(counts))
