"""Rounding that compensates: each weight that is rounded lets the ones not yet rounded make up for its error.

For a row a [n] and the metric H [n, n] the aim is levels q with a small (a - q) H (a - q)^T. Two steps:

1. `compensate`, column by column (OPTQ/GPTQ, arXiv 2210.17323). With H^-1 = U^T U, U upper triangular, rounding column
   j with error e = (a_j - q_j) / U_jj moves the columns behind it by -e U_j, and costs e^2: the sum of all e^2 is the
   whole error.
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
from scipy.linalg import solve_triangular

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
    """A second moment made ready: columns sorted by falling diagonal, damped until it can be factorised.

    Attributes:
        order: the columns in the order in which they are rounded, [g, n].
        matrix: H in that order, float32 [g, n, n].
        factor: U in that order, float32 [g, n, n].
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

    What is `asked` for is a share of the mean diagonal, of all groups or of each. Cost: 2 n^3 / 3 multiplications per
    group.
    """
    damping = np.asarray(asked, np.float64)
    groups, size, _ = second.shape
    diagonal = np.einsum("gnn->gn", second)
    columns = np.argsort(-diagonal, axis=1, kind="stable") if sort else np.tile(np.arange(size), (groups, 1))
    sorted_ = np.take_along_axis(np.take_along_axis(second, columns[:, :, None], 1), columns[:, None, :], 2)
    mean = _mean_diagonal(second)
    while True:
        matrix = sorted_ + (damping * mean)[:, None, None] * np.eye(size)
        try:
            # Reversing rows and columns turns the lower Cholesky factor of H into the upper one of its inverse.
            lower = np.linalg.cholesky(matrix[:, ::-1, ::-1])
        except np.linalg.LinAlgError:
            if damping.max() > _MOST_DAMPING:
                raise
            damping = np.maximum(damping * 10, 1e-6)
            continue
        inverse = np.stack([solve_triangular(part, np.eye(size), lower=True, check_finite=False) for part in lower])
        factor = np.ascontiguousarray(inverse[:, ::-1, ::-1], np.float32)
        found = (columns, np.asarray(matrix, np.float32), factor)
        return Metric(*found, float(damping.max()), raised=bool((damping > asked).any()))


def best_aim(rows: Array, second: Array, cross: Array, damping: float) -> Array:
    """a = w (C + d) (H + d)^-1 for rows w [g, r, n]; the damping d, a share of H's mean diagonal, pulls a towards w."""
    size = second.shape[1]
    ridge = (damping * _mean_diagonal(second))[:, None, None] * np.eye(size)
    solved = np.linalg.solve(second + ridge, (rows @ (cross + ridge)).swapaxes(1, 2))
    return np.ascontiguousarray(solved.swapaxes(1, 2))


def compensate(aim: Array, metric: Metric, rounding: Rounding, box: Box | None = None) -> tuple[Array, Array]:
    """Levels for the rows `aim` [g, r, n], and the error of each row in the metric, [g, r].

    Cost: n multiplications per weight.
    """
    rest, bounds = _columns_first(aim, metric), _bounds(box, metric)
    levels = np.empty_like(rest)
    size, factor = rest.shape[1], metric.factor
    error = np.zeros((rest.shape[0], rest.shape[2]))
    for start in range(0, size, _BLOCK):
        stop = min(start + _BLOCK, size)
        block = rest[:, start:stop].copy()
        errors = np.empty_like(block)
        for j in range(stop - start):
            row = factor[:, start + j, start:stop]
            weight = 1 / np.square(row[:, j, None], dtype=np.float64)
            levels[:, start + j] = rounding(block[:, j], weight, bounds(start + j))
            errors[:, j] = (block[:, j] - levels[:, start + j]) / row[:, j, None]
            block[:, j + 1 :] -= row[:, j + 1 :, None] * errors[:, None, j]
        rest[:, stop:] -= factor[:, start:stop, stop:].swapaxes(1, 2) @ errors
        error += np.einsum("gnr,gnr->gr", errors, errors, dtype=np.float64)
    return _rows_first(levels, metric), error


def descend(
    aim: Array, levels: Array, metric: Metric, rounding: Rounding, sweeps: int, box: Box | None = None
) -> Array:
    """Better levels for the rows `aim`, from `levels`, both [g, r, n]; stops early when nothing changes.

    Cost per sweep: n multiplications per weight.
    """
    target, current, matrix = _columns_first(aim, metric), _columns_first(levels, metric), metric.matrix
    size, bounds = target.shape[1], _bounds(box, metric)
    pull = matrix @ (current - target)
    for _ in range(sweeps):
        changed = False
        for start in range(0, size, _BLOCK):
            stop = min(start + _BLOCK, size)
            before = current[:, start:stop].copy()
            for j in range(start, stop):
                weight = matrix[:, j, j, None]
                better = rounding(current[:, j] - pull[:, j] / weight, weight, bounds(j))
                change = better - current[:, j]
                current[:, j] = better
                pull[:, start:stop] += matrix[:, j, start:stop, None] * change[:, None]
            change = current[:, start:stop] - before
            if change.any():
                changed = True
                pull[:, :start] += matrix[:, :start, start:stop] @ change
                pull[:, stop:] += matrix[:, stop:, start:stop] @ change
        if not changed:
            break
    return _rows_first(current, metric)


def squared_error(aim: Array, levels: Array, metric: Metric) -> Array:
    """(a - q) H (a - q)^T of each row, [g, r], for a and q [g, r, n]."""
    difference = _columns_first(levels, metric) - _columns_first(aim, metric)
    return np.asarray(np.einsum("gnr,gnr->gr", metric.matrix @ difference, difference, dtype=np.float64))


def best_factor(aim: Array, levels: Array, metric: Metric) -> Array:
    """Numerator and denominator of the factor that brings each row of `levels` nearest to `aim`, [2, g, r]."""
    codes = _columns_first(levels, metric)
    weighted = metric.matrix @ codes
    target = _columns_first(aim, metric)
    return np.stack([np.einsum("gnr,gnr->gr", weighted, other, dtype=np.float64) for other in (target, codes)])


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
