"""The command `report`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from onnx_cbq.cli.console import show
from onnx_cbq.cli.outputs import Inputs, check_outputs
from onnx_cbq.errors import ConfigError
from onnx_cbq.graph.reading import read_file
from onnx_cbq.pages import make_page
from onnx_cbq.settings import FIRST
from onnx_cbq.storage.files import write_text


def report(
    result: Annotated[
        Path,
        typer.Argument(
            metavar="RESULT.json", help="What quantize, compare or debug wrote with --json.", show_default=False
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PAGE.html",
            help="File to write (default: RESULT with the ending .html).",
            show_default=False,
            rich_help_panel=FIRST,
        ),
    ] = None,
) -> None:
    """Make a page for a browser of what quantize, compare or debug wrote with --json."""
    path = output or result.with_suffix(".html")
    check_outputs(path, inputs=Inputs(others=(result,)))
    try:
        found = json.loads(read_file(result, "a result"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{result}: no JSON ({error!s:.80}); give what --json wrote") from error
    page = make_page(found, str(result))
    write_text(path, page)
    show(f"{path}: {len(page.encode()):,} bytes")


def build() -> Callable[..., None]:
    """The command."""
    return report
