"""The threshold search, against plans worked out by hand and against what must hold for any input."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from onnx_cbq.model import Array
from onnx_cbq.search.cbq import CbqConfig, ThresholdSearch, search_thresholds, widths


def search(
    importance: list[float],
    budget: float,
    measure: Callable[[Array], float],
    config: CbqConfig | None = None,
    saliency: list[float] | None = None,
    sizes: list[int] | None = None,
    moves: list[tuple[float, float]] | None = None,
) -> ThresholdSearch:
    count = len(importance)
    seen: list[tuple[float, float]] = [] if moves is None else moves
    return search_thresholds(
        np.array(importance, float),
        np.zeros(count) if saliency is None else np.array(saliency, float),
        np.ones(count, np.int64) if sizes is None else np.array(sizes),
        budget,
        measure,
        config or CbqConfig(),
        lambda start, average: seen.append((start, average)),
    )


class Table:
    """Accuracies by plan; keeps the plans that were asked for."""

    def __init__(self, accuracies: dict[tuple[int, ...], float]) -> None:
        self.accuracies = accuracies
        self.asked: list[tuple[int, ...]] = []

    def __call__(self, bits: Array) -> float:
        plan = tuple(bits.tolist())
        self.asked.append(plan)
        return self.accuracies[plan]


IMPORTANCE = [1.0, 2.0, 3.0, 4.0]
# A step is 0.25 x 4 = 1. T_1 = 0.8 and T_2 = 0.6 of an accuracy of 1.
CONFIG = CbqConfig(most_bits=2, stride=0.25, first_target=0.8, ratio=0.75)


@given(
    st.lists(st.floats(0, 10), min_size=1, max_size=20),
    st.lists(st.floats(0, 10), min_size=1, max_size=8).map(sorted),
)
@example([0.0, 1.0, 2.0], [0.0, 1.0, 2.0])
def test_a_channel_gets_as_many_bits_as_thresholds_it_reaches(importance: list[float], thresholds: list[float]) -> None:
    """Below p_1 no bits, from p_k on k bits, from p_N on N bits; on a threshold counts as above it."""
    expected = [sum(p <= gamma for p in thresholds) for gamma in importance]
    assert widths(np.array(importance), np.array(thresholds)).tolist() == expected


def test_thresholds_move_and_stop_as_worked_out_by_hand() -> None:
    """p_1 falls below T_1 = 0.8 at 3 and goes back to 2; p_2 keeps 0.65 above T_2 = 0.6 and goes on to the budget."""
    table = Table({(2, 2, 2, 2): 1.0, (0, 2, 2, 2): 0.9, (0, 0, 2, 2): 0.7, (0, 1, 2, 2): 0.85, (0, 1, 1, 2): 0.65})
    moves: list[tuple[float, float]] = []
    found = search(IMPORTANCE, 0.8, table, CONFIG, moves=moves)
    assert table.asked == [(2, 2, 2, 2), (0, 2, 2, 2), (0, 0, 2, 2), (0, 1, 2, 2), (0, 1, 1, 2)]
    assert found.bits.tolist() == [0, 1, 1, 1]
    assert found.thresholds == (2.0, 5.0)
    assert found.moves == ((2.0, 1.0), (1.5, 0.9), (1.25, 0.85), (1.0, 0.65))
    assert found.measured == 5
    assert moves == [(2.0, 1.5), (2.0, 1.25), (2.0, 1.0)]


def test_when_all_thresholds_stopped_the_targets_fall_and_all_go_on() -> None:
    """Every step costs half the accuracy. (0, 2, 2, 2) is refused at 0.8, then at 0.6, and passes at 0.45."""

    def measure(bits: Array) -> float:
        asked.append(tuple(bits.tolist()))
        return 1.0 if bits.min() == 2 else 0.5

    asked: list[tuple[int, ...]] = []
    found = search(IMPORTANCE, 1.4, measure, CONFIG)
    # T_2 of the first round is 0.6 and of the second 0.45: it is p_2 that passes first.
    assert asked[1:4] == [(0, 2, 2, 2), (1, 2, 2, 2), (0, 2, 2, 2)]
    assert asked[4] == (1, 2, 2, 2)
    assert found.moves[1] == (1.75, 0.5)
    assert found.bits.sum() <= 1.4 * 4


def test_the_last_step_goes_only_as_far_as_the_budget_asks() -> None:
    """Six channels of equal importance would all be pruned at once: 0 bits for a budget of 3.

    Channel 5 has the lowest saliency and goes; of channel 3, the next, 2 of 4 bits are enough to meet 3 x 6.
    """
    found = search([1.0] * 6, 3.0, lambda _: 1.0, CbqConfig(most_bits=4, stride=0.3), saliency=[5, 2, 4, 1, 3, 0])
    assert found.bits.tolist() == [4, 4, 4, 2, 4, 0]


def test_the_less_important_channel_of_a_step_goes_first_whatever_its_saliency() -> None:
    found = search([1.0, 1.1, 4.0, 4.0], 1.5, lambda _: 1.0, CONFIG, saliency=[9, 1, 0, 0])
    assert found.bits.tolist() == [0, 2, 2, 2]


def test_sizes_count_not_channels() -> None:
    """A pruned channel of three weights saves three times as much as one of a single weight."""
    found = search(IMPORTANCE, 1.0, lambda _: 1.0, CONFIG, sizes=[3, 1, 1, 1])
    assert found.bits.tolist() == [0, 2, 2, 2]


@pytest.mark.parametrize(("budget", "expected"), [(4.0, 5), (3.5, 5), (2.0, 3), (0.5, 2), (8.0, 8), (7.5, 8)])
def test_all_start_with_one_bit_more_than_the_budget(budget: float, expected: int) -> None:
    first = Table({})

    def measure(bits: Array) -> float:
        first.asked.append(tuple(bits.tolist()))
        return 1.0

    search(IMPORTANCE, budget, measure)
    assert first.asked[0] == (expected,) * 4


def test_channels_that_nobody_needs_are_no_endless_loop() -> None:
    """With all importances 0 the step is a share of nothing."""
    found = search([0.0] * 10, 2.0, lambda _: 0.1, saliency=list(range(10)))
    assert 0 < found.bits.mean() <= 2.0


def test_a_budget_of_all_bits_changes_nothing() -> None:
    assert search(IMPORTANCE, 8.0, lambda _: 1.0).bits.tolist() == [8] * 4


def test_a_model_that_loses_every_sample_still_meets_the_budget() -> None:
    """No target above 0 can be met then; lowering it a little at a time took hours of measuring the same plans."""
    measured = 0

    def measure(bits: Array) -> float:
        nonlocal measured
        measured += 1
        return float(bits.min() == 5)

    found = search(IMPORTANCE, 3.5, measure)
    assert found.bits.mean() <= 3.5
    assert measured < 200


CHANNELS = st.integers(1, 40).flatmap(
    lambda n: st.tuples(
        st.lists(st.floats(0, 10), min_size=n, max_size=n),
        st.lists(st.floats(0, 1), min_size=n, max_size=n),
        st.lists(st.integers(1, 50), min_size=n, max_size=n),
    )
)


@settings(max_examples=60, deadline=None)
@given(CHANNELS, st.floats(0.3, 7.9), st.integers(0, 1000))
def test_any_search_meets_the_budget_and_measures_only_above_it(
    channels: tuple[list[float], list[float], list[int]], budget: float, seed: int
) -> None:
    """The budget is a promise, whatever the accuracies are; and a plan below it is not worth a measurement."""
    importance, saliency, sizes = channels
    total = sum(sizes)
    random = np.random.default_rng(seed)
    averages: list[float] = []

    def measure(bits: Array) -> float:
        averages.append(float(bits @ np.array(sizes) / total))
        return float(random.uniform(0.1, 1.0))

    found = search(importance, budget, measure, saliency=saliency, sizes=sizes)
    assert all(average > budget for average in averages)
    assert found.measured == len(averages)
    average = float(found.bits @ np.array(sizes) / total)
    assert average <= budget * (1 + 1e-12)
    # It ends with the channel that meets the budget: what is left over is less than that channel gave up.
    most = averages[0]
    assert average > budget - most * max(sizes) / total - 1e-9
    assert list(found.thresholds) == sorted(found.thresholds)


@settings(max_examples=30, deadline=None)
@given(st.integers(160, 300), st.floats(0.5, 8.0), st.integers(0, 1000))
def test_with_many_channels_the_average_is_within_a_twentieth_bit_of_the_budget(
    count: int, budget: float, seed: int
) -> None:
    """The last channel of 160 gives up at most 8 bits: 8 / 160 = 0.05 of the average."""
    importance = np.random.default_rng(seed).uniform(0, 10, count).tolist()
    found = search(importance, budget, lambda _: 1.0)
    assert budget - 0.05 - 1e-9 <= found.bits.mean() <= budget


@settings(max_examples=30, deadline=None)
@given(CHANNELS, st.floats(0.3, 7.9))
def test_more_important_channels_get_no_fewer_bits(
    channels: tuple[list[float], list[float], list[int]], budget: float
) -> None:
    """That is the whole idea; the unfinished last step must not break it."""
    importance, saliency, sizes = channels
    found = search(importance, budget, lambda _: 1.0, saliency=saliency, sizes=sizes)
    order = np.argsort(importance, kind="stable")
    gamma, bits = np.array(importance)[order], found.bits[order]
    for lower, upper in zip(range(len(bits) - 1), range(1, len(bits)), strict=True):
        assert gamma[lower] == gamma[upper] or bits[lower] <= bits[upper]
