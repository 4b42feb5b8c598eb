"""Sums over the rows of a layer's inputs, a few batches at a time, and the moments that all of them add up to.

See `moments` for what x, x~, s and s~ are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnx_cbq.model import Array
from onnx_cbq.quantize import moments
from onnx_cbq.quantize.moments import Held, Moments, part_slices
from onnx_cbq.quantize.products import product


class RowSums:
    """Sums over the rows of one use of a layer in some batches: what `MomentSums` takes in.

    Rows wait until there are as many as weights: products of many rows are fast, and their sums are added up less
    often.
    """

    def __init__(self) -> None:
        self._waiting: list[_Rows] = []
        self._products: list[_Product] = []
        self._means: list[tuple[Sequence[Array], float]] = []

    def add_means(self, means: Sequence[Array], weight: float) -> None:
        """Count the means of all rows of x, of x~ and, where known, of s - s~ in samples that weigh so much.

        Each [groups, ...].
        """
        self._means.append((means, weight))

    def add(self, aimed: Array, seen: Array, weights: Array, held: int = 0, missing: Array | None = None) -> None:
        """Count some of the rows: x `aimed` and x~ `seen`, float32 [groups, rows, n], each with its weight [rows].

        The last `held` of them are of samples held back. Cost: n multiplications per value, or 3 n where `seen` is not
        `aimed`. Memory: the rows that wait.
        """
        if seen.shape[2] > moments.WIDEST:
            missing = None
        self._waiting.append(_Rows(None if aimed is seen else aimed, seen, missing, weights, held))
        if sum(len(rows.weights) for rows in self._waiting) >= min(seen.shape[2], moments.WIDEST):
            self._count()

    def _count(self) -> None:
        waiting, self._waiting = self._waiting, []
        for held in (False, True):
            rows = _Rows.joined([some.side(held=held) for some in waiting])
            if not len(rows.weights):
                continue
            for number, columns in enumerate(part_slices(rows.seen.shape[2])):
                self._products.append(_Product(number, held, _Sums.of(rows, columns)))

    def found(self) -> Counted:
        """Everything since the last time."""
        if self._waiting:
            self._count()
        found = Counted(tuple(self._products), tuple(self._means))
        self._products, self._means = [], []
        return found


@dataclass(frozen=True)
class _Product:
    """Sums over rows of one part, and whether these are held back."""

    part: int
    held: bool
    sums: _Sums


@dataclass(frozen=True)
class Counted:
    """Sums over rows, one after another, and means of all rows with what they weigh."""

    products: tuple[_Product, ...]
    means: tuple[tuple[Sequence[Array], float], ...]


class MomentSums:
    """Running sums over the rows of one use of a layer, in float64."""

    def __init__(self, *, centred: bool) -> None:
        self._centred = centred
        self._parts: list[_Sums] = []
        self._held: _Sums | None = None
        self._means: list[Array] = []
        self._mean_weight = 0.0

    def add(self, counted: Counted) -> None:
        """Take in what was counted of the next batches."""
        for means, weight in counted.means:
            if not self._means:
                self._means = [np.zeros(mean.shape) for mean in means]
            for total, mean in zip(self._means, means, strict=True):
                np.add(total, weight * mean, out=total)
            self._mean_weight += weight
        for found in counted.products:
            if found.part == len(self._parts):
                self._parts.append(found.sums.nothing())
            self._parts[found.part].add(found.sums)
            if found.held and found.part == 0:
                self._held = self._held or found.sums.nothing()
                self._held.add(found.sums)

    def moments(self) -> Moments:
        """The moments of everything counted."""
        found = [part.moments(centred=self._centred) for part in self._parts]
        second = tuple(h for h, *_ in found)
        cross = second if all(c is h for h, c, _ in found) else tuple(c for _, c, _ in found)
        means = [np.concatenate(kind, axis=1) for kind in zip(*(part.means() for part in self._parts), strict=True)]
        if self._means:
            means = [mean / self._mean_weight for mean in self._means]
        whole, held = self._parts[0], None
        if self._held is not None and 0 < self._held.weight < whole.weight:
            of_held = self._held.moments(centred=self._centred)
            held = Held(of_held[0], of_held[1], self._held.weight / whole.weight, of_held[2])
        missing = tuple(m for *_, m in found if m is not None)
        missing = missing if held is not None else ()
        lost = means[2].reshape(-1) if missing and len(means) > 2 else None
        return Moments(second, cross, ((means[0], means[1]),), whole.rows, None, held, missing, lost)


@dataclass(frozen=True)
class _Rows:
    """Rows of x, None where x~ is x, of x~, and of s - s~, None if not known; [groups, rows, ...]."""

    aimed: Array | None
    seen: Array
    missing: Array | None
    weights: Array
    held: int = 0

    def side(self, *, held: bool) -> _Rows:
        """Those held back, or the others."""
        kept = len(self.weights) - self.held
        chosen = slice(kept, None) if held else slice(kept)
        aimed, seen, missing = (
            None if some is None else some[:, chosen] for some in (self.aimed, self.seen, self.missing)
        )
        assert seen is not None
        return _Rows(aimed, seen, missing, self.weights[chosen])

    @staticmethod
    def joined(some: Sequence[_Rows]) -> _Rows:
        """All of them, one after another."""

        def join(parts: Sequence[Array | None]) -> Array | None:
            known = [part for part in parts if part is not None]
            return np.concatenate(known, axis=1) if known else None

        if len(some) == 1:
            return some[0]
        seen = np.concatenate([rows.seen for rows in some], axis=1)
        weights = np.concatenate([rows.weights for rows in some])
        return _Rows(join([rows.aimed for rows in some]), seen, join([rows.missing for rows in some]), weights)


@dataclass
class _Sums:
    """Of rows, and of their weights: sums of x~, of x and of m = s - s~, [groups, n or channels], and of products.

    Those are x~ x~^T and x x~^T, [groups, n, n], and m x~^T, [groups, channels, n]. Where x~ is x, the second of each
    is the first; where m is not known, it has no channels.
    """

    weight: float
    rows: int
    seen: Array
    aimed: Array
    missing: Array
    second: Array
    cross: Array
    lost: Array

    @staticmethod
    def of(rows: _Rows, columns: slice) -> _Sums:
        """The sums over some of the columns."""
        weights, seen = rows.weights, rows.seen[:, :, columns]
        weighted = seen if (weights == 1).all() else seen * weights[:, None]
        sum_of_seen, second = weights @ seen, product(weighted, seen, symmetric=True)
        missing = rows.seen[:, :, :0] if rows.missing is None else rows.missing
        sum_of_missing, lost = weights @ missing, product(missing, weighted)
        if rows.aimed is None:
            sum_of_aimed, cross = sum_of_seen, second
        else:
            aimed = rows.aimed[:, :, columns]
            sum_of_aimed, cross = weights @ aimed, product(aimed, weighted)
        sums = sum_of_seen, sum_of_aimed, sum_of_missing
        return _Sums(float(weights.sum()), len(weights), *sums, second, cross, lost)

    def nothing(self) -> _Sums:
        """No rows yet, in float64."""
        seen, missing, second, lost = (
            np.zeros(each.shape) for each in (self.seen, self.missing, self.second, self.lost)
        )
        if self.cross is self.second:
            return _Sums(0.0, 0, seen, seen, missing, second, second, lost)
        return _Sums(0.0, 0, seen, np.zeros(self.aimed.shape), missing, second, np.zeros(self.cross.shape), lost)

    def add(self, other: _Sums) -> None:
        """Count what `other` has, too."""
        self.weight, self.rows = self.weight + other.weight, self.rows + other.rows
        names = ["seen", "missing", "second", "lost"]
        if self.cross is not self.second:
            names += ["aimed", "cross"]
        for name in names:
            total = getattr(self, name)
            np.add(total, getattr(other, name), out=total)

    def means(self) -> tuple[Array, Array]:
        """The means of x and of x~."""
        scale = 1.0 / max(self.weight, np.finfo(float).tiny)
        return self.aimed * scale, self.seen * scale

    def moments(self, *, centred: bool) -> tuple[Array, Array, Array | None]:
        """H, C, one array if x~ is x, and M, None if it is not known."""
        scale, (aimed, seen) = 1.0 / max(self.weight, np.finfo(float).tiny), self.means()
        less = seen if centred else np.zeros_like(seen)

        def moment(product: Array, mean: Array) -> Array:
            return np.asarray(product * scale - mean[:, :, None] * less[:, None, :])

        second = moment(self.second, seen)
        missing = moment(self.lost, self.missing * scale) if self.lost.size else None
        return second, second if self.cross is self.second else moment(self.cross, aimed), missing
