"""The command `score`."""

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
    CardPath,
    Logits,
    ModelPath,
    Quiet,
    SkipUnreadable,
    SourcePath,
)
from onnx_cbq.execution.settings import ExecutionConfig
from onnx_cbq.jobs import score as job
from onnx_cbq.jobs.settings import QuantizeConfig
from onnx_cbq.report import text as report
from onnx_cbq.settings import SAMPLES
from onnx_cbq.storage.files import write_arrays

Samples = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Samples, drawn evenly from the classes that have any; 0 takes all (default: 1000, or 2 of each class).",
        show_default=False,
        rich_help_panel=SAMPLES,
    ),
]
Seed = Annotated[int, typer.Option(metavar="N", help="Decides which samples are drawn.", rich_help_panel=SAMPLES)]


def score(
    model: ModelPath,
    data: CardPath,
    source: SourcePath = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.npz",
            help="Write beta and gamma of every layer to this file (default: none).",
            show_default=False,
        ),
    ] = None,
    samples: Samples = None,
    seed: Seed = QuantizeConfig.seed,
    logits: Logits = None,
    skip_unreadable: SkipUnreadable = None,
    quiet: Quiet = None,
    *,
    runs: ExecutionConfig,
) -> None:
    """Score every channel of MODEL by how many classes need it."""
    check_outputs(output, inputs=Inputs((model,), data, source))
    config = QuantizeConfig(samples="auto" if samples is None else samples or None, seed=seed, logits=logits)
    card = CalibrationSet.from_card(data, source, skip_unreadable=bool(skip_unreadable))
    with progress_bars(quiet=bool(quiet)) as progress:
        layers, scores = job.score(model, card, config, progress, runs)
    if output:
        write_arrays(output, scores.arrays())
    if not quiet:
        show(report.score_table(layers, scores))


def build() -> Callable[..., None]:
    """The command."""
    return with_settings(score, "runs", ExecutionConfig)
