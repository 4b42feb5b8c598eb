"""The command `step`: nested subnets of a model, as steps that build on each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from onnx_cbq.calibration import CalibrationSet
from onnx_cbq.cli.console import show
from onnx_cbq.cli.options import Flag, Owner, command, fields_for, flags_of, given_values
from onnx_cbq.cli.outputs import Folder, Inputs, check_outputs
from onnx_cbq.cli.progress import progress_bars
from onnx_cbq.cli.shared import (
    CacheFolder,
    CardPath,
    JsonPath,
    ModelPath,
    NoCache,
    Quiet,
    SkipUnreadable,
    SourcePath,
    cache_folder,
)
from onnx_cbq.jobs.step import STEP_FILES, make_steps
from onnx_cbq.report import text as report
from onnx_cbq.settings import FIRST
from onnx_cbq.storage.files import write_text
from onnx_cbq.training.settings import StepConfig

ABOUT = "Split MODEL into steps that give an answer early and better it without recomputing; needs torch."
FIXED: Mapping[str, Any] = {
    "model": ModelPath,
    "data": CardPath,
    "output": Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Folder to write.", show_default=False, rich_help_panel=FIRST
        ),
    ],
    "source": SourcePath,
    "skip_unreadable": SkipUnreadable,
    "cache": CacheFolder,
    "no_cache": NoCache,
    "json": JsonPath,
    "quiet": Quiet,
}


def build() -> Callable[..., None]:
    """The command, with an option for every setting that there is."""
    flags = flags_of([Owner(StepConfig)])
    return command(lambda **given: step(flags, given), flags, FIXED, ABOUT)


def step(flags: Sequence[Flag], given: Mapping[str, Any]) -> None:
    """Run the command with what was typed, a parameter by its name."""
    config = StepConfig(**fields_for(StepConfig, flags, given_values(flags, given, {})))
    model, data, output, source, json = (given[name] for name in ("model", "data", "output", "source", "json"))
    check_outputs(json, inputs=Inputs((model,), data, source), folder=Folder(output, STEP_FILES))
    cache = cache_folder(given["cache"], without=bool(given["no_cache"]))
    card = CalibrationSet.from_card(data, source, skip_unreadable=bool(given["skip_unreadable"]))
    with progress_bars(quiet=bool(given["quiet"])) as progress:
        result = make_steps(model, card, config, progress, cache)
    result.save(output)
    if json:
        write_text(json, result.to_json())
    if not given["quiet"]:
        show(report.steps_table(result, output))
