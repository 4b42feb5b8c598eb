"""Round the rows of a layer to values that all of them share, each weight making up for the errors of others.

With the values fixed, rounding is that of any grid: column by column, then coordinate by coordinate (see `compensate`).
With the choice of value fixed, row c is sum_j t_j m_cj, m_cj being 1 where the row takes value j, and the loss is

    sum_c a_c (w_c - sum_j t_j m_cj) H (w_c - sum_j t_j m_cj)^T          w_c: what the row is rounded towards

a quadratic in the few values t, whose least-squares solution is exact. The two take turns: k-means with the whole
second moment H in place of its diagonal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnx_cbq.model import Array
from onnx_cbq.quantize.codebook import Codebook, make_codebook, with_counts
from onnx_cbq.quantize.compensate import Box
from onnx_cbq.quantize.entropy import widths
from onnx_cbq.quantize.grid import Channels
from onnx_cbq.quantize.problem import Problem
from onnx_cbq.quantize.settings import RoundingConfig
from onnx_cbq.records import Shared
from onnx_cbq.records.ranks import rank_codes

# The quadratic is summed over so many of a layer's rows that it takes no more multiplications than that.
_MOST_PRODUCTS = 1e11
# Pulls the values towards what they are, as a share of the quadratic's mean diagonal.
_RIDGE = 1e-6


@dataclass(frozen=True)
class Charges:
    """What errors and bits of a layer's rows count.

    Attributes:
        costs: a_c, what a row's squared error costs, above 0, [channels].
        price: lambda, what a bit costs in the same units; 0 for code words of one length.
    """

    costs: Array
    price: float = 0.0


def nearest_channels(rows: Array, weights: Array, book: Codebook, price: float) -> Channels:
    """Each weight of rows [channels, n] on the value of least weights * error^2 + price * length, on its own.

    `weights` has the shape of the rows. Cost: k operations per weight.
    """
    codes = np.empty(rows.shape, np.int8)
    for row, weight, found in zip(rows, weights, codes, strict=True):
        found[:] = book.table[_cheapest(row, weight, book, np.asarray(price))]
    return as_channels(codes, book, priced=price > 0)


def fit_shared(problem: Problem, book: Codebook, charges: Charges, config: RoundingConfig, *, refit: bool) -> Channels:
    """The channels of a layer on the values of a codebook; with `refit`, on others that suit the layer better.

    Cost: some 2 n + 3 k multiplications per weight and pass, with `refit` k n more, up to a limit per layer.
    """
    groups, rows, size = problem.aim.shape
    costs = np.asarray(charges.costs, np.float64).reshape(groups, rows)
    prices = charges.price / costs
    levels = problem.compensate(_Rounder(book, prices))[0]
    best = _loss(problem, levels, costs), book, levels
    for _ in range(config.refits):
        codes = _codes(levels, book)
        moved = _refitted(problem, codes, book, costs) if refit else book
        if charges.price > 0:
            moved = with_counts(moved, _follow(codes, book, moved))
        start = moved.levels[np.searchsorted(moved.table, _follow(codes, book, moved))]
        book, levels = moved, problem.descend(start, _Rounder(moved, prices), config.sweeps)
        best = min(best, (_loss(problem, levels, costs), book, levels), key=lambda found: found[0])
    # Where bits have a price, a later round is better though its error may be larger.
    book, levels = (book, levels) if charges.price > 0 else best[1:]
    return as_channels(_codes(levels, book).reshape(groups * rows, size), book, priced=charges.price > 0)


def as_channels(codes: Array, book: Codebook, *, priced: bool) -> Channels:
    """Codes [channels, n] of a codebook as channels that carry its table.

    Their bits are those of an index, 0 for a row of zeros; with `priced` words those that hold the ranks of the row.
    """
    used = codes.any(axis=1)
    scale = np.full(len(codes), book.scale, np.float32)
    bits = np.maximum(widths(rank_codes(codes, book.table)), 1) if priced else np.full(len(codes), book.bits)
    return Channels(codes, scale, np.where(used, bits, 0).astype(np.int8), Shared(book.table))


@dataclass(frozen=True)
class _Rounder:
    """Chooses among the shared values; prices [g, r] in units of a row's squared error."""

    book: Codebook
    prices: Array

    def __call__(self, values: Array, weight: Array, _bounds: Box | None = None) -> Array:
        weights = np.broadcast_to(weight, values.shape)
        return self.book.levels[_cheapest(values, weights, self.book, self.prices)]


def _cheapest(values: Array, weights: Array, book: Codebook, prices: Array) -> Array:
    """Positions of the values of least weights * error^2 + prices * length, in the shape of `values`."""
    levels = book.levels
    if not prices.any() or not book.lengths.any():
        return np.searchsorted((levels[1:] + levels[:-1]) / 2, values)
    costs = np.square(values[..., None] - levels) * weights[..., None] + prices[..., None] * book.lengths
    return np.asarray(costs.argmin(axis=-1))


def _codes(levels: Array, book: Codebook) -> Array:
    return np.asarray(np.rint(levels / np.float32(book.scale)), np.int8)


def _follow(codes: Array, before: Codebook, after: Codebook) -> Array:
    """Codes of one table -> those of the nearest values of another, int8 of the same shape."""
    if after is before:
        return codes
    levels = after.levels
    nearest = np.searchsorted((levels[1:] + levels[:-1]) / 2, before.levels)
    return np.asarray(after.table[nearest[np.searchsorted(before.table, codes)]])


def _loss(problem: Problem, levels: Array, costs: Array) -> float:
    return float((costs * problem.error(levels)).sum())


def _refitted(problem: Problem, codes: Array, book: Codebook, costs: Array) -> Codebook:
    """The values of least loss for the choice of values that `codes` make, as a codebook."""
    groups, rows, size = problem.aim.shape
    count = len(book.table)
    stride = max(int(np.ceil(count * groups * rows * size * size / len(problem.parts) / _MOST_PRODUCTS)), 1)
    chosen = slice(None, None, stride)
    positions = np.searchsorted(book.table, codes[:, chosen])
    matrix, target = problem.rows(chosen).cluster_sums(positions, costs[:, chosen], count)
    ridge = _RIDGE * max(float(np.trace(matrix)) / count, np.finfo(np.float64).tiny)
    known = book.levels.astype(np.float64)
    return make_codebook(np.linalg.solve(matrix + ridge * np.eye(count), target + ridge * known), None, book.largest)
