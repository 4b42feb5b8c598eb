"""How long stages tell how far they are, and how long they took.

The command line draws bars from it, a library user may pass any function.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

_LOG = logging.getLogger("onnx_cbq")


class Progress(Protocol):
    """Called with the name of the stage, the steps done and the steps in all."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Take note of the progress of `stage`."""


def silent(stage: str, done: int, total: int) -> None:
    """Tell nobody."""


class Clock:
    """Seconds per stage; while a stage runs within another, the other's time stands still."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what happens inside; a stage that comes again adds up."""
        self._charge()
        _LOG.debug("%s begins", name)
        self._running.append(name)
        try:
            yield
        finally:
            self._charge()
            self._running.pop()
            _LOG.info("%s: %.3f s so far", name, self.seconds[name])

    def _charge(self) -> None:
        """Count the time since the last change for the stage that runs."""
        now = time.perf_counter()
        if self._running:
            name = self._running[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now
