"""Work over shards, and who does it.

A *work* is what a worker starts with: a model, samples. A *task* is done on every shard of it, and gives a piece for
each. The pieces come back in the order of the shards, whoever made them, so whoever adds them up gets the same bytes
from every engine. A worker keeps its shards, so a task may go on from what the last one left of them.

    with engine.crew(work, shards) as crew:
        for piece in crew.each(task): ...

What is written of work, tasks and shards must not depend on how many workers there are: a shard is a batch of samples,
or some batches that belong together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, Self, TypeVar

from onnx_cbq.model import Model
from onnx_cbq.runtime import CPU, Session
from onnx_cbq.system.blas import one_thread

H = TypeVar("H")
S = TypeVar("S")
P = TypeVar("P")
H_co = TypeVar("H_co", covariant=True)
H_contra = TypeVar("H_contra", contravariant=True)
S_contra = TypeVar("S_contra", contravariant=True)
P_co = TypeVar("P_co", covariant=True)


@dataclass(frozen=True)
class ModelFile:
    """A file to run as it is.

    Attributes:
        float_weights: as `runtime.Session` has it.
        content: what lies there, where the file itself cannot be seen.
    """

    path: Path
    float_weights: bool = False
    content: bytes | None = None


@dataclass(frozen=True)
class Place:
    """What a worker has to run models with.

    Attributes:
        threads: that one operator is spread over, 0 for as many as there are cores.
        provider: what runs the float model, as `runtime.find_provider` takes it.
    """

    threads: int = 0
    provider: str = CPU

    def session(self, model: Model | ModelFile, *, plain: bool = False) -> Session:
        """The model, ready to run here; a file on the CPU, as it is meant to run; a `plain` one in float throughout."""
        if isinstance(model, Model):
            return Session(model, float_weights=plain, threads=self.threads, provider=self.provider)
        source = model.path if model.content is None else model.content
        return Session(source, float_weights=model.float_weights, threads=self.threads)


class Work(Protocol[H_co]):
    """What workers start with. It is sent to each of them once."""

    def start(self, place: Place) -> H_co:
        """What a worker holds while it has the work."""


class Task(Protocol[H_contra, S_contra, P_co]):
    """What is done on every shard.

    Attributes:
        leaves: whether it changes what workers hold of a shard. Then it is done again for whoever takes over a shard.
    """

    leaves: ClassVar[bool]

    def on(self, held: H_contra) -> Callable[[Sequence[S_contra]], Iterator[P_co]]:
        """Called once in a worker; what it returns gives a piece for each of some shards, in their order."""


class Crew(ABC):
    """Workers that have started a work, each with its shards."""

    @abstractmethod
    def each(self, task: Task[H, S, P]) -> Iterator[P]:
        """The piece of every shard, in the order of the shards. Whoever has seen enough may stop asking.

        Raises:
            OnnxCbqError: what the task raises, or workers are lost again and again.
        """

    def close(self) -> None:  # noqa: B027, there may be nothing to do
        """Let the workers forget the work."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Engine(Protocol):
    """Who does the work."""

    @property
    def place(self) -> Place:
        """What each worker has to run models with."""

    def crew(self, work: Work[H], shards: Sequence[S]) -> Crew:
        """Workers for these shards."""


@dataclass(frozen=True)
class InProcess:
    """The engine of a run that asks for none: one process, with all its threads."""

    place: Place = Place()

    def crew(self, work: Work[H], shards: Sequence[S]) -> Crew:
        """One worker for all shards."""
        return _Alone(work.start(self.place), shards)


@dataclass(frozen=True)
class _Alone(Crew):
    held: object
    shards: Sequence[object]

    def each(self, task: Task[H, S, P]) -> Iterator[P]:
        """Pieces as they are asked for."""
        # The work and the shards that the task was made for.
        with one_thread():
            run = task.on(self.held)  # type: ignore[arg-type]
        return in_one_thread(run(self.shards))  # type: ignore[arg-type]


def in_one_thread(pieces: Iterator[P]) -> Iterator[P]:
    """The pieces, with numpy's products in one thread while they are made: the same digits in every engine."""
    while True:
        with one_thread():
            try:
                piece = next(pieces)
            except StopIteration:
                return
        yield piece


IN_PROCESS = InProcess()
