"""Second moments of what a layer's weights multiply, collected a batch at a time.

Let x be a row of the float model's inputs of the layer (see `patches`), x~ the same row once the layers in front are
quantized, both less their means (where the layer has a bias, which then takes up the mean). For weights q in place of w
the layer's output is off by w x - q x~, and over many rows

    E (w x - q x~)^2  =  (a - q) H (a - q)^T + const,   H = E x~ x~^T,   a = w C H^-1,   C = E x x~^T

so q is rounded towards a, the weights that best repair what the layers in front have done, in the metric H
(Frantar et al., OPTQ, arXiv 2210.17323, for H; the aim a is the least-squares solution). Without quantized layers in
front x~ = x and a = w.

Where a layer has more than `WIDEST` weights per channel, H is kept as blocks along its diagonal, as few and as even as
possible. The moments of some of the samples are kept by themselves, too, for a choice that is to hold on other samples
(see `damping`); of the first block, which stands for all. Memory: two float64 matrices per block and group, and two.
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
class Held:
    """Moments of the samples held back, within the first part, float64 [groups, n, n], and their share of all rows."""

    second: Array
    cross: Array
    share: float


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
        held: what samples held back add to the first part; None if they are not known.
    """

    second: tuple[Array, ...]
    cross: tuple[Array, ...]
    means: tuple[tuple[Array, Array], ...]
    rows: int
    shares: Array | None = None
    held: Held | None = None


def part_slices(width: int) -> tuple[slice, ...]:
    """The parts of `width` weights per channel."""
    count = -(-width // WIDEST)
    edges = [round(i * width / count) for i in range(count + 1)]
    return tuple(slice(start, stop) for start, stop in pairwise(edges))


class MomentSums:
    """Running sums over the rows of one use of a layer."""

    def __init__(self, *, centred: bool) -> None:
        self._centred = centred
        self._waiting: list[tuple[Array | None, Array, Array, int]] = []
        self._parts: list[_Sums] = []
        self._held: _Sums | None = None
        self._means: list[Array] = []
        self._mean_weight = 0.0

    def add_means(self, aimed: Array, seen: Array, weight: float) -> None:
        """Count the means of all rows of x and of x~ in a part of the samples, [groups, n], that weighs so much."""
        if not self._means:
            self._means = [np.zeros(aimed.shape), np.zeros(seen.shape)]
        for total, part in zip(self._means, (aimed, seen), strict=True):
            np.add(total, weight * part, out=total)
        self._mean_weight += weight

    def add(self, aimed: Array, seen: Array, weights: Array, held: int = 0) -> None:
        """Count some of the rows: x `aimed` and x~ `seen`, float32 [groups, rows, n], each with its weight [rows].

        The last `held` of them are of samples held back. Rows wait until there are as many as weights: products of
        many rows are fast, and their sums are added up less often. Cost: 2 n multiplications per value, or 4 n where
        `seen` is not `aimed`. Memory: the rows that wait.
        """
        self._waiting.append((None if aimed is seen else aimed, seen, weights, held))
        if sum(len(each) for _, _, each, _ in self._waiting) >= min(seen.shape[2], WIDEST):
            self._count()

    def _count(self) -> None:
        waiting, self._waiting = self._waiting, []
        for held in (False, True):
            rows = [slice(len(w) - count, None) if held else slice(len(w) - count) for *_, w, count in waiting]
            weights = np.concatenate([each[r] for (_, _, each, _), r in zip(waiting, rows, strict=True)])
            if not len(weights):
                continue
            seen = np.concatenate([each[:, r] for (_, each, _, _), r in zip(waiting, rows, strict=True)], axis=1)
            others = [each[:, r] for (each, *_), r in zip(waiting, rows, strict=True) if each is not None]
            aimed = np.concatenate(others, axis=1) if others else None
            for number, columns in enumerate(part_slices(seen.shape[2])):
                found = _Sums.of(None if aimed is None else aimed[:, :, columns], seen[:, :, columns], weights)
                if number == len(self._parts):
                    self._parts.append(_Sums.like(found))
                self._parts[number].add(found)
                if held and number == 0:
                    self._held = self._held or _Sums.like(found)
                    self._held.add(found)

    def moments(self) -> Moments:
        """The moments of everything counted."""
        if self._waiting:
            self._count()
        found = [part.moments(centred=self._centred) for part in self._parts]
        second = tuple(h for h, _ in found)
        cross = tuple(c for _, c in found) if any(c is not h for h, c in found) else second
        means = [np.concatenate(kind, axis=1) for kind in zip(*(part.means() for part in self._parts), strict=True)]
        if self._means:
            means = [mean / self._mean_weight for mean in self._means]
        whole, held = self._parts[0], None
        if self._held is not None and 0 < self._held.weight < whole.weight:
            held = Held(*self._held.moments(centred=self._centred), self._held.weight / whole.weight)
        return Moments(second, cross, ((means[0], means[1]),), whole.rows, held=held)


@dataclass
class _Sums:
    """Of rows, and of their weights: sums of x~ and of x, [groups, n], and of x~ x~^T and of x x~^T, [groups, n, n].

    Where x~ is x, the second of each is the first.
    """

    weight: float
    rows: int
    seen: Array
    aimed: Array
    second: Array
    cross: Array

    @staticmethod
    def of(aimed: Array | None, seen: Array, weights: Array) -> _Sums:
        """The sums over rows [groups, rows, n]; `aimed` is None if x~ is x."""
        weighted = seen if (weights == 1).all() else seen * weights[:, None]
        sum_of_seen, second = weights @ seen, weighted.swapaxes(1, 2) @ seen
        if aimed is None:
            sum_of_aimed, cross = sum_of_seen, second
        else:
            sum_of_aimed, cross = weights @ aimed, aimed.swapaxes(1, 2) @ weighted
        return _Sums(float(weights.sum()), len(weights), sum_of_seen, sum_of_aimed, second, cross)

    @staticmethod
    def like(sums: _Sums) -> _Sums:
        """Nothing yet, in float64."""
        seen, second = np.zeros(sums.seen.shape), np.zeros(sums.second.shape)
        if sums.cross is sums.second:
            return _Sums(0.0, 0, seen, seen, second, second)
        return _Sums(0.0, 0, seen, np.zeros(sums.aimed.shape), second, np.zeros(sums.cross.shape))

    def add(self, other: _Sums) -> None:
        """Count what `other` has, too."""
        self.weight, self.rows = self.weight + other.weight, self.rows + other.rows
        np.add(self.seen, other.seen, out=self.seen)
        np.add(self.second, other.second, out=self.second)
        if self.cross is not self.second:
            np.add(self.aimed, other.aimed, out=self.aimed)
            np.add(self.cross, other.cross, out=self.cross)

    def means(self) -> tuple[Array, Array]:
        """The means of x and of x~."""
        scale = 1.0 / max(self.weight, np.finfo(float).tiny)
        return self.aimed * scale, self.seen * scale

    def moments(self, *, centred: bool) -> tuple[Array, Array]:
        """H and C; one array if x~ is x."""
        scale, (aimed, seen) = 1.0 / max(self.weight, np.finfo(float).tiny), self.means()
        less = seen if centred else np.zeros_like(seen)
        second = self.second * scale - less[:, :, None] * less[:, None, :]
        if self.cross is self.second:
            return second, second
        return second, self.cross * scale - aimed[:, :, None] * less[:, None, :]


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

    second = mean("second")
    same = all(use.cross is use.second for use in uses)
    means = tuple(use.means[0] for use in uses)
    return Moments(second, second if same else mean("cross"), means, rows, held=_held_of(uses))


def _held_of(uses: list[Moments]) -> Held | None:
    """What is held back of all uses; None if that is not known of each."""
    held = [use.held for use in uses if use.held is not None]
    if len(held) < len(uses):
        return None
    counts = np.array([one.share * use.rows for one, use in zip(held, uses, strict=True)])
    second, cross = (
        np.tensordot(counts / counts.sum(), [getattr(one, kind) for one in held], 1) for kind in ("second", "cross")
    )
    return Held(second, cross, float(counts.sum() / sum(use.rows for use in uses)))
