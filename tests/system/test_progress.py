"""Seconds per stage: each moment counts for one stage, whatever runs within whatever."""

from __future__ import annotations

import pytest

from onnx_cbq.system.progress import Clock


class Hands:
    """What the clock reads; it stands still until it is moved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._now = 1000.0
        monkeypatch.setattr("onnx_cbq.system.progress.time.perf_counter", lambda: self._now)

    def move(self, seconds: float) -> None:
        self._now += seconds


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Hands:
    return Hands(monkeypatch)


def test_a_stage_within_another_counts_for_itself_alone(hands: Hands) -> None:
    """Evidence is gathered while a plan is searched: counted for both, the seconds would add up to too many."""
    clock = Clock()
    with clock.stage("search"):
        hands.move(1)
        with clock.stage("statistics"):
            hands.move(10)
            with clock.stage("tables"):
                hands.move(100)
            hands.move(20)
        hands.move(2)
    assert clock.seconds == {"search": 3, "statistics": 30, "tables": 100}


def test_what_is_between_stages_counts_for_none(hands: Hands) -> None:
    clock = Clock()
    hands.move(5)
    with clock.stage("load"):
        hands.move(1)
    hands.move(7)
    with clock.stage("emit"):
        hands.move(2)
    assert clock.seconds == {"load": 1, "emit": 2}


def test_a_stage_that_comes_again_adds_up(hands: Hands) -> None:
    """Even within itself: a budget is searched many times, and no second may count twice."""
    clock = Clock()
    for seconds in (1, 2):
        with clock.stage("search"):
            hands.move(seconds)
    with clock.stage("search"):
        hands.move(4)
        with clock.stage("search"):
            hands.move(8)
    assert clock.seconds == {"search": 15}


def test_an_error_ends_the_stages_that_it_leaves(hands: Hands) -> None:
    """An operator without a gradient ends a piece of evidence, and the search goes on without it."""
    clock = Clock()

    def fail() -> None:
        hands.move(1)
        raise ValueError("no gradient")

    with clock.stage("search"):
        with pytest.raises(ValueError, match="no gradient"), clock.stage("statistics"):
            fail()
        hands.move(2)
    hands.move(4)
    with clock.stage("emit"):
        hands.move(8)
    assert clock.seconds == {"search": 2, "statistics": 1, "emit": 8}
