"""Rounding that compensates: each weight that is rounded lets the ones not yet rounded make up for its error.

For a row a [n] and the metric H [n, n] the aim is levels q with a small (a - q) H (a - q)^T. Two steps:

1. `compensate`, column by column (OPTQ/GPTQ, arXiv 2210.17323), the last one first. With H = L L^T, L lower triangular,
   the error is the sum over j of ((a - q) L)_j^2 = L_jj^2 (b_j - q_j)^2, where b_j = a_j + sum_{k>j} (a_k - q_k) L_kj /
   L_jj is what the columns done before leave column j to make up for: it is rounded to the level nearest to b_j. That
   is OPTQ without an inverse (QuIP, arXiv 2307.13304, theorem 6); its factor U of H^-1 = U U^T is L^-T.
2. `descend`, coordinate by coordinate: with everything else fixed, the best level of column j is the one nearest to
   q_j - (H (q - a))_j / H_jj. The error never grows.

Rows are independent, so each has its own grid; what a grid is stays in the `Rounding` that the caller gives. A `Box`
holds each weight within bounds, which are passed on to the rounding of its column; what they mean is its business, too.
All arrays have the groups of a grouped Conv in front, [g, ...].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.linalg import cho_solve
from scipy.linalg.lapack import dpotrf

from onnx_cbq.model import Array

# Lowest and highest, each [g, rows, n]; or of one column, [g, rows].
Box = tuple[Array, Array]


class Rounding(Protocol):
    """Rounds a column: values, one per row, [g, rows], what their squared error counts, [g, 1], and their bounds.

    Gives a level for each, [g, rows].
    """

    def __call__(self, values: Array, weight: Array, bounds: Box | None = None, /) -> Array:
        """Levels within the bounds."""


_BLOCK = 64
_MOST_DAMPING = 1e6


@dataclass(frozen=True)
class Metric:
    """A second moment made ready: columns sorted by rising diagonal, damped until it can be factorised.

    Attributes:
        order: the columns, the last of which is rounded first, [g, n].
        matrix: H in that order, float32 [g, n, n].
        factor: L in that order, float32 [g, n, n].
        damping: what was added to the diagonal, as a share of its mean; the largest of the groups.
        raised: whether that was more than what was asked for.
    """

    order: Array
    matrix: Array
    factor: Array
    damping: float
    raised: bool = False


def make_metric(second: Array, asked: float | Array, *, sort: bool = True) -> Metric:
    """Damp and factorise second moments [g, n, n]; where Cholesky fails, the damping grows tenfold until it does not.

    What is `asked` for is a share of the mean diagonal, of all groups or of each. Cost: n^3 / 3 multiplications per
    group.
    """
    return in_order(second, sort=sort).damped(asked)


@dataclass(frozen=True)
class Ordered:
    """Second moments [g, n, n] with their columns in the order of a `Metric`, [g, n]."""

    order: Array
    second: Array

    def damped(self, asked: float | Array) -> Metric:
        """The metric; see `make_metric`."""
        lower, damping = _factorised(self.second, asked)
        matrix = self.second.astype(np.float32)
        np.einsum("gnn->gn", matrix)[:] += _ridge(self.second, damping)
        raised = bool((damping > asked).any())
        return Metric(self.order, matrix, lower.astype(np.float32), float(damping.max()), raised)


def in_order(second: Array, *, sort: bool = True) -> Ordered:
    """Second moments [g, n, n] ready to be damped; without `sort` the first column is rounded first."""
    diagonal = np.einsum("gnn->gn", second)
    falling = np.argsort(-diagonal if sort else np.zeros_like(diagonal), axis=1, kind="stable")
    order = np.ascontiguousarray(falling[:, ::-1])
    return Ordered(order, np.stack([part[o].take(o, axis=1) for part, o in zip(second, order, strict=True)]))


def best_aim(rows: Array, second: Array, wanted: Array, damping: float) -> Array:
    """a = (t + w d) (H + d)^-1 for rows w [g, r, n]; the damping d, a share of H's mean diagonal, pulls a towards w.

    `wanted` is t = w C + M, what a H should be, [g, r, n]. The damping grows as in `make_metric`. Cost: n^3 / 3
    multiplications per group, and 2 n per weight.
    """
    lower, damping_taken = _factorised(second, damping)
    target = wanted + rows * _ridge(second, damping_taken)[:, :, None]
    solved = [cho_solve((part.T, False), t.T, check_finite=False).T for part, t in zip(lower, target, strict=True)]
    return np.ascontiguousarray(np.stack(solved))


def _factorised(second: Array, asked: float | Array) -> tuple[Array, Array]:
    """The lower Cholesky factor of H + d, [g, n, n], and d, the damping that this took, of all groups or of each."""
    damping = np.asarray(asked, np.float64)
    while True:
        lower = np.array(second, np.float64, order="C")
        np.einsum("gnn->gn", lower)[:] += _ridge(second, damping)
        # In Fortran's eyes each of them is its own transpose, so it is overwritten in place.
        failed = any(dpotrf(part.T, lower=0, overwrite_a=1, clean=1)[1] for part in lower)
        if not failed:
            return lower, damping
        if damping.max() > _MOST_DAMPING:
            raise np.linalg.LinAlgError("second moments cannot be factorised")
        damping = np.maximum(damping * 10, 1e-6)


def _ridge(second: Array, damping: float | Array) -> Array:
    """What is added to the diagonal of second moments, [g, 1]."""
    return np.broadcast_to(damping * _mean_diagonal(second), len(second))[:, None]


def compensate(aim: Array, metric: Metric, rounding: Rounding, box: Box | None = None) -> tuple[Array, Array]:
    """Levels for the rows `aim` [g, r, n], and the error of each row in the metric, [g, r].

    Cost: n / 2 multiplications per weight.
    """
    target, bounds, factor = _columns_first(aim, metric), _bounds(box, metric), metric.factor
    groups, size, rows = target.shape
    levels, missed, error = np.empty_like(target), np.empty_like(target), np.zeros((groups, rows))
    for block in _blocks(size):
        # What the blocks done before leave to this one.
        left = factor[:, block.stop :, block.start : block.stop].swapaxes(1, 2) @ missed[:, block.stop :]
        for j in reversed(block):
            near = slice(j + 1, block.stop)
            pivot = factor[:, j, j, None]
            pulled = left[:, j - block.start] + _times(factor[:, near, j], missed[:, near])
            wanted = target[:, j] + pulled / pivot
            levels[:, j] = rounding(wanted, np.square(pivot, dtype=np.float64), bounds(j))
            missed[:, j] = target[:, j] - levels[:, j]
            error += np.square(pivot * (wanted - levels[:, j]), dtype=np.float64)
    return _rows_first(levels, metric), error


def descend(
    aim: Array, levels: Array, metric: Metric, rounding: Rounding, sweeps: int, box: Box | None = None
) -> Array:
    """Better levels for the rows `aim`, from `levels`, both [g, r, n]; stops early when nothing changes.

    Cost per sweep: n multiplications per weight.
    """
    target, current, matrix = _columns_first(aim, metric), _columns_first(levels, metric), metric.matrix
    off, bounds = current - target, _bounds(box, metric)
    for _ in range(sweeps):
        changed = False
        for block in _blocks(target.shape[1]):
            pull = matrix[:, block.start : block.stop] @ off
            moved = np.zeros_like(pull)
            for j in reversed(block):
                i, weight = j - block.start, matrix[:, j, j, None]
                pulled = pull[:, i] + _times(matrix[:, j, j + 1 : block.stop], moved[:, i + 1 :])
                better = rounding(current[:, j] - pulled / weight, weight, bounds(j))
                moved[:, i] = better - current[:, j]
                current[:, j], off[:, j] = better, better - target[:, j]
            changed = changed or bool(moved.any())
        if not changed:
            break
    return _rows_first(current, metric)


def squared_error(aim: Array, levels: Array, metric: Metric) -> Array:
    """(a - q) H (a - q)^T of each row, [g, r], for a and q [g, r, n]."""
    difference = _columns_first(levels, metric) - _columns_first(aim, metric)
    return np.asarray(np.einsum("gnr,gnr->gr", metric.matrix @ difference, difference, dtype=np.float64))


def best_factor(aim: Array, levels: Array, metric: Metric) -> Array:
    """q H (a - q)^T and q H q^T of each row q of `levels`, [2, g, r]: q times 1 + their ratio is nearest to a."""
    codes = _columns_first(levels, metric)
    weighted = metric.matrix @ codes
    missed = _columns_first(aim, metric) - codes
    return np.stack([np.einsum("gnr,gnr->gr", weighted, other, dtype=np.float64) for other in (missed, codes)])


def cluster_sums(aim: Array, positions: Array, metric: Metric, weights: Array, count: int) -> tuple[Array, Array]:
    """A and b of t A t - 2 b t: the weighted squared error of rows whose levels are t[positions], but for a constant.

    For the rows `aim` [g, r, n], `positions` likewise below `count`, row weights [g, r]: A [count, count], b [count].
    Cost: count n multiplications per weight.
    """
    taken = np.take_along_axis(positions.swapaxes(1, 2), metric.order[:, :, None], 1)
    flat, each = taken.reshape(-1), np.asarray(weights, np.float32)[:, None, :]

    def sums(values: Array) -> Array:
        pulled = (metric.matrix @ values) * each
        return np.bincount(flat, pulled.reshape(-1), count)

    matrix = np.stack([sums(np.asarray(taken == j, np.float32)) for j in range(count)])
    return (matrix + matrix.T) / 2, sums(_columns_first(aim, metric))


def _blocks(size: int) -> list[range]:
    """The columns in blocks, the last first."""
    return [range(max(stop - _BLOCK, 0), stop) for stop in range(size, 0, -_BLOCK)]


def _times(factors: Array, columns: Array) -> Array:
    """The sum of columns [g, k, r], each times its factor [g, k]: [g, r]."""
    return np.asarray((factors[:, None] @ columns)[:, 0])


def _mean_diagonal(second: Array) -> Array:
    """What damping is a share of, [g]; where inputs never vary, their centred moments are rounding errors around 0."""
    diagonal = np.abs(np.einsum("gnn->gn", second))
    return np.asarray(np.maximum(diagonal.mean(axis=1), np.finfo(np.float32).tiny))


def _columns_first(rows: Array, metric: Metric) -> Array:
    """[g, r, n] -> [g, n, r] in the metric's order, so that a column lies in one piece."""
    return np.take_along_axis(rows.swapaxes(1, 2), metric.order[:, :, None], 1).astype(np.float32)


def _bounds(box: Box | None, metric: Metric) -> Callable[[int], Box | None]:
    """The bounds of a column, by its place in the metric's order."""
    if box is None:
        return lambda _: None
    low, high = (_columns_first(end, metric) for end in box)
    return lambda column: (low[:, column], high[:, column])


def _rows_first(columns: Array, metric: Metric) -> Array:
    result = np.empty_like(columns)
    np.put_along_axis(result, metric.order[:, :, None], columns, 1)
    return np.ascontiguousarray(result.swapaxes(1, 2))
