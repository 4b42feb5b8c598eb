"""The command `card`: a first card for a model and samples, by measuring what is well known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from onnx_cbq.calibration.files import read_text
from onnx_cbq.cli.console import show
from onnx_cbq.cli.options import Flag, Owner, command, fields_for, flags_of, given_values
from onnx_cbq.cli.outputs import Inputs, check_outputs
from onnx_cbq.cli.progress import progress_bars
from onnx_cbq.cli.shared import JsonPath, ModelPath, Quiet, SkipUnreadable
from onnx_cbq.errors import CalibrationError, OutputError, VerificationError
from onnx_cbq.jobs.card import find_card
from onnx_cbq.jobs.card_result import CardConfig
from onnx_cbq.report.card import card_table
from onnx_cbq.settings import FIRST, OUTPUT, SAMPLES
from onnx_cbq.storage.files import write_text

ABOUT = "Write a first card for MODEL: try the well-known ways to prepare samples, and measure each."
# Names of tens of thousands of classes fit in.
_LARGEST_LIST = 4 << 20
FIXED: Mapping[str, Any] = {
    "model": ModelPath,
    "source": Annotated[
        str,
        typer.Option(
            "--source",
            metavar="PATH",
            help="Labelled samples: a file, a folder, a pattern of several files, or a URL.",
            show_default=False,
            rich_help_panel=FIRST,
        ),
    ],
    "output": Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="CARD",
            help="Card to write (default: it is printed).",
            show_default=False,
            rich_help_panel=FIRST,
        ),
    ],
    "classes": Annotated[
        Path | None,
        typer.Option(
            "--classes",
            metavar="FILE",
            help="Names of the classes in the order of the model's outputs, one a line (default: the source's order).",
            show_default=False,
            rich_help_panel=SAMPLES,
        ),
    ],
    "overwrite": Annotated[
        bool | None,
        typer.Option(
            "--overwrite",
            help="Replace a card that is there (default: refuse to).",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ],
    "skip_unreadable": SkipUnreadable,
    "json": JsonPath,
    "quiet": Quiet,
}


def build() -> Callable[..., None]:
    """The command, with an option for every setting that there is."""
    flags = flags_of([Owner(CardConfig)])
    return command(lambda **given: card(flags, given), flags, FIXED, ABOUT)


def card(flags: Sequence[Flag], given: Mapping[str, Any]) -> None:
    """Run the command with what was typed, a parameter by its name."""
    config = CardConfig(**fields_for(CardConfig, flags, given_values(flags, given, {})))
    model, source, output, classes, json = (given[name] for name in ("model", "source", "output", "classes", "json"))
    check_outputs(output, json, inputs=Inputs((model,), source=source, others=(classes,)))
    if output is not None and output.exists() and not given["overwrite"]:
        raise OutputError(f"{output}: exists, and cards are edited by hand; give another name, or --overwrite")
    names = None if classes is None else _names(classes)
    with progress_bars(quiet=bool(given["quiet"])) as progress:
        result = find_card(model, source, config, names, progress, skip_unreadable=bool(given["skip_unreadable"]))
    if json:
        write_text(json, result.to_json())
    if not given["quiet"]:
        show(card_table(result))
    if result.refusal is not None:
        raise VerificationError(result.refusal)
    if output is not None:
        write_text(output, result.text(output.parent))
    else:
        show("", result.text(Path()).rstrip("\n"))


def _names(path: Path) -> tuple[str, ...]:
    """The lines of a file.

    Raises:
        CalibrationError: it cannot be read, or a name stands twice.
    """
    try:
        lines = [line.strip() for line in read_text(path, _LARGEST_LIST).splitlines()]
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be read: {error.strerror}; give a file with a name a line") from error
    except UnicodeDecodeError:
        raise CalibrationError(f"{path}: is no text; give a file with the name of a class on each line") from None
    names = tuple(filter(None, lines))
    if not names or len(set(names)) < len(names):
        raise CalibrationError(f"{path}: expected a different name on each line; got {len(set(names))} in all")
    return names
