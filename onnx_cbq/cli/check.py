"""The command `check`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from onnx_cbq.cli.console import show
from onnx_cbq.cli.outputs import Inputs, check_outputs
from onnx_cbq.cli.shared import JsonPath, Quiet, TargetName
from onnx_cbq.errors import VerificationError
from onnx_cbq.jobs import inspect as job
from onnx_cbq.report import text as report
from onnx_cbq.storage.files import write_text


def check(
    model: Annotated[Path, typer.Argument(metavar="FILE", help="A quantized ONNX file.", show_default=False)],
    target: TargetName = "cpu",
    json: JsonPath = None,
    quiet: Quiet = None,
) -> None:
    """Hold a quantized FILE, of this or another tool, against what a runtime and a processor need.

    A line per violation, and exit code 3 if there is one.
    """
    check_outputs(json, inputs=Inputs((model,)))
    found = job.check(model, target)
    if json:
        write_text(json, found.to_json())
    if not quiet:
        show(report.check_lines(found, model))
    if found.violations:
        raise typer.Exit(VerificationError.exit_code)


def build() -> Callable[..., None]:
    """The command."""
    return check
