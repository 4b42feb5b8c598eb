"""Training as a whole: it makes a coarse net better, never worse, stops when told, and goes on where it was killed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from onnx_cbq.evidence.cache import Cache
from onnx_cbq.stages.scene import Scene
from onnx_cbq.stages.solution import Solution
from onnx_cbq.system.store import Store
from onnx_cbq.training import loop
from onnx_cbq.training.records import Quantized, Task
from onnx_cbq.training.run import run_training
from onnx_cbq.training.settings import RefineConfig
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


def test_a_long_training_looks_at_what_is_held_back_fifty_times_at_most(solved: tuple[Scene, Solution]) -> None:
    """Guards against looks that take the time of updates."""
    task, start = make_task(*solved)
    course = run_training(task, start, replace(QUICK, updates=150, check_every=1))[1]
    # And one at the end.
    assert 40 <= len(course.losses) <= 51


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


def test_what_is_left_is_told_by_the_time_where_that_ends_training(
    solved: tuple[Scene, Solution], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half an hour of training was said to take seven hours, by updates that there would never be."""
    ticks = iter(range(10_000))
    monkeypatch.setattr("onnx_cbq.training.loop.time.monotonic", lambda: float(next(ticks)))
    totals: list[int] = []
    config = replace(QUICK, updates=500, minutes=3.0)
    course = run_training(*make_task(*solved), config, lambda _title, _done, total: totals.append(total))[1]
    assert course.stopped == "time"
    assert course.updates > 30
    assert all(abs(total - course.updates) < 0.2 * course.updates for total in totals[25:])


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


def with_cache(task: Task, folder: Path) -> Task:
    """The task in another run that shares a folder."""
    return replace(task, work=replace(task.work, cache=Cache(folder)))


def kinds(folder: Path) -> list[str]:
    return sorted(entry.kind for entry in Store(folder).entries())


def killed_at_six(task: Task, start: Quantized, config: RefineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        killed_after(6, patch)
        with pytest.raises(SystemExit):
            run_training(task, start, config)


def counting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows with every update."""
    real, calls = loop.update, []

    def counted(*arguments: object) -> float:
        calls.append(1)
        return real(*arguments)  # type: ignore[arg-type,type-var]

    monkeypatch.setattr(loop, "update", counted)
    return calls


def test_a_killed_run_goes_on_to_the_same_result(
    solved: tuple[Scene, Solution], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state of the optimizer, the rates and the order of the samples all come back; what is over is found."""
    task, start = make_task(*solved)
    config = replace(QUICK, augment=("flip",))
    whole, _ = run_training(task, start, config)
    killed_at_six(with_cache(task, tmp_path), start, config, monkeypatch)
    assert kinds(tmp_path) == ["unfinished refined weights"]
    calls, again = counting(monkeypatch), with_cache(task, tmp_path)
    resumed, course = run_training(again, start, config)
    assert len(calls) == 8
    assert course.updates == config.updates
    assert same(resumed, whole)
    assert again.work.cache.notes == ("from the cache: unfinished refined weights",)
    assert kinds(tmp_path) == ["refined weights"]
    found, over = run_training(with_cache(task, tmp_path), start, config)
    assert len(calls) == 8
    assert over == course
    assert same(found, whole)


def test_a_kept_training_belongs_to_all_that_it_depends_on(
    solved: tuple[Scene, Solution], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that leaves something out would give another run's weights."""
    task, start = make_task(*solved)
    config = replace(QUICK, updates=2, check_every=1)
    kept = with_cache(task, tmp_path)
    run_training(kept, start, config)
    calls = counting(monkeypatch)
    moved = {name: np.nextafter(value, np.float32(9)) for name, value in start.rounded.biases.items()}
    name = next(iter(start.rounded.weights))
    scaled = replace(start.rounded.weights[name], scale=start.rounded.weights[name].scale * np.float32(1.001))
    others = [
        (replace(kept, seed=1), start, config),
        (replace(kept, learned=task.learned[1:]), start, config),
        (replace(kept, held=task.held[1:]), start, config),
        (replace(kept, class_weights=task.class_weights * np.arange(10)), start, config),
        (kept, start, replace(config, rate=2e-3)),
        (kept, start, replace(config, minutes=3.0)),
        (kept, replace(start, rounded=replace(start.rounded, weights={**start.rounded.weights, name: scaled})), config),
        *([(kept, replace(start, rounded=replace(start.rounded, biases=moved)), config)] if moved else []),
    ]
    for count, other in enumerate(others, start=1):
        run_training(*other)
        assert len(calls) == 2 * count
    run_training(kept, start, config)
    assert len(calls) == 2 * len(others)


@pytest.mark.parametrize("damage", ["cut", "shape", "course"])
def test_a_damaged_state_is_noted_and_training_begins_anew(
    solved: tuple[Scene, Solution], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    task, start = make_task(*solved)
    whole, _ = run_training(task, start, QUICK)
    killed_at_six(with_cache(task, tmp_path), start, QUICK, monkeypatch)
    store, (entry,) = Store(tmp_path), Store(tmp_path).entries()
    held = store.read(entry.path.stem)
    assert held is not None
    if damage == "cut":
        entry.path.write_bytes(entry.path.read_bytes()[:-1])
    elif damage == "shape":
        store.write(entry.path.stem, entry.kind, replace(held, arrays={n: v[None] for n, v in held.arrays.items()}))
    else:
        store.write(entry.path.stem, entry.kind, replace(held, facts={"updates": "many"}))
    again = with_cache(task, tmp_path)
    resumed, _ = run_training(again, start, QUICK)
    (note,) = again.work.cache.notes
    assert note.startswith("an entry of unfinished refined weights in the cache is damaged")
    assert same(resumed, whole)


def test_what_ctrl_c_stopped_is_not_over(
    solved: tuple[Scene, Solution], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be taken for the whole training by every later run."""
    task, start = make_task(*solved)
    whole, _ = run_training(task, start, QUICK)
    real, calls = loop.update, []

    def interrupted(*arguments: object) -> float:
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type,type-var]

    with monkeypatch.context() as patch:
        patch.setattr(loop, "update", interrupted)
        assert run_training(with_cache(task, tmp_path), start, QUICK)[1].stopped == "Ctrl-C"
    assert kinds(tmp_path) == ["unfinished refined weights"]
    resumed, course = run_training(with_cache(task, tmp_path), start, QUICK)
    assert course.stopped == "updates"
    assert same(resumed, whole)


def test_time_that_was_spent_before_a_kill_counts(
    solved: tuple[Scene, Solution], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a training that is killed every hour and never over. A look at the clock takes a second here."""
    task, start = make_task(*solved)
    config = replace(QUICK, updates=500, minutes=0.5, check_every=1)
    ticks = iter(range(100_000))
    monkeypatch.setattr("onnx_cbq.training.loop.time.monotonic", lambda: float(next(ticks)))
    whole = run_training(task, start, config)[1]
    killed_at_six(with_cache(task, tmp_path), start, config, monkeypatch)
    calls = counting(monkeypatch)
    course = run_training(with_cache(task, tmp_path), start, config)[1]
    assert course.stopped == whole.stopped == "time"
    assert len(calls) == course.updates - 6 < whole.updates


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
