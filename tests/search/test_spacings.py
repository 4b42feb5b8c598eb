"""Spacings of entropy-coded grids, held against the formulas that they come from."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_cbq.search.spacings import LEAST_SENSITIVITY, SHARE, find_tau, reference_tau, spacings_and_prices

RANDOM = np.random.default_rng(0)
COST, WEIGHTS = RANDOM.uniform(0.5, 2, 50), RANDOM.uniform(0.1, 10, 50)


def test_every_channel_has_the_same_slope() -> None:
    """Loss per bit: a shift of bits from one channel to another could otherwise lower the loss at the same rate."""
    spacings, prices = spacings_and_prices(COST, WEIGHTS, 0.3)
    slopes = COST * WEIGHTS * spacings**2 * np.log(2) / 6
    np.testing.assert_allclose(slopes, 0.3**2 * np.log(2) / 6)
    np.testing.assert_allclose(prices * COST, SHARE * slopes)


def test_a_channel_that_seems_to_cost_nothing_keeps_a_finite_step() -> None:
    """Its gradient was 0 on the samples at hand; an endless spacing would remove it for good."""
    cost = np.array([0.0, 1.0, 1.0])
    spacings, prices = spacings_and_prices(cost, np.ones(3), 1.0)
    assert spacings[0] == pytest.approx(1 / np.sqrt(LEAST_SENSITIVITY * cost.mean()))
    assert np.isfinite(prices).all()
    assert np.isfinite(spacings_and_prices(np.zeros(2), np.zeros(2), 1.0)[0]).all()


@pytest.mark.parametrize("start", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("wanted", [0.5, 2.0, 7.0])
def test_tau_meets_the_rate_from_wherever_it_starts(start: float, wanted: float) -> None:
    tau = find_tau(lambda tau: max(5 - np.log2(tau), 0.0), wanted, start)
    assert tau == pytest.approx(2 ** (5 - wanted), rel=0.003)
    assert max(5 - np.log2(tau), 0.0) <= wanted


def test_the_reference_makes_steps_as_large_as_the_spread() -> None:
    spread = np.full(50, 0.02)
    tau = reference_tau([COST], [WEIGHTS], [spread])
    spacings, _ = spacings_and_prices(COST, WEIGHTS, tau)
    assert 0.5 < np.median(spacings / spread) < 2
