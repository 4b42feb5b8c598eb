"""The terminal: where results and errors go."""

from __future__ import annotations

import io
import os
import sys

from rich.console import Console, RenderableType

from onnx_cbq.errors import OutputError


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
