"""The command `compare`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from onnx_cbq.calibration import CalibrationSet
from onnx_cbq.cli.console import show
from onnx_cbq.cli.options import with_settings
from onnx_cbq.cli.outputs import Inputs, check_outputs
from onnx_cbq.cli.progress import progress_bars
from onnx_cbq.cli.shared import (
    AllClasses,
    CardPath,
    JsonPath,
    Logits,
    Quiet,
    ReportPath,
    SkipUnreadable,
    SourcePath,
)
from onnx_cbq.execution.settings import ExecutionConfig
from onnx_cbq.jobs import compare as job
from onnx_cbq.report.comparison import comparison_table
from onnx_cbq.storage.files import write_text
from onnx_cbq.verification.entries import files_of


def compare(
    models: Annotated[
        list[Path],
        typer.Argument(
            metavar="MODEL...",
            help="ONNX files of any tool, archives, and folders of steps; the others are held against the first.",
            show_default=False,
        ),
    ],
    data: CardPath,
    source: SourcePath = None,
    logits: Logits = None,
    skip_unreadable: SkipUnreadable = None,
    all_classes: AllClasses = None,
    json: JsonPath = None,
    report: ReportPath = None,
    quiet: Quiet = None,
    *,
    runs: ExecutionConfig,
) -> None:
    """Hold models against the first of them, sample by sample: who is right, bytes, latency, disagreements."""
    files = [path for model in models if model.is_dir() for path in files_of(model)]
    check_outputs(
        json, report, inputs=Inputs(tuple(path for path in models if not path.is_dir()), data, source, tuple(files))
    )
    card = CalibrationSet.from_card(data, source, skip_unreadable=bool(skip_unreadable))
    with progress_bars(quiet=bool(quiet)) as progress:
        result = job.compare(models, card, logits, progress, runs)
    if json:
        write_text(json, result.to_json())
    if report:
        result.report(report)
    if not quiet:
        show(comparison_table(result, all_classes=bool(all_classes)))


def build() -> Callable[..., None]:
    """The command."""
    return with_settings(compare, "runs", ExecutionConfig, without=["provider"])
