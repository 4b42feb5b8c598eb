"""Real-valued widths: where a descent must end by the theory, that it stays on its schedule, and whole widths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from onnx_cbq.model import Array
from onnx_cbq.search.widths import DifferentiableConfig, Standing, descend, round_widths, scheduled

CONFIG = DifferentiableConfig(updates=600)
Slope = Callable[[Array], tuple[float, Array]]


def by_updates(config: DifferentiableConfig = CONFIG) -> Callable[[int], float]:
    return lambda updates: updates / config.updates


def noise(weights: Array) -> Slope:
    """The loss of quantization noise, sum_c a_c 4^-b_c, and its gradient."""
    return lambda b: (float(weights @ 4.0**-b), -np.log(4) * weights * 4.0**-b)


def water_filling(weights: Array, sizes: Array, budget: float) -> Array:
    """Its minimum under the budget: equal slopes per weight but for widths at the ends, by a root search."""

    def at(log_price: float) -> Array:
        return np.asarray(np.clip(np.log(weights / sizes) / np.log(4) - log_price, 0, 8))

    root = brentq(lambda log_price: sizes @ at(log_price) / sizes.sum() - budget, -40, 40)
    return at(float(root))


@pytest.mark.parametrize("budget", [0.7, 2.0, 5.5])
def test_a_descent_ends_where_a_bit_is_worth_the_same_everywhere(budget: float) -> None:
    """A price or a preconditioner at the wrong place ends elsewhere: sizes taken twice, or not at all."""
    random = np.random.default_rng(0)
    sizes = random.choice([9.0, 72.0, 144.0], 30)
    weights = sizes * 4.0 ** random.uniform(-1, 1, 30)
    config = replace(CONFIG, rate=0.05)
    found = descend(noise(weights), sizes, budget, config, by_updates(config))
    # Noise keeps a update from being nothing until the end: a twentieth of a bit remains.
    np.testing.assert_allclose(found.widths, water_filling(weights, sizes, budget), atol=0.05)


def test_what_matters_less_ends_narrower() -> None:
    weights = np.repeat([1.0, 1e-3], 5)
    found = descend(noise(weights), np.ones(10), 2.0, CONFIG, by_updates())
    assert found.widths[:5].min() > found.widths[5:].max() + 2


@pytest.mark.parametrize("updates", [600, 10])
def test_every_step_lands_on_the_schedule(updates: int) -> None:
    """A price that lags behind would leave the net above or below its budget, as would too short a stride."""
    config = replace(CONFIG, updates=updates)
    sizes = np.array([1.0, 5.0, 2.0])
    averages: list[float] = []
    inner = noise(np.array([3.0, 1.0, 0.1]))

    def slope(widths: Array) -> tuple[float, Array]:
        averages.append(float(sizes @ widths / sizes.sum()))
        return inner(widths)

    found = descend(slope, sizes, 2.0, config, by_updates(config))
    wanted = [3.0, *(scheduled(update / updates, 3.0, 2.0, config.falling) for update in range(updates - 1))]
    np.testing.assert_allclose(averages, wanted, atol=1e-6)
    assert found.first == 3.0
    assert [moment.updates for moment in found.trace] == [
        1,
        *range(max(updates // 10, 2), updates + 1, max(updates // 10, 1)),
    ]
    assert found.trace[-1].average == pytest.approx(2.0)
    assert found.trace[-1].price > 0


def test_a_budget_of_all_bits_needs_no_price() -> None:
    found = descend(noise(np.ones(4)), np.ones(4), 8.0, CONFIG, by_updates())
    np.testing.assert_array_equal(found.widths, 8)
    assert found.trace[-1].price == 0


def test_noise_alone_keeps_widths_in_range_and_on_budget() -> None:
    random = np.random.default_rng(0)
    sizes, config = random.choice([9.0, 72.0], 40), replace(CONFIG, rate=0.3)
    found = descend(lambda b: (1.0, random.standard_normal(len(b))), sizes, 0.5, config, by_updates())
    assert found.widths.min() >= 0
    assert found.widths.max() <= 8
    assert sizes @ found.widths / sizes.sum() <= 0.5 + 1e-6


def test_a_descent_ends_when_it_is_told() -> None:
    """By time, say: fewer updates, and the budget is met all the same."""
    found = descend(noise(np.ones(4)), np.ones(4), 2.0, CONFIG, lambda updates: updates / 30)
    assert found.trace[-1].updates == 30
    assert found.trace[-1].average == pytest.approx(2.0)


@given(st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_whole_widths_meet_the_budget_as_closely_as_they_can(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    budget = data.draw(st.floats(0.1, 8))
    sizes = np.array(data.draw(st.lists(st.sampled_from([1.0, 9.0, 64.0]), min_size=count, max_size=count)))
    widths = np.array(data.draw(st.lists(st.floats(0, 8), min_size=count, max_size=count)))
    bits = round_widths(widths, sizes, budget)
    assert bits.dtype == np.int8
    rest = budget * sizes.sum() - sizes @ bits
    assert rest > -1e-6
    # No unit could have another bit.
    assert (rest < sizes[bits < 8] + 1e-6).all()


def test_whole_widths_are_rounded_from_the_same_fraction_on() -> None:
    widths = np.array([0.2, 1.7, 2.5, 3.4, 2.2])
    np.testing.assert_array_equal(round_widths(widths, np.ones(5), 2.0), [0, 2, 3, 3, 2])
    np.testing.assert_array_equal(round_widths(widths, np.ones(5), 1.8), [0, 2, 2, 3, 2])


def test_whole_widths_stay_as_they_are() -> None:
    widths = np.array([0.0, 8.0, 3.0, 1.0])
    np.testing.assert_array_equal(round_widths(widths, np.array([1.0, 1.0, 4.0, 2.0]), 22 / 8), widths)


@pytest.mark.parametrize("at", [1, 7, 20, 59])
def test_a_descent_goes_on_from_where_it_stood(at: int) -> None:
    """To the last digit: means, price and trace come back too."""
    random = np.random.default_rng(0)
    sizes = random.choice([9.0, 72.0], 12)
    config = replace(CONFIG, updates=60)
    seen: list[Standing] = []
    slope, over = noise(sizes * random.uniform(0, 1, 12)), by_updates(config)
    whole = descend(slope, sizes, 2.0, config, over, watch=seen.append)
    assert [one.updates for one in seen] == list(range(1, 61))
    found = descend(slope, sizes, 2.0, config, over, standing=seen[at - 1])
    np.testing.assert_array_equal(found.widths, whole.widths)
    assert found.trace == whole.trace
