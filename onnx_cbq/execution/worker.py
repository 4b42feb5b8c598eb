"""The worker's side: what it holds of the works that it was given. It is called by name, from another process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from threadpoolctl import threadpool_limits

from onnx_cbq.execution.engine import Place, in_one_thread
from onnx_cbq.execution.parcels import unpack
from onnx_cbq.system.workers import share


@dataclass
class _Held:
    """A work that was started, and what its tasks became here."""

    held: Any
    tasks: dict[int, Callable[[Sequence[Any]], Iterator[Any]]] = field(default_factory=dict)


_works: dict[str, _Held] = {}


def start(key: str, work: bytes, place: Place) -> None:
    """Take on a work."""
    if place.threads:
        share(place.threads)
        threadpool_limits(place.threads)
    _works[key] = _Held(unpack(work).start(place))


def run(key: str, number: int, task: bytes, shards: Sequence[Any]) -> list[Any]:
    """The pieces of a task for some shards. Tasks come in the order of their numbers."""
    held = _works[key]
    if number not in held.tasks:
        # Those before are over: what they hold, sessions for one, is let go.
        held.tasks = {number: unpack(task).on(held.held)}
    return list(in_one_thread(held.tasks[number](shards)))


def stop(key: str) -> None:
    """Let go of a work."""
    _works.pop(key, None)


def again(key: str, task: bytes, shards: Sequence[Any]) -> None:
    """Do a task for its traces alone."""
    for _ in in_one_thread(unpack(task).on(_works[key].held)(shards)):
        pass
