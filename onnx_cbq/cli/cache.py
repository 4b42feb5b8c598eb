"""The command `cache`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from onnx_cbq.cli.console import show
from onnx_cbq.cli.shared import Quiet
from onnx_cbq.errors import OutputError
from onnx_cbq.report.cache import cache_table
from onnx_cbq.system.store import Store

_DAY = 24 * 3600.0
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kMGT]?)B?")
_FACTORS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def read_size(text: str) -> float:
    """Bytes: a number, with k, M, G or T behind it.

    Raises:
        BadParameter: it is none.
    """
    found = _SIZE.fullmatch(text)
    if found is None:
        raise typer.BadParameter(f"--largest: expected a size such as 500M or 2G, got {text}")
    return float(found[1]) * _FACTORS[found[2]]


def cache(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder that quantize --cache was given.", show_default=False)
    ],
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
    """List what runs of quantize keep for the next ones, and make room.

    Nothing but their own files is ever removed. A run that misses one computes it again.
    """
    if clear and (prune is not None or largest is not None):
        raise typer.BadParameter("--clear removes everything; leave out --prune and --largest")
    store = Store(folder)
    room = 0.0 if clear else math.inf if largest is None else read_size(largest)
    removed = []
    try:
        if clear or prune is not None or largest is not None:
            removed = store.prune(math.inf if prune is None else prune * _DAY, room)
        found = list(store.entries())
    except OSError as error:
        raise OutputError(f"{error.filename or store.folder}: {error.strerror}; check this folder") from error
    if not quiet:
        show(cache_table(store.folder, found, removed, entries=entries))


def build() -> Callable[..., None]:
    """The command."""
    return cache
