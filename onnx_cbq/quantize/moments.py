"""Second moments of what a layer's weights multiply, collected a batch at a time.

Let x be a row of the float model's inputs of the layer (see `patches`), x~ the same row once the layers in front are
quantized, both less their means (where the layer has a bias, which then takes up the mean). For weights q in place of w
the layer's output is off by w x - q x~, and over many rows

    E (w x - q x~)^2  =  (a - q) H (a - q)^T + const,   H = E x~ x~^T,   a = w C H^-1,   C = E x x~^T

so q is rounded towards a, the weights that best repair what the layers in front have done, in the metric H
(Frantar et al., OPTQ, arXiv 2210.17323, for H; the aim a is the least-squares solution). Without quantized layers in
front x~ = x and a = w.

Where a layer has more than `WIDEST` weights per channel, H is kept as blocks along its diagonal, as few and as even as
possible. Memory: two float64 matrices per block and group.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from onnx_cbq.model import Array
from onnx_cbq.records import Layer

WIDEST = 4608
# Share of what tables look up that may be any row, whichever the samples look up.
UNSEEN = 0.1


@dataclass(frozen=True)
class Moments:
    """Moments of a layer's inputs; a *part* is a block of the weights of a channel.

    Attributes:
        second: H, float64 [groups, n, n] for each part.
        cross: C, likewise; the same arrays as `second` if nothing in front is quantized.
        means: for each use of the layer, the mean of x and of x~ over all its rows, float64 [groups, weights per
            channel]; empty if they are not known.
        rows: number of rows per group.
        shares: how often each row of a table is looked up, adding up to 1, [channels]; None where all channels have a
            part in every output.
    """

    second: tuple[Array, ...]
    cross: tuple[Array, ...]
    means: tuple[tuple[Array, Array], ...]
    rows: int
    shares: Array | None = None


def part_slices(width: int) -> tuple[slice, ...]:
    """The parts of `width` weights per channel."""
    count = -(-width // WIDEST)
    edges = [round(i * width / count) for i in range(count + 1)]
    return tuple(slice(start, stop) for start, stop in pairwise(edges))


class MomentSums:
    """Running sums over the rows of one use of a layer."""

    def __init__(self, *, centred: bool) -> None:
        self._centred = centred
        self._weight = 0.0
        self._rows = 0
        self._sums: list[Array] = []
        self._second: list[Array] = []
        self._cross: list[Array] = []
        self._means: list[Array] = []
        self._mean_weight = 0.0

    def add_means(self, aimed: Array, seen: Array, weight: float) -> None:
        """Count the means of all rows of x and of x~ in a part of the samples, [groups, n], that weighs so much."""
        if not self._means:
            self._means = [np.zeros(aimed.shape), np.zeros(seen.shape)]
        for total, part in zip(self._means, (aimed, seen), strict=True):
            np.add(total, weight * part, out=total)
        self._mean_weight += weight

    def add(self, aimed: Array, seen: Array, weights: Array) -> None:
        """Count some of the rows: x `aimed` and x~ `seen`, float32 [groups, rows, n], each with its weight [rows].

        Cost: 2 n multiplications per value, or 4 n where `seen` is not `aimed`.
        """
        slices = part_slices(seen.shape[2])
        weighted = seen if (weights == 1).all() else seen * weights[:, None]
        same = seen is aimed
        sums = [weights @ x for x in ((seen,) if same else (aimed, seen))]
        second = [weighted[:, :, s].swapaxes(1, 2) @ seen[:, :, s] for s in slices]
        cross = [] if same else [aimed[:, :, s].swapaxes(1, 2) @ weighted[:, :, s] for s in slices]
        if not self._sums:
            self._sums = [np.zeros(s.shape) for s in sums]
            self._second, self._cross = ([np.zeros(m.shape) for m in kind] for kind in (second, cross))
        totals = (*self._sums, *self._second, *self._cross)
        for total, part in zip(totals, (*sums, *second, *cross), strict=True):
            np.add(total, part, out=total)
        self._weight += float(weights.sum())
        self._rows += len(weights)

    def moments(self) -> Moments:
        """The moments of everything counted."""
        scale = 1.0 / max(self._weight, np.finfo(float).tiny)
        aimed, seen = self._sums[0] * scale, self._sums[-1] * scale
        slices = part_slices(seen.shape[1])
        second = tuple(self._less(m * scale, seen[:, s], seen[:, s]) for m, s in zip(self._second, slices, strict=True))
        cross = second
        if self._cross:
            cross = tuple(
                self._less(m * scale, aimed[:, s], seen[:, s]) for m, s in zip(self._cross, slices, strict=True)
            )
        means = (aimed, seen)
        if self._means:
            means = (self._means[0] / self._mean_weight, self._means[1] / self._mean_weight)
        return Moments(second, cross, (means,), self._rows)

    def _less(self, matrix: Array, left: Array, right: Array) -> Array:
        return matrix - left[:, :, None] * right[:, None, :] if self._centred else matrix


def white(layer: Layer, mean_square: float) -> Moments:
    """Moments of uncorrelated inputs, for a product whose channels do not share rows; see `patches.has_rows`."""
    slices = part_slices(layer.weights_per_channel)
    second = tuple(mean_square * np.eye(s.stop - s.start)[None] for s in slices)
    return Moments(second, second, (), 0)


def looked_up(layer: Layer, counts: Array) -> Moments:
    """Moments of a table whose rows were looked up so many times, [channels].

    Its output is the row itself: the error is the mean square of the row's numbers, and no row repairs another.
    """
    return replace(white(layer, 1 / layer.weights_per_channel), shares=shared_out(counts / max(counts.sum(), 1)))


def shared_out(values: Array) -> Array:
    """What is known of each row of a table, [..., rows], with a tenth of it for all rows alike.

    Rows that the samples do not look up, others will.
    """
    return np.asarray((1 - UNSEEN) * values + UNSEEN * values.mean(axis=-1, keepdims=True))


def mean_shift(moments: Moments, rows: Array, quantized: Array, layer: Layer | None = None) -> list[Array]:
    """For each use, the mean of w x - q x~ over the rows: what the bias takes up, [channels].

    Nothing where the outputs of `layer`, whose weights they are, must stay above 0: where they are small, a mean of
    large ones would take them below.
    """
    if layer is not None and layer.positive:
        return [np.zeros(len(rows)) for _ in moments.means]
    groups = len(moments.second[0])
    w, q = (values.reshape(groups, -1, values.shape[1]) for values in (rows, quantized))
    return [(w @ aimed[:, :, None] - q @ seen[:, :, None]).reshape(-1) for aimed, seen in moments.means]


def combine(uses: list[Moments]) -> Moments:
    """Moments of a layer from those of its uses, every row counting alike."""
    if len(uses) == 1:
        return uses[0]
    rows = sum(use.rows for use in uses)

    def mean(kind: str) -> tuple[Array, ...]:
        parts = zip(*(getattr(use, kind) for use in uses), strict=True)
        return tuple(
            np.sum([m * (use.rows / rows) for m, use in zip(part, uses, strict=True)], axis=0) for part in parts
        )

    return Moments(mean("second"), mean("cross"), tuple(use.means[0] for use in uses), rows)
