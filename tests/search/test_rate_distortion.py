"""Widths from predicted losses, against all plans there are, and the choice among plans by measurement."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from onnx_cbq.model import Array
from onnx_cbq.search.rate_distortion import (
    Hopeless,
    RateDistortionConfig,
    RatePlan,
    allocate,
    hopeless,
    saves,
    search_plan,
)

WIDTHS = 9


def total(losses: Array, bits: Array) -> float:
    return float(losses[np.arange(len(bits)), bits].sum())


def best_total(losses: Array, sizes: Array, budget: float, allowed: Array | None = None) -> float:
    """The least loss of all plans within the budget; infinite if there is none."""
    choices = [
        range(losses.shape[1]) if allowed is None else np.flatnonzero(row) for row in allowed_rows(losses, allowed)
    ]
    plans = np.array(list(itertools.product(*choices)))
    affordable = plans @ sizes <= budget * sizes.sum() * (1 + 1e-12)
    sums = losses[np.arange(len(losses)), plans].sum(axis=1)
    return float(sums[affordable].min(initial=np.inf))


def allowed_rows(losses: Array, allowed: Array | None) -> Array:
    return np.ones(losses.shape, bool) if allowed is None else allowed


def convex(random: np.random.Generator, channels: int, widths: int) -> Array:
    """Falling curves whose gain per bit falls too, as errors of a uniform quantizer do."""
    gains = -np.sort(-random.exponential(size=(channels, widths - 1)), axis=1)
    tails = np.cumsum(gains[:, ::-1], axis=1)[:, ::-1]
    return np.asarray(np.concatenate([tails, np.zeros((channels, 1))], axis=1) * random.exponential(size=(channels, 1)))


@pytest.mark.parametrize("seed", range(20))
def test_convex_losses_of_equal_channels_get_the_very_best_plan(seed: int) -> None:
    random = np.random.default_rng(seed)
    losses = convex(random, 5, 5)
    for budget in (0.0, 0.2, 1.0, 1.7, 2.4, 3.9, 4.0):
        bits = allocate(losses, np.full(5, 7.0), budget)
        assert total(losses, bits) == pytest.approx(best_total(losses, np.full(5, 7.0), budget))


def test_identical_channels_are_not_all_lowered_at_once() -> None:
    """All of them change their width at the same price; the budget lies between."""
    losses = np.tile(4.0 ** -np.arange(9), (10, 1))
    bits = allocate(losses, np.ones(10), 2.3)
    assert sorted(bits.tolist()) == [2] * 7 + [3] * 3


CASES = st.tuples(st.integers(1, 5), st.integers(2, 5), st.floats(0, 5), st.integers(0, 10**6))


def make_case(channels: int, widths: int, seed: int) -> tuple[Array, Array]:
    """Losses of any shape, channels of any size."""
    random = np.random.default_rng(seed)
    losses = random.exponential(size=(channels, widths)) * 10.0 ** random.integers(-6, 6, (channels, 1))
    if seed % 2:
        losses = -np.sort(-losses, axis=1)
    return losses, random.integers(1, 40, channels).astype(np.float64)


@settings(max_examples=200, deadline=None)
@given(CASES)
def test_any_losses_get_nearly_the_best_plan(case: tuple[int, int, float, int]) -> None:
    """No plan is better that leaves room for one step of the largest channel."""
    channels, widths, budget, seed = case
    losses, sizes = make_case(channels, widths, seed)
    bits = allocate(losses, sizes, budget)
    step = sizes.max() * (widths - 1) / sizes.sum()
    assert total(losses, bits) <= best_total(losses, sizes, budget - step) * (1 + 1e-9)
    assert total(losses, bits) >= best_total(losses, sizes, budget) * (1 - 1e-9)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 60), st.floats(0, 9), st.integers(0, 10**6))
@example(1, 8.0, 0)
def test_the_budget_is_kept_and_nothing_useful_is_left_over(channels: int, budget: float, seed: int) -> None:
    losses, sizes = make_case(channels, WIDTHS, seed)
    before = losses.copy(), sizes.copy()
    bits = allocate(losses, sizes, budget)
    assert bits.dtype == np.int8
    spent = float(bits @ sizes)
    assert spent <= budget * sizes.sum() * (1 + 1e-9)
    left = budget * sizes.sum() - spent
    for channel, width in itertools.product(range(channels), range(WIDTHS)):
        if width > bits[channel] and losses[channel, width] < losses[channel, bits[channel]]:
            assert (width - bits[channel]) * sizes[channel] > left * (1 - 1e-9)
    np.testing.assert_array_equal(losses, before[0])
    np.testing.assert_array_equal(sizes, before[1])


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 30), st.floats(0, 9), st.integers(0, 10**6))
def test_only_allowed_widths_are_chosen(channels: int, budget: float, seed: int) -> None:
    """Where even the narrowest exceed the budget, they are what comes back."""
    losses, sizes = make_case(channels, WIDTHS, seed)
    allowed = np.random.default_rng(seed).random(losses.shape) < 0.4
    allowed[np.arange(channels), np.random.default_rng(seed + 1).integers(0, WIDTHS, channels)] = True
    bits = allocate(losses, sizes, budget, allowed)
    assert allowed[np.arange(channels), bits].all()
    narrowest = allowed.argmax(axis=1)
    if narrowest @ sizes > budget * sizes.sum():
        np.testing.assert_array_equal(bits, narrowest)
    else:
        assert bits @ sizes <= budget * sizes.sum() * (1 + 1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.floats(0, 5), st.integers(0, 10**6))
def test_with_barred_widths_it_is_nearly_the_best_plan_too(channels: int, budget: float, seed: int) -> None:
    losses, sizes = make_case(channels, 5, seed)
    allowed = np.random.default_rng(seed).random(losses.shape) < 0.5
    allowed[:, 0] = True
    bits = allocate(losses, sizes, budget, allowed)
    step = sizes.max() * 4 / sizes.sum()
    assert total(losses, bits) <= best_total(losses, sizes, budget - step, allowed) * (1 + 1e-9)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 40), st.integers(0, 10**6))
def test_more_bits_never_lose_more(channels: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    losses, sizes = convex(random, channels, WIDTHS), random.integers(1, 4, channels).astype(np.float64)
    found = [total(losses, allocate(losses, sizes, budget)) for budget in (0, 1, 2, 3, 4, 5, 6, 7, 8)]
    assert all(more <= less * (1 + 1e-9) for less, more in itertools.pairwise(found))


def test_a_width_that_is_worse_than_a_narrower_one_is_not_bought() -> None:
    losses = np.array([[1.0, 2.0, 0.5, 0.5, 0.6]])
    assert allocate(losses, np.ones(1), 1.9).tolist() == [0]
    assert allocate(losses, np.ones(1), 4.0).tolist() == [2]


CHANNELS, LAYERS = 24, 4
LAYER_OF = np.repeat(np.arange(LAYERS), CHANNELS // LAYERS)
SIZES = np.repeat([9.0, 18.0, 36.0, 4.0], CHANNELS // LAYERS)
CONFIG = RateDistortionConfig()
ALLOWED = np.ones((CHANNELS, WIDTHS), bool)


def truth(seed: int = 0) -> Array:
    return convex(np.random.default_rng(seed), CHANNELS, WIDTHS)


class Measure:
    """The true loss of plans; keeps what was asked for."""

    def __init__(self, loss: Callable[[Array], float]) -> None:
        self.loss = loss
        self.asked: list[bytes] = []

    def __call__(self, bits: Array, hopeless: Hopeless | None = None) -> float:
        self.asked.append(bits.tobytes())
        return self.loss(bits)


def search(
    criteria: dict[str, Array],
    loss: Callable[[Array], float],
    config: RateDistortionConfig | None = None,
    budget: float = 3.3,
) -> tuple[RatePlan, Measure]:
    measure = Measure(loss)
    config = config or RateDistortionConfig()
    return search_plan(criteria, LAYER_OF, SIZES, ALLOWED, budget, measure, config), measure


def test_the_criterion_whose_plan_measures_best_wins() -> None:
    losses = truth()
    random = np.random.default_rng(1)
    criteria = {
        name: losses * np.exp(spread * random.standard_normal((CHANNELS, 1)))
        for name, spread in (("wild", 4.0), ("near", 0.1), ("off", 1.0))
    }
    found, measure = search(criteria, lambda bits: total(losses, bits), RateDistortionConfig(exchanges=0))
    assert found.criterion == "near"
    assert set(found.measured) == set(criteria)
    for name, predicted in criteria.items():
        plan = allocate(predicted, SIZES, 3.3)
        assert found.measured[name] == pytest.approx(total(losses, plan))
    np.testing.assert_array_equal(found.bits, allocate(criteria["near"], SIZES, 3.3))
    assert found.loss == min(found.measured.values())
    assert (found.exchanges, found.tried, len(measure.asked)) == (0, 0, 3)


def test_layers_trade_bits_until_a_wrong_factor_is_mended() -> None:
    """The prediction thinks one layer four times as sensitive as it is."""
    losses = truth()
    wrong = losses * np.where(LAYER_OF == 2, 4.0, 1.0)[:, None]
    found, _ = search({"wrong": wrong}, lambda bits: total(losses, bits))
    best = total(losses, allocate(losses, SIZES, 3.3))
    assert found.measured["wrong"] > 1.03 * best
    assert found.loss < 1.01 * best
    assert found.exchanges > 0


@pytest.mark.parametrize("exchanges", [0, 1, 5, 60])
def test_no_plan_is_measured_twice_and_no_more_than_allowed(exchanges: int) -> None:
    random = np.random.default_rng(0)
    noise: dict[bytes, float] = {}

    def loss(bits: Array) -> float:
        return noise.setdefault(bits.tobytes(), float(random.random()))

    criteria = {name: truth(seed) for seed, name in enumerate("abc")}
    found, measure = search(criteria, loss, RateDistortionConfig(exchanges=exchanges))
    assert len(measure.asked) == len(set(measure.asked)) <= 3 + exchanges
    assert found.tried == len(measure.asked) - 3
    assert found.loss == noise[found.bits.tobytes()] <= min(found.measured.values())
    assert 0 <= found.exchanges <= found.tried


@settings(max_examples=25, deadline=None)
@given(st.floats(0.2, 8), st.integers(0, 10**6))
def test_every_measured_plan_keeps_the_budget(budget: float, seed: int) -> None:
    random = np.random.default_rng(seed)

    def loss(bits: Array) -> float:
        assert bits @ SIZES <= budget * SIZES.sum() * (1 + 1e-9)
        return float(random.random())

    found, _ = search({"a": truth(seed), "b": truth(seed + 1)}, loss, budget=budget)
    assert found.bits @ SIZES <= budget * SIZES.sum() * (1 + 1e-9)
    assert found.loss <= min(found.measured.values())


def test_nothing_is_traded_where_nobody_would_notice() -> None:
    """60 plans of a net were measured at a divergence of 0.0002 nats."""
    losses = truth()
    wrong = {"wrong": losses * np.where(LAYER_OF == 2, 4.0, 1.0)[:, None]}
    first = total(losses, allocate(wrong["wrong"], SIZES, 3.3))
    found, _ = search(wrong, lambda bits: total(losses, bits), RateDistortionConfig(enough=first))
    assert (found.tried, found.loss) == (0, first)


def test_criteria_that_agree_are_measured_once() -> None:
    losses = truth()
    found, measure = search({"a": losses, "b": 2 * losses}, lambda _: 1.0, RateDistortionConfig(exchanges=0))
    assert len(measure.asked) == 1
    assert found.measured == {"a": 1.0, "b": 1.0}


def test_a_single_layer_has_nothing_to_trade_with() -> None:
    losses = truth()
    measure = Measure(lambda bits: total(losses, bits))
    one = np.zeros(CHANNELS, np.int64)
    found = search_plan({"a": losses}, one, SIZES, ALLOWED, 3.0, measure, RateDistortionConfig())
    assert (len(measure.asked), found.exchanges) == (1, 0)


@pytest.mark.parametrize(("certainty", "accepted"), [(0.0, True), (2.0, False)])
def test_a_trade_that_only_some_samples_like_is_left(certainty: float, accepted: bool) -> None:
    """The mean falls a little, but by less than chance explains; so such trades fit the samples, not the model."""
    losses = np.array([[4.0, 1.0, 0.0], [4.0, 1.1, 0.0]])
    noise = np.array([3.0, -2.5, -2.5, 1.9])

    def measure(bits: Array, hopeless: Hopeless | None = None) -> Array:  # noqa: ARG001
        return np.ones(4) + (noise if bits.tolist() != start.tolist() else 0.0)

    sizes, allowed = np.array([1.0, 1.0]), np.ones(losses.shape, bool)
    start = allocate(losses, sizes, 1.5, allowed)
    config = RateDistortionConfig(certainty=certainty)
    found = search_plan({"only": losses}, np.arange(2), sizes, allowed, 1.5, measure, config)
    assert found.tried > 0
    assert (found.exchanges > 0) is accepted


def test_a_trade_that_loses_on_the_first_samples_is_given_up_and_never_taken() -> None:
    """Most trades lose; what is left of the samples then tells nothing. The rest would have made it look good."""
    losses = np.array([[4.0, 1.0, 0.0], [4.0, 1.1, 0.0]])
    start = allocate(losses, np.ones(2), 1.5)
    seen: list[int] = []

    def measure(bits: Array, hopeless: Hopeless | None = None) -> Array:
        found = np.ones(8) if bits.tolist() == start.tolist() else np.array([1.1, 1.2] + [-9.0, -9.1] * 3)
        for count in range(2, 8, 2):
            if hopeless is not None and hopeless(found[:count]):
                found = found[:count]
                break
        seen.append(len(found))
        return found

    found = search_plan({"only": losses}, np.arange(2), np.ones(2), np.ones((2, 3), bool), 1.5, measure, CONFIG)
    assert seen[0] == 8
    assert set(seen[1:]) == {2}
    assert (found.exchanges, found.loss) == (0, 1.0)


@pytest.mark.parametrize(
    ("savings", "samples", "expected"),
    # z = 0 after a tenth: 2 is to be reached by N(0, 9), one in four. z = -2: by N(-6.3, 9), one in 360.
    [([1, -1] * 10, 200, False), ([1, -1.9] * 10, 200, True)]
    # z = 0 after nine tenths: by N(0, 1/9), one in 10^9. z = 4.5: taken for sure.
    + [([1, -1] * 10, 22, True), ([3, -1] * 10, 22, False)]
    # No spread, and no samples left.
    + [([1, 1], 20, False), ([0, 0], 20, True), ([-1, -1], 20, True), ([3, -1], 2, False)],
)
def test_a_trade_is_hopeless_once_it_will_hardly_be_taken(savings: list[float], samples: int, expected: bool) -> None:
    """By the predictive power at two standard errors; guards against trades that are given up too soon."""
    assert hopeless(np.array(savings, float), samples, 2.0) is expected


@pytest.mark.parametrize(
    ("savings", "certainty", "expected"),
    [([1, 1, 1, 1], 5.0, True), ([0, 0], 0.0, False), ([-1, -1], 0.0, False), ([3, -1, 3, -1], 0.99, True)]
    + [([3, -1, 3, -1], 1.01, False)],
)
def test_what_saves_beyond_chance(savings: list[float], certainty: float, expected: bool) -> None:
    """The last two: mean 1, deviation 2, so a standard error of 1."""
    assert saves(np.array(savings, float), certainty) is expected
