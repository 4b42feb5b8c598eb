"""The command `step`: nested subnets of a model, as steps that build on each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnx_cbq import report
from onnx_cbq.calibration import CalibrationSet
from onnx_cbq.config import StepConfig
from onnx_cbq.console import (
    Augment,
    CardPath,
    JsonPath,
    Logits,
    ModelPath,
    Quiet,
    Seed,
    SkipUnreadable,
    SourcePath,
    Views,
    progress_bars,
    show,
)
from onnx_cbq.emit.files import write_text
from onnx_cbq.errors import ConfigError
from onnx_cbq.outputs import Folder, Inputs, check_outputs
from onnx_cbq.subnets import STEP_FILES, make_steps

_DEFAULT = StepConfig()
_MACS = ",".join(f"{share:g}" for share in _DEFAULT.macs)


def step(
    model: ModelPath,
    data: CardPath,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write.", show_default=False)],
    source: SourcePath = None,
    macs: Annotated[
        str, typer.Option(metavar="A,B,C", help="Share of the multiplications that each subnet may have, rising.")
    ] = _MACS,
    width: Annotated[
        float | None,
        typer.Option(
            metavar="1..2",
            help="Times as wide a net that channels are taken from.",
            show_default="as wide as --macs needs",
        ),
    ] = None,
    minutes: Annotated[float, typer.Option(metavar="M", help="Train so long at most.")] = _DEFAULT.minutes,
    steps: Annotated[int, typer.Option(metavar="N", help="Train so many steps at most.")] = _DEFAULT.steps,
    beta: Annotated[
        float, typer.Option(metavar="B", help="What a subnet changes in one that is j smaller counts B^j.")
    ] = _DEFAULT.beta,
    alpha: Annotated[
        float, typer.Option(metavar="0..1", help="Share of the labels in what is learned; 0 needs none.")
    ] = _DEFAULT.alpha,
    augment: Augment = None,
    views: Views = 1,
    bits: Annotated[
        int | None,
        typer.Option(
            "--quantize", metavar="BITS", help="Quantize the weights of every step, 2 to 8 bits.", show_default="float"
        ),
    ] = None,
    seed: Seed = 0,
    logits: Logits = None,
    skip_unreadable: SkipUnreadable = False,
    json: JsonPath = None,
    quiet: Quiet = False,
) -> None:
    """Split MODEL into steps that give an answer early and better it without recomputing; needs torch."""
    config = StepConfig(
        macs=_shares(macs),
        width=width,
        minutes=minutes,
        steps=steps,
        beta=beta,
        alpha=alpha,
        augment=tuple(augment or ()),
        views=views,
        bits=bits,
        seed=seed,
        logits=logits,
    )
    check_outputs(json, inputs=Inputs((model,), data, source), folder=Folder(output, STEP_FILES))
    card = CalibrationSet.from_card(data, source, skip_unreadable=skip_unreadable)
    with progress_bars(quiet=quiet) as progress:
        result = make_steps(model, card, config, progress)
    result.save(output)
    if json:
        write_text(json, result.to_json())
    if not quiet:
        show(report.steps_table(result, output))


def _shares(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--macs {text}: expected shares such as 0.1,0.3,0.5,0.85") from None
