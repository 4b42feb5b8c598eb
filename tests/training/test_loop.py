"""Training as a whole: it makes a coarse net better, never worse, stops when told, and goes on where it was killed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from onnx_cbq.errors import ModelError
from onnx_cbq.stages.scene import Scene
from onnx_cbq.stages.solution import Solution
from onnx_cbq.training import loop
from onnx_cbq.training.run import run_training
from tests.training.digits import QUICK, make_solution, make_task, same


@pytest.fixture(scope="module")
def solved() -> tuple[Scene, Solution]:
    return make_solution()


def test_training_makes_a_coarse_net_better(solved: tuple[Scene, Solution]) -> None:
    """2 bits rounded to nearest, activations at 4 bits: there is much to gain."""
    task, start = make_task(*solved)
    found, course = run_training(task, start, replace(QUICK, updates=100, check_every=20))
    assert course.best.loss < 0.6 * course.start.loss
    assert course.best_update > 0
    assert course.stopped == "updates"
    assert not same(found, start)
    assert any(found.grids[name].scale != grid.scale for name, grid in start.grids.items() if grid.bits < 8)
    assert all(found.grids[name] == grid for name, grid in start.grids.items() if grid.bits == 8)


def test_what_is_worse_is_not_kept(solved: tuple[Scene, Solution]) -> None:
    """A rate so high that everything breaks gives the start again, to the last bit."""
    task, start = make_task(*solved)
    found, course = run_training(task, start, replace(QUICK, weight_rate=0.99, rate=0.99, check_every=12))
    assert course.best_update == 0
    assert min(course.losses) >= course.start.loss
    assert same(found, start)


def test_a_repeated_run_gives_the_same(solved: tuple[Scene, Solution]) -> None:
    task, start = make_task(*solved)
    config = replace(QUICK, augment=("flip", "shift"), alpha=0.3)
    assert same(run_training(task, start, config)[0], run_training(task, start, config)[0])


def test_time_ends_training(solved: tuple[Scene, Solution], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that says a second went by at every look."""
    ticks = iter(range(10_000))
    monkeypatch.setattr("onnx_cbq.training.loop.time.monotonic", lambda: float(next(ticks)))
    task, start = make_task(*solved)
    course = run_training(task, start, replace(QUICK, updates=500, minutes=0.5))[1]
    assert course.stopped == "time"
    assert 3 < course.updates <= 15


def test_ctrl_c_keeps_the_best_so_far(solved: tuple[Scene, Solution], monkeypatch: pytest.MonkeyPatch) -> None:
    task, start = make_task(*solved)
    real, calls = loop.update, []

    def interrupted(*arguments: object) -> float:
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type,type-var]

    monkeypatch.setattr(loop, "update", interrupted)
    course = run_training(task, start, QUICK)[1]
    assert (course.stopped, course.updates) == ("Ctrl-C", 8)
    assert course.best.loss < course.start.loss


def killed_after(updates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = loop.update, []

    def killed(*arguments: object) -> float:
        calls.append(1)
        if len(calls) > updates:
            raise SystemExit
        return real(*arguments)  # type: ignore[arg-type,type-var]

    monkeypatch.setattr(loop, "update", killed)


def test_a_killed_run_goes_on_to_the_same_result(
    solved: tuple[Scene, Solution], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state of the optimizer, the rates and the order of the samples all come back."""
    task, start = make_task(*solved)
    config = replace(QUICK, augment=("flip",))
    whole, _ = run_training(task, start, config)
    kept = replace(task, state=tmp_path / "state", key="this run")
    with monkeypatch.context() as patch:
        killed_after(6, patch)
        with pytest.raises(SystemExit):
            run_training(kept, start, config)
    resumed, course = run_training(replace(kept, resume=True), start, config)
    assert course.updates == config.updates
    assert same(resumed, whole)


def test_the_state_of_another_run_is_refused(solved: tuple[Scene, Solution], tmp_path: Path) -> None:
    task, start = make_task(*solved)
    kept = replace(task, state=tmp_path / "state", key="this run")
    run_training(kept, start, replace(QUICK, updates=4))
    with pytest.raises(ModelError, match="belongs to a run with another model"):
        run_training(replace(kept, key="other", resume=True), start, QUICK)


@pytest.mark.parametrize("content", [b"", b"PK", b"\x93NUMPY garbage"])
def test_a_damaged_state_is_refused(solved: tuple[Scene, Solution], tmp_path: Path, content: bytes) -> None:
    task, start = make_task(*solved)
    (tmp_path / "state").write_bytes(content)
    with pytest.raises(ModelError, match="not the state of a training"):
        run_training(replace(task, state=tmp_path / "state", key="k", resume=True), start, QUICK)


def test_classes_that_do_not_count_do_not_decide(solved: tuple[Scene, Solution]) -> None:
    """The loss before training is that of the classes that count alone."""
    task, start = make_task(*solved)
    every = run_training(task, start, replace(QUICK, updates=1))[1].start
    losses = []
    for m in range(10):
        one = np.zeros(10)
        one[m] = 1
        losses.append(run_training(replace(task, class_weights=one), start, replace(QUICK, updates=1))[1].start.loss)
    assert len(set(losses)) == 10
    # The task holds equally many samples of each class back.
    np.testing.assert_allclose(np.mean(losses), every.loss, rtol=1e-4)
