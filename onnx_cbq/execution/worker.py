"""The worker's side: what it holds of the works that it was given. It is called by name, from another process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

from threadpoolctl import threadpool_info

from onnx_cbq.errors import OnnxCbqError
from onnx_cbq.execution.engine import Place, in_one_thread
from onnx_cbq.execution.parcels import pack, unpack
from onnx_cbq.system.blas import one_thread
from onnx_cbq.system.processor import processor_kind
from onnx_cbq.system.workers import share

_R = TypeVar("_R")


class SeatLostError(Exception):
    """A worker is gone, and with it all that it held; another one may be in its place by now."""


@dataclass
class _Held:
    """A work that was started, and what the task that was begun last became here."""

    held: Any
    task: Callable[[Sequence[Any]], Iterator[Any]] | None = None


@dataclass
class Desk:
    """Everything that a worker holds; it stays with the worker, and orders come one at a time."""

    works: dict[str, _Held] = field(default_factory=dict)

    def __reduce__(self) -> NoReturn:
        raise TypeError("what a worker holds does not leave it")

    def start(self, key: str, work: bytes, place: Place) -> None:
        """Take on a work."""
        if place.threads:
            share(place.threads)
        self.works[key] = _Held(unpack(work).start(place))

    def begin(self, key: str, task: bytes) -> None:
        """Take on the next task of a work. What the one before holds, sessions for one, is let go."""
        held = self._held(key)
        held.task = None
        with one_thread():
            held.task = unpack(task).on(held.held)

    def run(self, key: str, shards: Sequence[Any]) -> tuple[list[Any], OnnxCbqError | None]:
        """The pieces of the task for some shards, up to one that it cannot be done on."""
        pieces: list[Any] = []
        try:
            pieces.extend(self._pieces(key, shards))
        except OnnxCbqError as error:
            return pieces, error
        return pieces, None

    def again(self, key: str, shards: Sequence[Any]) -> None:
        """Do the task for its traces alone."""
        for _ in self._pieces(key, shards):
            pass

    def stop(self, key: str) -> None:
        """Let go of a work."""
        self.works.pop(key, None)

    def _pieces(self, key: str, shards: Sequence[Any]) -> Iterator[Any]:
        task = self._held(key).task
        if task is None:
            raise SeatLostError("it has not begun the task")
        return in_one_thread(task(shards))

    def _held(self, key: str) -> _Held:
        if key not in self.works:
            raise SeatLostError("it was started anew")
        return self.works[key]


_desk = Desk()


def at_desk(order: Callable[..., _R], *values: Any) -> _R:
    """Do something at the desk of this process."""
    return order(_desk, *values)


def carried(desk: Desk, parcel: bytes) -> bytes:
    """Do what a parcel says, an order and its values, at a desk; what comes of it as a parcel."""
    order, values = unpack(parcel)
    return pack(order(desk, *values))


def arithmetic() -> tuple[str, ...]:
    """What decides the last digits of sums: the kind of processor, and the kernels that numpy's library has chosen."""
    libraries = {
        f"{one['internal_api']} for {one['architecture']}" for one in threadpool_info() if "architecture" in one
    }
    return processor_kind(), *sorted(libraries)


def sees(path: str, content: bytes) -> bool:
    """Whether this process finds a file with such bytes."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123, the path is another machine's
            return file.read() == content
    except OSError:
        return False
