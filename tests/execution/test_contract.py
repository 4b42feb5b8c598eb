"""What every engine promises: the same pieces in the same order, errors as themselves, whoever is lost."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest

from onnx_cbq.errors import CalibrationError, WorkerError
from onnx_cbq.execution import crew as crews
from onnx_cbq.execution.cluster import Cluster
from onnx_cbq.execution.engine import Engine
from onnx_cbq.execution.processes import Processes
from tests.execution.works import Bytes, Fail, Keep, Note, Square, Value, pids


@pytest.mark.parametrize("count", [0, 1, 2, 37])
def test_pieces_come_in_the_order_of_the_shards(engine: Engine, count: int) -> None:
    """With fewer shards than workers too, and task after task."""
    shards = list(range(count))
    with engine.crew(Keep(), shards) as crew:
        for _ in range(2):
            assert [piece[:2] for piece in crew.each(Square())] == [(n, n * n) for n in shards]


def test_all_workers_take_part(remote: Engine) -> None:
    found = pids(remote)
    assert len(found) == 2
    assert os.getpid() not in found


def test_who_has_seen_enough_stops_asking(engine: Engine) -> None:
    """The next task is not answered with what is left of the one before."""
    with engine.crew(Keep(), list(range(50))) as crew:
        for piece in crew.each(Bytes(3)):
            assert piece == bytes(3)
            break
        assert [piece[1] for piece in crew.each(Square())] == [n * n for n in range(50)]


def test_a_task_goes_on_from_what_the_last_has_left(engine: Engine) -> None:
    """Several works at a time do not see each other's traces."""
    shards = list(range(9))
    with engine.crew(Keep(), shards) as crew, engine.crew(Keep(), shards) as other:
        assert list(crew.each(Note(1))) == [(1,)] * 9
        assert list(other.each(Note(5))) == [(5,)] * 9
        assert list(crew.each(Note(2))) == [(1, 2)] * 9


@pytest.mark.parametrize("bad", [(0,), (5, 6), (36,)], ids=str)
def test_an_error_comes_as_itself_and_in_its_turn(engine: Engine, bad: tuple[int, ...]) -> None:
    """Not that of the worker that is first to fail; pieces in front of it come all the same."""
    found: list[int] = []
    with (
        engine.crew(Keep(), list(range(37))) as crew,
        pytest.raises(CalibrationError, match=f"^shard {bad[0]} cannot be read$"),
    ):
        found.extend(piece[0] for piece in crew.each(Square(bad)))
    assert found == list(range(bad[0]))


def test_errors_of_starting_and_beginning_come_as_themselves(engine: Engine) -> None:
    with (
        pytest.raises(CalibrationError, match="nothing to start with"),
        engine.crew(Keep(fails=True), [0, 1]) as crew,
    ):
        list(crew.each(Square()))
    with engine.crew(Keep(), [0, 1]) as crew:
        with pytest.raises(CalibrationError, match="nothing to begin with"):
            list(crew.each(Fail(early=True)))
        with pytest.raises(ZeroDivisionError):
            list(crew.each(Fail(early=False)))
        assert len(list(crew.each(Square()))) == 2


def test_large_arrays_arrive_as_they_are(engine: Engine) -> None:
    value = {"large": np.random.default_rng(0).standard_normal((300, 400)), "small": np.arange(4)}
    with engine.crew(Keep(value), [0, 1]) as crew:
        for found in crew.each(Value()):
            for name, array in value.items():
                np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("at", [0, 9])
def test_a_worker_that_is_killed_changes_nothing(
    remote: Processes | Cluster,
    tmp_path: Path,
    at: int,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed in the second of three tasks that leave something: who takes over does again what it has to.

    Once what the lost worker had done of the very task that it was killed in was left out, and the next task failed.
    """
    monkeypatch.setattr(remote, "_lost", 0)
    shards = list(range(19))
    with caplog.at_level(logging.WARNING, "onnx_cbq"), remote.crew(Keep(), shards) as crew:
        assert list(crew.each(Note(1))) == [(1,)] * 19
        assert list(crew.each(Note(2, at, tmp_path / "killed"))) == [(1, 2)] * 19
        assert list(crew.each(Note(3))) == [(1, 2, 3)] * 19
        assert [piece[1] for piece in crew.each(Square())] == [n * n for n in shards]
    assert (tmp_path / "killed").exists()
    assert any("its shards go to" in record.getMessage() for record in caplog.records)


def test_workers_that_are_killed_again_and_again_end_the_run(
    remote: Processes | Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would be started anew for ever otherwise."""
    monkeypatch.setattr(remote, "_lost", 0)
    monkeypatch.setattr(crews, "MOST_LOST", 1)
    with remote.crew(Keep(), [0, 1, 2]) as crew, pytest.raises(WorkerError, match="workers ended without a word"):
        list(crew.each(Note(1, at=1)))
