"""The command `restore`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from onnx_cbq.cli.console import show
from onnx_cbq.cli.outputs import Inputs, beside, check_outputs
from onnx_cbq.cli.shared import Quiet
from onnx_cbq.storage.archive import restore as restore_archive
from onnx_cbq.storage.files import write_bytes


def restore(
    source: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="The file that archive wrote.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT.onnx",
            help="File to write (default: ARCHIVE with the ending .onnx).",
            show_default=False,
        ),
    ] = None,
    quiet: Quiet = None,
) -> None:
    """Make the ONNX file again that ARCHIVE was made from, bit for bit."""
    target = output or beside(source, ".onnx")
    check_outputs(target, inputs=Inputs(others=(source,)))
    content = restore_archive(source)
    write_bytes(target, content)
    if not quiet:
        show(f"{target}: {len(content):,} bytes, SHA-256 as archived")


def build() -> Callable[..., None]:
    """The command."""
    return restore
