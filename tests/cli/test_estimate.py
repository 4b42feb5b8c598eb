"""What is left in all, against runs whose stages were timed: within a factor of two, or nothing is said."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from onnx_cbq import CalibrationSet, QuantizeConfig, RefineConfig
from onnx_cbq.cli.estimate import Route, Span, seconds_left, told
from onnx_cbq.cli.route import route_of
from onnx_cbq.goals import Accuracy, Bytes
from onnx_cbq.learned.settings import LearnedConfig
from tests.conftest import DIGITS_CARD

# What stages told of themselves, and when: seconds since the start.
RECORDED: Mapping[str, Any] = json.loads(Path(__file__).with_name("recorded.json").read_text(encoding="utf-8"))
# Seconds of whole stages, measured on another day: the first look at 1,000 samples, equalization, ranges of
# activations, statistics, search, rounding, evaluation on as many.
STAGES = ("samples", "equalize", "activations", "tables", "search", "rounding", "evaluation")
TIMED = {
    "ResNet-20": (1.2, 3.5, 1.4, 6.9, 5.6, 6.4, 2.4),
    "VGG-small": (8.1, 19.5, 7.2, 79.3, 17.4, 67.2, 14.8),
    "EfficientNet-Lite0": (17.2, 0.0, 0.0, 94.0, 47.7, 88.4, 15.2),
    "ResNet-50": (9.8, 59.8, 9.2, 178.7, 43.0, 161.4, 16.0),
}
SOLVE = ("search", "rounding")
ROUTE = Route(("tables", *SOLVE, "evaluation"), 1000)
Told = tuple[str, float, int, int]


def even(stages: tuple[str, ...], seconds: tuple[float, ...]) -> Iterator[Told]:
    """Stages one after the other that go on evenly."""
    now = 0.0
    for stage, length in zip(stages, seconds, strict=True):
        for done in range(0, 1001, 50) if length else ():
            yield stage, now + length * done / 1000, done, 1000
        now += length


def estimates(story: Iterator[Told], route: Route) -> list[tuple[str, float, float, float | None]]:
    """At each call the stage, how much of it is over, the time, and what was said to be left."""
    spans: tuple[Span, ...] = ()
    found = []
    for stage, now, done, total in story:
        spans = told(spans, now, stage, done, total)
        found.append((stage, spans[-1].share, now, seconds_left(spans, route)))
    return found


def check(found: list[tuple[str, float, float, float | None]], end: float) -> None:
    """From the end of the statistics on within a factor of two; before it four, or nothing."""
    behind = False
    for stage, share, now, left in found:
        behind |= stage == "tables" and share == 1
        if left is None:
            assert not behind, (stage, share)
        else:
            factor, spare = (2, 2.0) if behind else (4, 0.0)
            assert (end - now) / factor - spare <= left <= (end - now) * factor + spare, (stage, share, left, end - now)
    assert behind


@pytest.mark.parametrize("net", TIMED)
def test_nets_of_all_sizes(net: str) -> None:
    check(estimates(even(STAGES, TIMED[net]), ROUTE), sum(TIMED[net]))


@pytest.mark.parametrize("run", RECORDED)
def test_stages_as_they_come(run: str) -> None:
    """Layers of unlike size, a search that ends early, and ten thousand samples where 200 are calibrated on."""
    told_of = RECORDED[run]
    check(estimates(iter(map(tuple, told_of["told"])), Route(ROUTE.stages, told_of["samples"])), told_of["seconds"])


def test_nothing_is_said_before_something_is_known() -> None:
    found = estimates(even(STAGES, TIMED["ResNet-50"]), ROUTE)
    silent = {(stage, share) for stage, share, _, left in found if left is None}
    assert silent >= {(stage, share / 20) for stage in STAGES[:3] for share in range(21)}
    assert {stage for stage, share in silent if share > 0.3} == set(STAGES[:3])


def test_points_of_a_curve_take_as_long_as_the_first_time() -> None:
    """A stage that comes again is timed anew, and the estimate counts those that are still to come."""
    again = (*SOLVE, "evaluation") * 3
    stages = (*STAGES[:4], *SOLVE, *again, "evaluation")
    seconds = (5.0, 0.0, 0.0, 40.0, 10.0, 20.0, *(10.0, 20.0, 6.0) * 3, 10.0)
    end, found = sum(seconds), estimates(even(stages, seconds), Route(("tables", *SOLVE, *again, "evaluation"), 1000))
    check(found, end)
    first = next(k for k, (stage, share, _, _) in enumerate(found) if (stage, share) == ("evaluation", 1))
    _, _, now, left = found[first]
    assert left == pytest.approx(end - now, abs=6)


def test_training_is_not_guessed_and_ends_in_time() -> None:
    route = Route((*ROUTE.stages[:-1], "refine", "evaluation"), 1000, {"refine": 300.0})
    story = [*even(STAGES[:-1], TIMED["VGG-small"][:-1])]
    now = story[-1][1]
    story += [("refine, loss 0.1", now + second, second, 4000) for second in range(0, 301, 20)]
    found = estimates(iter(story), route)
    assert not [left for stage, _, _, left in found if stage in SOLVE and left is not None]
    assert found[-1][3] == pytest.approx(1.2 * 8.1 + 1)  # the evaluation, and latencies
    # 4,000 updates would take 4,000 seconds.
    assert all(left is None or left <= 300 + 1.2 * 8.1 + 1 for _, _, _, left in found)


def test_a_run_without_time_says_nothing_wrong() -> None:
    """Clocks stand still between two calls; a stage may have nothing to do."""
    story: list[Told] = [("tables", 1.0, 0, 0), ("tables", 1.0, 3, 5), ("search", 1.0, 0, 0), ("evaluation", 1.0, 1, 1)]
    assert all(left is None or left >= 0 for _, _, _, left in estimates(iter(story), ROUTE))


def test_a_command_knows_its_stages() -> None:
    card = CalibrationSet.from_card(DIGITS_CARD)
    assert route_of(QuantizeConfig(), card) == Route(("tables", *SOLVE, "evaluation"), 500)
    assert route_of(QuantizeConfig(rounding="nearest"), card) == Route(("tables", "search", "evaluation"), 500)
    again = (*SOLVE, "evaluation") * 2
    curve = route_of(QuantizeConfig(curve=(2.0, 3.0)), card)
    assert curve == Route(("tables", *SOLVE, *again, "evaluation"), 500)
    assert route_of(QuantizeConfig(method="uniform"), card) == Route(("rounding", "evaluation"), 500)
    learned = route_of(QuantizeConfig(rounding="learned", learned=LearnedConfig(minutes=3)), card)
    stages = ("tables", *SOLVE, "learned rounding", "evaluation")
    assert learned == Route(stages, 500, {"learned rounding": 180})
    trained = route_of(QuantizeConfig(refine=RefineConfig(minutes=2)), card)
    assert trained == Route(("tables", *SOLVE, "refine", "evaluation"), 500, {"refine": 120})
    for goal in (Accuracy(max_drop=1.0), Bytes(12_000)):
        storage = "packed" if isinstance(goal, Bytes) else "int8"
        assert route_of(QuantizeConfig(goal=goal, storage=storage), card) is None


def test_a_limit_of_samples_for_each_class_counts(tmp_path: Path) -> None:
    text = DIGITS_CARD.read_text().replace('"digits.npz"', f'"{DIGITS_CARD.with_name("digits.npz")}"')
    (tmp_path / "card.toml").write_text(f"{text}\nlimit = 7\n")
    route = route_of(QuantizeConfig(), CalibrationSet.from_card(tmp_path / "card.toml"))
    assert route is not None
    assert route.samples == 70
