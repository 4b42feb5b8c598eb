"""Rounding against code length: what it costs is what it says, and it is worth it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnx_cbq.model import Array
from onnx_cbq.quantize.entropy import LARGEST, code_bits, code_lengths, fit_entropy, widths
from onnx_cbq.quantize.moments import Moments
from onnx_cbq.quantize.problem import Problem, make_problem
from onnx_cbq.quantize.settings import RoundingConfig

CONFIG = RoundingConfig(damping=0.01)
SIZE = 72


def problem(rows: int = 24, groups: int = 1, seed: int = 0) -> Problem:
    """Weights of a layer whose inputs are correlated, as those under neighbouring windows are."""
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((SIZE, SIZE)) / 6 + np.eye(SIZE)
    inputs = random.standard_normal((groups, 2000, SIZE)) @ mixing
    second = inputs.swapaxes(1, 2) @ inputs / 2000
    weights = random.laplace(size=(groups * rows, SIZE)).astype(np.float32)
    return make_problem(weights, Moments((second,), (second,), (), 2000), CONFIG)


def constant(value: float, channels: int = 24) -> Array:
    return np.full(channels, value, np.float32)


def test_lengths_are_those_of_a_distribution() -> None:
    """Kraft: a code with shorter words would not exist, and the estimate of the rate would be a lie."""
    codes = np.random.default_rng(0).integers(-5, 6, (7, 200))
    assert np.exp2(-code_lengths(codes).astype(np.float64)).sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_bits_come_near_the_entropy_of_long_rows() -> None:
    random = np.random.default_rng(0)
    codes = np.rint(random.laplace(size=(4, 50_000))).astype(np.int8)
    entropy = 0.0
    for row in codes:
        # The model takes q and -q to be equally likely, as they are here.
        shares = np.bincount(np.abs(row)) / row.size
        entropy += row.size * float(-(shares[shares > 0] * np.log2(shares[shares > 0])).sum() + (row != 0).mean())
    assert code_bits(codes) == pytest.approx(entropy, rel=2e-3)


def test_widths_hold_the_codes_and_no_narrower_ones_do() -> None:
    codes = np.array([[0, 0], [1, 0], [-1, 1], [2, 0], [3, -3], [4, 0], [-63, 1], [64, 0], [-127, 127]], np.int8)
    assert widths(codes).tolist() == [0, 2, 2, 3, 3, 4, 7, 8, 8]


def test_the_error_told_is_the_error_made() -> None:
    case = problem()
    found = fit_entropy(case, constant(0.7), constant(0.02), CONFIG)
    metric = case.metrics[0]
    difference = (found.channels.values - case.aim[0])[:, metric.order[0]]
    expected = np.einsum("ri,ij,rj->r", difference, metric.matrix[0], difference, dtype=np.float64)
    np.testing.assert_allclose(found.error, expected, rtol=1e-3)


def test_a_price_lowers_the_rate_and_pays_for_it() -> None:
    """At the same rate, a larger spacing with no regard for length must have the larger error."""
    case = problem(64)
    priced = fit_entropy(case, constant(1.0, 64), constant(0.1, 64), CONFIG)
    rate, error = code_bits(priced.channels.codes), float(priced.error.sum())
    plain = [fit_entropy(case, constant(size, 64), constant(0.0, 64), CONFIG) for size in np.linspace(1.0, 1.6, 13)]
    rates = np.array([code_bits(found.channels.codes) for found in plain])
    errors = np.array([found.error.sum() for found in plain])
    assert rate < rates[0]
    assert error < np.interp(-rate, -rates, errors)


def test_compensation_beats_the_nearest_codes_at_their_own_rate() -> None:
    case = problem(64)
    codes = np.rint(case.aim / np.float32(1.0))
    nearest, bits = case.error(codes).sum(), code_bits(codes[0].astype(np.int8))
    found = fit_entropy(case, constant(1.1, 64), constant(0.05, 64), CONFIG)
    assert code_bits(found.channels.codes) <= bits
    assert found.error.sum() < 0.8 * nearest


def test_a_huge_price_leaves_nothing_and_a_tiny_step_stays_in_int8() -> None:
    case = problem()
    assert not fit_entropy(case, constant(1.0), constant(1e6), CONFIG).channels.codes.any()
    finest = fit_entropy(case, constant(1e-4), constant(0.0), CONFIG).channels.codes
    assert np.abs(finest.astype(int)).max() <= LARGEST


def test_a_spacing_that_its_row_cannot_use_is_brought_within() -> None:
    """By what is aimed at: a row of zeros may have to repair what another branch has lost."""
    case = problem()
    power = (case.aim[0].astype(np.float64) ** 2).sum(axis=1)
    for size in (1e-38, 1e30):
        found = fit_entropy(case, constant(size), constant(0.0), CONFIG).channels
        off = (np.square(found.values - case.aim[0].astype(np.float64))).sum(axis=1)
        assert (off < 1e-3 * power).all() if size < 1 else not found.codes.any()


def test_groups_are_rounded_as_if_alone() -> None:
    case = problem(6, groups=3)
    spacings = np.linspace(0.5, 1.5, 18).astype(np.float32)
    prices = np.linspace(0.0, 0.2, 18).astype(np.float32)
    together = fit_entropy(case, spacings, prices, CONFIG).channels.codes
    for g in range(3):
        metric = case.metrics[0]
        part = type(metric)(metric.order[g, None], metric.matrix[g, None], metric.factor[g, None], metric.damping)
        s = slice(6 * g, 6 * g + 6)
        alone = fit_entropy(Problem(case.aim[g, None], (part,)), spacings[s], prices[s], CONFIG).channels.codes
        # Sums in another order may turn a tie.
        assert (alone != together[s]).mean() < 0.01


def test_positive_weights_get_no_code_below_zero() -> None:
    free = replace(problem(), aim=np.maximum(problem().aim, 0))
    found = [fit_entropy(one, constant(0.3), constant(0), CONFIG) for one in (free, replace(free, positive=True))]
    lowest = [int(one.channels.codes.min()) for one in found]
    assert lowest[0] < 0
    assert lowest[1] == 0
