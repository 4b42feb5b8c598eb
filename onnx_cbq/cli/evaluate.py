"""The command `evaluate`."""

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
    ModelPath,
    Quiet,
    SkipUnreadable,
    SourcePath,
)
from onnx_cbq.execution.settings import ExecutionConfig
from onnx_cbq.jobs import evaluate as job
from onnx_cbq.report import text as report
from onnx_cbq.storage.files import write_text


def evaluate(
    model: ModelPath,
    data: CardPath,
    source: SourcePath = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="FLOAT.onnx",
            help="Model to compare with, prediction by prediction (default: none).",
            show_default=False,
        ),
    ] = None,
    logits: Logits = None,
    skip_unreadable: SkipUnreadable = None,
    all_classes: AllClasses = None,
    json: JsonPath = None,
    quiet: Quiet = None,
    *,
    runs: ExecutionConfig,
) -> None:
    """Run MODEL on all samples of a card: accuracy overall and per class, bytes, latency at batch 1."""
    check_outputs(json, inputs=Inputs((model, reference), data, source))
    card = CalibrationSet.from_card(data, source, skip_unreadable=bool(skip_unreadable))
    with progress_bars(quiet=bool(quiet)) as progress:
        result = job.evaluate(model, card, reference, logits, progress, runs)
    if json:
        write_text(json, result.to_json())
    if not quiet:
        show(report.evaluation_table(result, all_classes=bool(all_classes)))


def build() -> Callable[..., None]:
    """The command."""
    return with_settings(evaluate, "runs", ExecutionConfig, without=["provider"])
