"""How long stages tell how far they are, and how long they took.

The command line draws bars from it, a library user may pass any function.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """Called with the name of the stage, the steps done and the steps in all."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Take note of the progress of `stage`."""


def silent(stage: str, done: int, total: int) -> None:
    """Tell nobody."""


class Clock:
    """Seconds per stage, in the order of the stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what happens inside; a stage that comes again adds up."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
