"""Samples of files that a worker of a cluster does not see: it asks for those that it is to read, and they are sent.

A question is an event of Dask, which names the source and the samples; the answer is handed in at the worker. Here lie
the samples of one question of each thread at a time, there those of the batch that is run and of the next one.
"""

from __future__ import annotations

import queue
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from onnx_cbq.calibration.files import reason
from onnx_cbq.calibration.sources import Source
from onnx_cbq.errors import OnnxCbqError, WorkerError
from onnx_cbq.execution.parcels import pack, unpack
from onnx_cbq.model import Array

# Questions that are answered at the same time.
_THREADS = 2
# Seconds until a question has to be answered; others may wait in front of it.
_PATIENCE = 600
# Answers that somebody of this process waits for.
_boxes: dict[str, queue.Queue[bytes]] = {}


class Borrower:
    """Asks for the samples of a source, in a worker of Dask.

    Attributes:
        topic: of Dask, that of a run.
        number: of the source.
    """

    def __init__(self, topic: str, number: int) -> None:
        """Called as a task of Dask begins: threads that it starts do not know whose they are."""
        from distributed import get_worker  # noqa: PLC0415, of an extra

        self.topic, self.number, self._worker = topic, number, get_worker()

    def read(self, name: str, indices: Sequence[int]) -> Array:
        """Samples `indices` of array `name`.

        Raises:
            OnnxCbqError: what the source raises, or nobody answers.
        """
        key = secrets.token_hex(8)
        box = _boxes[key] = queue.Queue()
        question = [key, self._worker.address, self.number, name, list(map(int, indices))]
        try:
            self._worker.log_event(self.topic, question)
            answer = unpack(box.get(timeout=_PATIENCE))
        except queue.Empty:
            raise WorkerError(f"a worker has waited {_PATIENCE} seconds for samples; run this again") from None
        finally:
            del _boxes[key]
        if isinstance(answer, OnnxCbqError):
            raise answer
        found: Array = answer
        return found


@dataclass(frozen=True)
class Ticket:
    """What arrives as a `Borrower`."""

    topic: str
    number: int

    def __reduce__(self) -> tuple[type[Borrower], tuple[str, int]]:
        return Borrower, (self.topic, self.number)


def deliver(key: str, answer: bytes) -> None:
    """Hand in an answer, in the worker that has asked."""
    if key in _boxes:
        _boxes[key].put(answer)


@dataclass
class Lender:
    """Answers the workers of a client."""

    client: Any
    topic: str = field(default_factory=lambda: f"onnx-cbq {secrets.token_hex(8)}")
    _sources: list[Source] = field(default_factory=list)
    _threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_THREADS, "onnx-cbq lending"))

    def ticket(self, source: Source) -> Ticket:
        """For a source that workers may ask."""
        if not self._sources:
            self.client.subscribe_topic(self.topic, self._asked)
        for number, one in enumerate(self._sources):
            if one is source:
                return Ticket(self.topic, number)
        self._sources.append(source)
        return Ticket(self.topic, len(self._sources) - 1)

    def close(self) -> None:
        """Answer no more."""
        if self._sources:
            self.client.unsubscribe_topic(self.topic)
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _asked(self, event: tuple[float, Any]) -> None:
        with suppress(RuntimeError):  # it is closed
            self._threads.submit(self._answer, *event[1])

    def _answer(self, key: str, address: str, number: int, name: str, indices: Sequence[int]) -> None:
        found: Array | OnnxCbqError
        try:
            found = self._sources[number].read(name, indices)
        except OnnxCbqError as error:
            found = error
        except Exception as error:  # noqa: BLE001, who asked would wait for an answer that never comes
            found = WorkerError(f"{self._sources[number].label}: cannot be read: {reason(error)}")
        # A worker that is gone by now waits for nothing.
        self.client.run(deliver, key, pack(found), workers=[address], on_error="ignore")
