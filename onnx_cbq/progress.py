"""How long stages tell how far they are; the command line draws bars from it, a library user may pass any function."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called with the name of the stage, the steps done and the steps in all."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Take note of the progress of `stage`."""


def silent(stage: str, done: int, total: int) -> None:
    """Tell nobody."""
