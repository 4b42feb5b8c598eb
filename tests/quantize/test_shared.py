"""Rounding to shared values: all weights on them, and compensation and refitting each lower the error."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_cbq.model import Array
from onnx_cbq.quantize.codebook import Codebook, kmeans, make_codebook
from onnx_cbq.quantize.moments import Moments
from onnx_cbq.quantize.problem import Problem, make_problem
from onnx_cbq.quantize.settings import RoundingConfig
from onnx_cbq.quantize.shared import Charges, fit_shared, nearest_channels
from onnx_cbq.records import Shared
from onnx_cbq.records.ranks import ranks_fit

CONFIG = RoundingConfig(damping=0.01)
SIZE, ROWS = 48, 20


def problem(groups: int = 1) -> Problem:
    random = np.random.default_rng(0)
    mixing = random.standard_normal((SIZE, SIZE)) / 6 + np.eye(SIZE)
    inputs = random.standard_normal((groups, 2000, SIZE)) @ mixing
    second = inputs.swapaxes(1, 2) @ inputs / 2000
    weights = random.laplace(size=(groups * ROWS, SIZE)).astype(np.float32)
    return make_problem(weights, Moments((second,), (second,), (), 2000), CONFIG)


def book_of(case: Problem, count: int) -> Codebook:
    values = case.aim.reshape(-1)
    return make_codebook(kmeans(values, np.ones_like(values), count))


def error(case: Problem, values: Array, costs: Array) -> float:
    return float((costs * case.error(values.reshape(case.aim.shape)).reshape(-1)).sum())


@pytest.mark.parametrize("groups", [1, 3])
def test_compensation_and_refitted_values_each_lower_the_error(groups: int) -> None:
    case = problem(groups)
    costs = np.random.default_rng(1).exponential(size=groups * ROWS) + 0.1
    book, rows = book_of(case, 8), case.aim.reshape(-1, SIZE)
    nearest = nearest_channels(rows, np.ones_like(rows), book, 0.0)
    fixed = fit_shared(case, book, Charges(costs), CONFIG, refit=False)
    free = fit_shared(case, book, Charges(costs), CONFIG, refit=True)
    errors = [error(case, found.values, costs) for found in (free, fixed, nearest)]
    assert errors[0] < errors[1] < 0.7 * errors[2]
    for found in (nearest, fixed, free):
        assert isinstance(found.grid, Shared)
        assert len(found.grid.table) <= 8
        assert np.isin(found.codes, found.grid.table).all()
        assert all(ranks_fit(row, found.grid.table, 3) for row in found.codes)
        assert len(np.unique(found.scale)) == 1


def test_the_quadratic_in_the_values_is_the_error() -> None:
    """Guards the refit: t A t - 2 b t must differ from the error, computed directly, by the same number for every t."""
    case = problem(2)
    random = np.random.default_rng(2)
    positions, costs = random.integers(0, 5, case.aim.shape), random.random((2, ROWS))
    matrix, target = case.cluster_sums(positions, costs, 5)
    differences = []
    for t in random.standard_normal((4, 5)):
        direct = float((costs * case.error(t[positions].astype(np.float32))).sum())
        differences.append(direct - (t @ matrix @ t - 2 * target @ t))
    # Sums of some thousand float32 products.
    np.testing.assert_allclose(differences, differences[0], rtol=1e-3)


def test_a_price_moves_weights_to_frequent_values() -> None:
    case = problem()
    values = case.aim.reshape(-1)
    centres = kmeans(values, np.ones_like(values), 9)
    counts = np.bincount(np.abs(values[:, None] - centres).argmin(axis=1))
    book, costs = make_codebook(centres, counts), np.ones(ROWS)
    zeros = []
    for price in (0.0, 0.5, 5.0):
        found = fit_shared(case, book, Charges(costs, price), CONFIG, refit=False)
        assert isinstance(found.grid, Shared)
        usual = found.grid.table[book.lengths.argmin()] if len(found.grid.table) == len(book.table) else 0
        zeros.append(float((found.codes == usual).mean()))
    assert zeros[0] < zeros[1] < zeros[2]


def test_a_row_of_zeros_takes_no_bits() -> None:
    rows = np.array([[0.0, 0.0, 0.0], [1.0, -1.0, 0.0]], np.float32)
    found = nearest_channels(rows, np.ones_like(rows), make_codebook(np.array([-1.0, 0.0, 1.0])), 0.0)
    assert found.bits.tolist() == [0, 2]
    np.testing.assert_array_equal(found.values, rows)
