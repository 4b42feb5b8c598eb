"""Worker processes on this machine: `--workers N`.

Each is a fresh interpreter (spawn), since threads of onnxruntime do not survive a fork. Models and samples lie in files
that all of them map. They ignore Ctrl-C, which is for whoever started them, and end when that process does.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from onnx_cbq.execution.crew import R, RemoteCrew, Seat, check_lost
from onnx_cbq.execution.engine import Crew, H, Place, S, Work
from onnx_cbq.execution.parcels import Spool, pack
from onnx_cbq.execution.worker import SeatLostError, at_desk


def begin() -> None:
    """What a worker does first: leave Ctrl-C to its parent, and end with it, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


@contextlib.contextmanager
def without_main() -> Iterator[None]:
    """Processes that start now do not run the caller's script once more, which may have no guard for that."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@dataclass(eq=False)
class ProcessSeat:
    """A process of its own."""

    number: int
    place: Place
    _pool: ProcessPoolExecutor = field(init=False, repr=False)
    _closed: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, mp_context=context, initializer=begin)

    @property
    def name(self) -> str:
        """In messages."""
        return f"process {self.number}"

    def submit(self, order: Callable[..., R], *values: Any) -> Future[R]:
        """See `crew.Seat`."""
        if self._closed:
            raise SeatLostError("ended")
        with without_main():
            return self._pool.submit(at_desk, order, *values)

    def close(self) -> None:
        """End it; what it does is not waited for."""
        self._closed = True
        with contextlib.suppress(OSError):
            for process in list((self._pool._processes or {}).values()):  # noqa: SLF001, nothing else ends what runs
                process.terminate()
        self._pool.shutdown(wait=True, cancel_futures=True)


@dataclass
class Processes:
    """Workers of `--workers`; they start with the first work.

    Attributes:
        workers: how many.
        place: what each has to run models with.
    """

    workers: int
    place: Place
    spool: Spool
    _seats: list[ProcessSeat] = field(default_factory=list)
    _lost: int = 0

    def crew(self, work: Work[H], shards: Sequence[S]) -> Crew:
        """See `engine.Engine`."""
        return RemoteCrew(self, work, shards)

    def pack(self, value: object) -> bytes:
        """A parcel whose large arrays lie in the spool."""
        return pack(value, self.spool)

    def seats(self) -> Sequence[Seat]:
        """All of them."""
        while len(self._seats) < self.workers:
            self._seats.append(self._new(len(self._seats)))
        return self._seats

    def instead_of(self, lost: Seat) -> Seat:
        """A new process; the one that took over, where another crew has missed it before."""
        assert isinstance(lost, ProcessSeat)
        number = lost.number
        if self._seats[number] is not lost:
            return self._seats[number]
        self._lost += 1
        check_lost(self._lost, self.workers)
        lost.close()
        self._seats[number] = self._new(number)
        return self._seats[number]

    def close(self) -> None:
        """End all of them."""
        for seat in self._seats:
            seat.close()
        self._seats.clear()

    def _new(self, number: int) -> ProcessSeat:
        return ProcessSeat(number, self.place)


@contextlib.contextmanager
def processes(workers: int, place: Place) -> Iterator[Processes]:
    """So many worker processes, which end with the block."""
    with Spool.open() as spool:
        engine = Processes(workers, place, spool)
        try:
            yield engine
        finally:
            engine.close()
