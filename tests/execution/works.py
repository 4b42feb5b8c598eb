"""Small works and tasks, for tests of who does them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from onnx_cbq.errors import CalibrationError
from onnx_cbq.execution import Place


@dataclass
class Ledger:
    """What a worker holds: a list for every shard."""

    value: Any
    seen: dict[int, list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Keep:
    """Starts with a value, or fails."""

    value: Any = None
    fails: bool = False

    def start(self, place: Place) -> Ledger:
        if self.fails:
            raise CalibrationError("nothing to start with")
        return Ledger(self.value)


@dataclass(frozen=True)
class Square:
    """Gives shard, its square, the worker's process; fails at some shards."""

    bad: tuple[int, ...] = ()
    leaves: ClassVar[bool] = False

    def on(self, held: Ledger) -> Callable[[Sequence[int]], Iterator[tuple[int, int, int]]]:
        def run(shards: Sequence[int]) -> Iterator[tuple[int, int, int]]:
            for shard in shards:
                if shard in self.bad:
                    raise CalibrationError(f"shard {shard} cannot be read")
                yield shard, shard**2, os.getpid()

        return run


@dataclass(frozen=True)
class Fail:
    """Fails with what nobody foresees, or as it begins."""

    early: bool
    leaves: ClassVar[bool] = False

    def on(self, held: Ledger) -> Callable[[Sequence[int]], Iterator[int]]:
        if self.early:
            raise CalibrationError("nothing to begin with")

        def run(shards: Sequence[int]) -> Iterator[int]:
            for shard in shards:
                yield shard // 0

        return run


@dataclass(frozen=True)
class Note:
    """Leaves a number at every shard, and gives all that were left so far. May kill its worker once, or always.

    Attributes:
        once: a file that is there once a worker was killed at shard `at`.
    """

    number: int
    at: int = -1
    once: Path | None = None
    leaves: ClassVar[bool] = True

    def on(self, held: Ledger) -> Callable[[Sequence[int]], Iterator[tuple[int, ...]]]:
        def run(shards: Sequence[int]) -> Iterator[tuple[int, ...]]:
            for shard in shards:
                if shard == self.at and (self.once is None or not self.once.exists()):
                    if self.once is not None:
                        self.once.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                held.seen.setdefault(shard, []).append(self.number)
                yield tuple(held.seen[shard])

        return run


@dataclass(frozen=True)
class Value:
    """Gives the work's value, as it is there."""

    leaves: ClassVar[bool] = False

    def on(self, held: Ledger) -> Callable[[Sequence[int]], Iterator[Any]]:
        return lambda shards: (held.value for _ in shards)


@dataclass(frozen=True)
class Total:
    """Gives the sum of numbers that come with it."""

    values: Any
    leaves: ClassVar[bool] = False

    def on(self, held: Ledger) -> Callable[[Sequence[int]], Iterator[float]]:
        return lambda shards: (float(self.values.sum(dtype="f8")) for _ in shards)


@dataclass(frozen=True)
class Read:
    """Reads some of the work's samples, and gives how many were skipped."""

    count: int
    leaves: ClassVar[bool] = False

    def on(self, held: Ledger) -> Callable[[Sequence[int]], Iterator[tuple[int, Any]]]:
        samples = held.value
        return lambda shards: ((samples.data.source.skipped, samples.read(range(self.count))) for _ in shards)


@dataclass(frozen=True)
class Bytes:
    """Gives so many for each shard."""

    size: int
    leaves: ClassVar[bool] = False

    def on(self, held: Ledger) -> Callable[[Sequence[int]], Iterator[bytes]]:
        return lambda shards: (bytes(self.size) for _ in shards)


def pids(engine: Any) -> set[int]:
    """The processes of its workers."""
    with engine.crew(Keep(), list(range(8))) as crew:
        return {pid for _, _, pid in crew.each(Square())}
