"""The terminal: where results, errors and progress bars go."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from onnx_cbq.errors import OutputError
from onnx_cbq.system.progress import Progress as ProgressHook
from onnx_cbq.system.progress import silent


class _Output(Console):
    """Where results are printed."""

    def on_broken_pipe(self) -> None:
        """Who read them has gone, so nobody is left to be told, and the command has done its work."""
        self.quiet = True
        _discard_output()


# Names come from models and cards: what looks like markup in them, or like an emoji, is text.
OUT = _Output(soft_wrap=True, markup=False, emoji=False, highlight=False)
ERR = Console(stderr=True, markup=False, emoji=False, highlight=False)


def show(*parts: RenderableType) -> None:
    """Print what a command found. Its files are written by now, so what goes wrong here loses nothing of them.

    Raises:
        OutputError: stdout cannot be written to.
    """
    try:
        for part in parts:
            OUT.print(part)
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        _discard_output()
        raise OutputError(
            f"stdout: cannot be written: {error.strerror}; every file of this command is complete"
        ) from error


def prepare_streams() -> None:
    """Let no name fail to be printed: where the encoding lacks a character, its number is shown."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _discard_output() -> None:
    """What is left in the buffer goes nowhere, or the interpreter would try again at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


@contextmanager
def progress_bars(*, quiet: bool) -> Iterator[ProgressHook]:
    """Bars on stderr, one per stage; none where stderr is not a terminal."""
    if quiet:
        yield silent
        return
    columns = (
        TextColumn("{task.description:>12}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=ERR, transient=True, disable=not ERR.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def update(stage: str, done: int, total: int) -> None:
            # Behind a comma stands what changes: a loss, an accuracy.
            name = stage.partition(",")[0]
            if name not in tasks:
                tasks[name] = bars.add_task(stage, total=total)
            bars.update(tasks[name], description=stage, completed=done, total=total)

        yield update
