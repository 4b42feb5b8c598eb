"""The command `debug`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from onnx_cbq.calibration import CalibrationSet
from onnx_cbq.cli.console import show
from onnx_cbq.cli.outputs import Inputs, check_outputs
from onnx_cbq.cli.progress import progress_bars
from onnx_cbq.cli.shared import CardPath, JsonPath, Logits, Quiet, ReportPath, SkipUnreadable, SourcePath
from onnx_cbq.jobs import debug as job
from onnx_cbq.report.debugging import debug_table
from onnx_cbq.settings import OUTPUT, SAMPLES
from onnx_cbq.storage.files import write_text


def debug(
    model: Annotated[Path, typer.Argument(metavar="FLOAT", help="The float ONNX file.", show_default=False)],
    quantized: Annotated[
        Path,
        typer.Argument(
            metavar="QUANTIZED",
            help="The same model with QuantizeLinear and DequantizeLinear, of any tool, or an archive.",
            show_default=False,
        ),
    ],
    data: CardPath,
    source: SourcePath = None,
    logits: Logits = None,
    samples: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help=f"How many samples are drawn (default: {job.SAMPLES}).",
            show_default=False,
            rich_help_panel=SAMPLES,
        ),
    ] = None,
    skip_unreadable: SkipUnreadable = None,
    all_layers: Annotated[
        bool | None,
        typer.Option(
            "--all-layers",
            help="Show every layer, and not only those that cost most (default: no).",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    json: JsonPath = None,
    report: ReportPath = None,
    quiet: Quiet = None,
) -> None:
    """Say which layer of QUANTIZED hurts, and why: each by itself beside FLOAT, its kernel, and what saturates."""
    check_outputs(json, report, inputs=Inputs((model, quantized), data, source))
    card = CalibrationSet.from_card(data, source, skip_unreadable=bool(skip_unreadable))
    with progress_bars(quiet=bool(quiet)) as progress:
        result = job.debug(model, quantized, card, logits, job.SAMPLES if samples is None else samples, progress)
    if json:
        write_text(json, result.to_json())
    if report:
        result.report(report)
    if not quiet:
        show(debug_table(result, all_layers=bool(all_layers)))


def build() -> Callable[..., None]:
    """The command."""
    return debug
