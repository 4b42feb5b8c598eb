"""The command `archive`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from onnx_cbq.cli.console import show
from onnx_cbq.cli.outputs import Inputs, beside, check_outputs
from onnx_cbq.cli.shared import JsonPath, Quiet
from onnx_cbq.report import text as report
from onnx_cbq.storage import Archived
from onnx_cbq.storage.archive import archive as make_archive
from onnx_cbq.storage.coding.container import CODERS
from onnx_cbq.storage.files import write_text


def archive(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="The ONNX file that quantize wrote.", show_default=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT.cbqz",
            help="File to write (default: MODEL with the ending .cbqz).",
            show_default=False,
        ),
    ] = None,
    coder: Annotated[
        str,
        typer.Option(metavar="|".join(CODERS), help="ans: close to the entropy; huffman: to compare."),
    ] = Archived.coder,
    json: JsonPath = None,
    quiet: Quiet = None,
) -> None:
    """Make MODEL a small file for storage and transfer, its weights coded close to their entropy."""
    target = output or beside(model, ".cbqz")
    check_outputs(target, json, inputs=Inputs((model,)))
    made = make_archive(model, coder)
    made.save(target)
    if json:
        write_text(json, made.to_json())
    if not quiet:
        show(report.archive_table(made, target))


def build() -> Callable[..., None]:
    """The command."""
    return archive
