"""Worker processes: none is left behind, however a run ends, and any script may start them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import psutil
import pytest

from onnx_cbq.execution import Place
from onnx_cbq.execution.engine import Engine
from onnx_cbq.execution.parcels import LARGE
from onnx_cbq.execution.processes import Processes, processes
from tests.conftest import ROOT
from tests.execution.works import Bytes, Keep, Note, Total, Value, pids

# No guard for spawned processes: those would run all of it again.
SCRIPT = """
import sys, time
from onnx_cbq.execution import Place
from onnx_cbq.execution.processes import processes
from onnx_cbq.execution.cluster import cluster
from tests.execution.works import pids
print("begins", flush=True)
with {engine} as engine:
    print(*sorted(pids(engine)), flush=True)
    {then}
print("ends", flush=True)
"""
ENGINES = {"processes": "processes(2, Place(1))", "dask": 'cluster("local", 2, Place(1))'}


def script(engine: str, then: str) -> subprocess.Popen[str]:
    code = SCRIPT.format(engine=ENGINES[engine], then=then)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    return subprocess.Popen(  # noqa: S603
        [sys.executable, "-W", "error", "-c", code], stdout=pipe, stderr=pipe, text=True, env=environment, cwd=ROOT
    )


def gone(processes: list[psutil.Process], seconds: float = 20) -> bool:
    """Whether they all end in time."""
    return not psutil.wait_procs(processes, seconds)[1]


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def until(condition: Callable[[], bool], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_script_without_a_guard_runs_once_and_nothing_is_left(engine: str) -> None:
    with script(engine, "pass") as running:
        out, err = running.communicate(timeout=60)
    begins, workers, ends = out.splitlines()
    assert (begins, ends, err, running.returncode) == ("begins", "ends", "", 0)
    assert len(workers.split()) == 2
    assert until(lambda: not any(alive(int(pid)) for pid in workers.split()))


@pytest.mark.parametrize("engine", ENGINES)
def test_workers_end_with_a_process_that_is_killed(engine: str) -> None:
    """Nobody is left to tell them."""
    with script(engine, "time.sleep(60)") as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "begins\n"
        workers = list(map(int, running.stdout.readline().split()))
        assert all(map(alive, workers))
        below = psutil.Process(running.pid).children(recursive=True)
        running.kill()
        running.communicate(timeout=60)
    assert gone(below), "scheduler and nannies are among them"
    assert not any(map(alive, workers))


@pytest.mark.parametrize("engine", ENGINES)
def test_ctrl_c_is_for_who_started_them(engine: str) -> None:
    """A terminal sends it to all: workers would write a traceback each. Nothing is left, and nothing is said twice."""
    with script(engine, "time.sleep(60)") as running:
        assert running.stdout is not None
        running.stdout.readline()
        workers = list(map(int, running.stdout.readline().split()))
        for pid in (*workers, running.pid):
            os.kill(pid, signal.SIGINT)
        _, err = running.communicate(timeout=60)
    assert err.count("Traceback") == 1
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert until(lambda: not any(map(alive, workers)))


def test_workers_start_with_the_first_work_and_end_with_the_block() -> None:
    with processes(2, Place(threads=1)) as engine:
        assert not engine._seats
        workers = pids(engine)
        assert all(map(alive, workers))
    assert until(lambda: not any(map(alive, workers)))
    assert not engine.spool.folder.exists()


def test_what_waits_here_is_bounded(remote: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces that came before their turn: those of a few requests, however many shards there are."""
    most, size = 0, 1000
    with remote.crew(Keep(), list(range(400))) as crew:
        take = crew._take  # type: ignore[attr-defined]

        def counted(pieces: dict[int, bytes]) -> None:
            nonlocal most
            take(pieces)
            most = max(most, sum(map(len, pieces.values())))

        monkeypatch.setattr(crew, "_take", counted)
        assert sum(map(len, crew.each(Bytes(size)))) == 400 * size
    assert 0 < most <= (2 + 1) * 2 * 4 * size  # requests ahead, workers, shards of a request


def test_who_is_killed_between_two_tasks_is_replaced() -> None:
    """It is found out as the next one begins; once the error of the pool came through."""
    with processes(2, Place(threads=1)) as engine:
        with engine.crew(Keep(), [0, 1, 2]) as crew:
            assert list(crew.each(Note(1))) == [(1,)] * 3
            for pid in pids(engine):
                os.kill(pid, signal.SIGKILL)
            assert until(lambda: all(seat._pool._broken for seat in engine._seats))
            assert list(crew.each(Note(2))) == [(1, 2)] * 3
        assert len(pids(engine)) == 2


def test_two_crews_that_miss_the_same_worker_both_go_on() -> None:
    """The second found a seat that nobody knew any more, and ended as an error that nobody had foreseen."""
    with processes(2, Place(threads=1)) as engine:
        first, second = (engine.crew(Keep(), [0, 1, 2]) for _ in range(2))
        for crew in (first, second):
            assert list(crew.each(Note(1))) == [(1,)] * 3
        lost = engine._seats[0]
        for process in (lost._pool._processes or {}).values():
            process.kill()
        for crew in (first, second):
            assert list(crew.each(Note(2))) == [(1, 2)] * 3
        assert engine._lost == 1, "it is one loss"


def test_arrays_of_a_task_that_leaves_nothing_go_with_it(two_processes: Processes) -> None:
    """Every model that was measured stayed on the disk, and in memory, until the end."""
    large = np.arange(LARGE, dtype=np.float32)
    with two_processes.crew(Keep(large), [0, 1]) as crew:
        before = two_processes.spool.names()
        for number in range(3):
            assert (
                list(crew.each(Total(large[: LARGE // 2] + number)))
                == [pytest.approx(float((large[: LARGE // 2] + number).sum(dtype=np.float64)))] * 2
            )
        assert two_processes.spool.names() == before
        assert len(list(two_processes.spool.folder.iterdir())) == len(before)
        assert [value.nbytes for value in crew.each(Value())] == [large.nbytes] * 2, "the work's own stay"
