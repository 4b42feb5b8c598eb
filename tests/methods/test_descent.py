"""A descent in the cache: it goes on where it was killed, to the same widths, and is gone through once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from onnx_cbq.evidence.cache import Cache
from onnx_cbq.methods.descent import Descending, Slope, Timer, fitting_batch
from onnx_cbq.model import Array
from onnx_cbq.search.widths import Descent, DifferentiableConfig
from onnx_cbq.system.progress import silent
from onnx_cbq.system.store import Store

CONFIG = DifferentiableConfig(updates=60)
SIZES = np.random.default_rng(0).choice([9.0, 72.0], 12)


class Stop(BaseException):
    """As a kill ends a process."""


def slopes(calls: list[int], until: int = 1000) -> Slope:
    """Noise that is another at every update, as samples are; the numbers of the updates are told."""

    def slope(widths: Array) -> tuple[float, Array]:
        calls.append(calls[-1] + 1)
        if calls[-1] > until:
            raise Stop
        weights = SIZES * np.random.default_rng(calls[-1]).uniform(0, 1, len(SIZES))
        return float(weights @ 4.0**-widths), -np.log(4) * weights * 4.0**-widths

    return slope


def run(folder: Path | None, calls: list[int], until: int = 1000, parts: object = 0, budget: float = 2.0) -> Descent:
    def slope_from(updates: int, batch: int) -> Slope:  # noqa: ARG001
        calls[:] = [updates]
        return slopes(calls, until)

    descending = Descending(CONFIG, Cache(folder), lambda: [parts, budget], silent)
    return descending.run(slope_from, SIZES, budget)


@pytest.mark.parametrize("killed", [3, 25, 59])
def test_a_killed_descent_goes_on_to_the_same_widths(tmp_path: Path, killed: int) -> None:
    calls: list[int] = []
    whole = run(None, calls)
    with pytest.raises(Stop):
        run(tmp_path, calls, killed)
    found = run(tmp_path, calls)
    assert calls == list(range(killed // 10 * 10, 61))
    assert {entry.kind for entry in Store(tmp_path).entries()} == {"learned widths"}
    calls.clear()
    again = run(tmp_path, calls)
    assert not calls
    for one in (found, again):
        np.testing.assert_array_equal(one.widths, whole.widths)
        assert (one.trace, one.first, one.batch) == (whole.trace, whole.first, whole.batch)


def test_another_descent_is_not_gone_on_from(tmp_path: Path) -> None:
    calls: list[int] = []
    with pytest.raises(Stop):
        run(tmp_path, calls, 30)
    for changed in ({"parts": 1}, {"budget": 3.0}):
        run(tmp_path, calls, **changed)
        assert calls == list(range(61))


@pytest.mark.parametrize("trace", [[[1, 2]], "none", 3])
def test_a_damaged_state_is_noted_and_the_descent_begins_anew(tmp_path: Path, trace: object) -> None:
    calls: list[int] = []
    with pytest.raises(Stop):
        run(tmp_path, calls, 30)
    store, (entry,) = Store(tmp_path), Store(tmp_path).entries()
    held = store.read(entry.path.stem)
    assert held is not None
    store.write(entry.path.stem, entry.kind, replace(held, facts={**held.facts, "trace": trace}))
    run(tmp_path, calls)
    assert calls == list(range(61))


def test_time_that_was_spent_before_a_kill_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnx_cbq.methods.descent.time.monotonic", lambda: 1000.0)
    timer = Timer(replace(CONFIG, minutes=1.0), silent, seconds=45.0)
    assert timer.seconds == 45
    assert timer(21) == 0.75
    assert timer(20) == 20 / 60


@pytest.mark.parametrize(("seconds", "expected"), [(1e-6, 128), (0.01, 128), (0.0625, 64), (0.06, 64), (1.0, 16)])
def test_updates_have_as_many_samples_as_the_minutes_allow(seconds: float, expected: int) -> None:
    """200 updates in 800 seconds are 4 seconds each; with 16 samples they may still be too long, and are cut short."""
    assert fitting_batch(seconds, DifferentiableConfig(minutes=800 / 60)) == expected


def test_a_model_that_insists_on_its_batch_is_not_tried_with_another() -> None:
    """The clock would be that of its own batch, taken for that of 16 samples, and the report would tell 16."""
    asked: list[int] = []

    def slope_from(updates: int, batch: int) -> Slope:
        asked.append(batch)
        return slopes([updates])

    found = Descending(CONFIG, Cache(None), lambda: [0], silent, any_batch=False).run(slope_from, SIZES, 2.0)
    assert (asked, found.batch) == ([128], 128)


def test_what_an_update_takes_is_tried_and_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that says a second at every look, until the descent begins; another processor goes on alike."""
    asked: list[int] = []

    def slope_from(updates: int, batch: int) -> Slope:
        asked.append(batch)
        return slopes([updates], until=30)

    def descend_some() -> None:
        config = DifferentiableConfig(updates=100, minutes=2.5)
        with pytest.raises(Stop):
            Descending(config, Cache(tmp_path), lambda: [0], silent).run(slope_from, SIZES, 2.0)

    ticks = iter([0.0, 1.0])
    monkeypatch.setattr("onnx_cbq.methods.descent.time.monotonic", lambda: next(ticks, 1.0))
    descend_some()
    assert asked == [16, 16]
    ticks = iter([0.0, 0.001])
    descend_some()
    assert asked == [16, 16, 16]
