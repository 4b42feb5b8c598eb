"""The command `cache`."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from onnx_cbq.cli.console import show
from onnx_cbq.cli.shared import Quiet
from onnx_cbq.errors import ConfigError, OutputError
from onnx_cbq.report.cache import cache_table
from onnx_cbq.system.store import Store
from onnx_cbq.system.user_cache import FOLDER, OFF, read_size, user_folder

_DAY = 24 * 3600.0


def _size(text: str) -> float:
    try:
        return read_size(text)
    except ValueError as error:
        raise typer.BadParameter(f"--largest: {error}") from None


def cache(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DIR]",
            help="A folder that --cache was given (default: the user's cache folder).",
            show_default=False,
        ),
    ] = None,
    prune: Annotated[
        float | None,
        typer.Option(metavar="DAYS", help="Remove what was of no use for so many days.", show_default=False, min=0),
    ] = None,
    largest: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Remove what was longest of no use until the rest takes at most so much: 500M, 2G.",
            show_default=False,
        ),
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Remove everything.")] = False,
    entries: Annotated[bool, typer.Option("--entries", help="Show every entry, and not only every kind.")] = False,
    quiet: Quiet = None,
) -> None:
    """List what runs keep for the next ones, and make room.

    Nothing but their own files is ever removed. A run that misses one computes it again.
    """
    if clear and (prune is not None or largest is not None):
        raise typer.BadParameter("--clear removes everything; leave out --prune and --largest")
    room = 0.0 if clear else math.inf if largest is None else _size(largest)
    folder = folder or user_folder()
    if folder is None:
        raise ConfigError(f"there is no cache: {FOLDER} is {OFF!r}, or the user has no home; name a folder")
    store = Store(folder)
    removed = []
    try:
        if clear or prune is not None or largest is not None:
            removed = store.prune(math.inf if prune is None else prune * _DAY, room)
        found = list(store.entries())
    except OSError as error:
        raise OutputError(f"{error.filename or store.folder}: {error.strerror}; check this folder") from error
    if not folder.is_dir():
        if folder.exists():
            raise OutputError(f"{folder}: no folder; name one")
        if not quiet:
            show(Text(f"{folder}: no such folder; nothing is kept there yet"))
    elif not quiet:
        show(cache_table(store.folder, found, removed, entries=entries))


def build() -> Callable[..., None]:
    """The command."""
    return cache
