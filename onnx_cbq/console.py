"""What the commands share: options, the terminal, progress bars, and how to read an option that is more than a word."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer
import typer.core
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from onnx_cbq import stopping
from onnx_cbq.clusters import read_groups
from onnx_cbq.config import AUGMENTATIONS, GRANULARITIES
from onnx_cbq.errors import ConfigError, OutputError, StoppedError
from onnx_cbq.progress import Progress as ProgressHook
from onnx_cbq.progress import silent
from onnx_cbq.targets import TARGETS

_N = TypeVar("_N", int, float)


class _Output(Console):
    """Where results are printed."""

    def on_broken_pipe(self) -> None:
        """Who read them has gone, so nobody is left to be told, and the command has done its work."""
        self.quiet = True
        _discard_output()


# Names come from models and cards: what looks like markup in them, or like an emoji, is text.
OUT = _Output(soft_wrap=True, markup=False, emoji=False, highlight=False)
ERR = Console(stderr=True, markup=False, emoji=False, highlight=False)

ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="The ONNX file.", show_default=False)]
CardPath = Annotated[
    Path, typer.Option("--data", metavar="CARD", help="Calibration card: a TOML file.", show_default=False)
]
SourcePath = Annotated[
    Path | None, typer.Option("--source", metavar="PATH", help="Samples to use.", show_default="the card's source")
]
SkipUnreadable = Annotated[
    bool,
    typer.Option(
        "--skip-unreadable",
        help="Leave out images that cannot be read, and count them.",
        show_default="stop at the first",
    ),
]
Logits = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Output with the class scores.", show_default="the only one of shape (samples, classes)"
    ),
]
Samples = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Calibration samples, drawn evenly from the classes that have any; 0 takes all.",
        show_default="1000, or 2 of each class if that is more",
    ),
]
Seed = Annotated[int, typer.Option(metavar="N", help="Decides which samples are drawn.")]
TargetName = Annotated[
    str,
    typer.Option(
        "--target",
        metavar="|".join(target.name for target in TARGETS),
        help="Runtime and processor that the file is for; cpu is onnxruntime on any.",
    ),
]
JsonPath = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write all figures to this file.", show_default="none")
]
Augment = Annotated[
    list[str] | None,
    typer.Option(
        metavar="|".join(AUGMENTATIONS),
        help="Train on mirrored, shifted, blended or pieced images too; repeatable.",
        show_default="none",
    ),
]
Views = Annotated[
    int,
    typer.Option(
        metavar="N",
        help="Learn the float model's answers averaged over N views: mirrored with --augment flip, moved with shift.",
    ),
]
Granularity = Annotated[
    str,
    typer.Option(metavar="|".join(GRANULARITIES), help="--method differentiable: what has a width of its own."),
]
WidthSteps = Annotated[int, typer.Option(metavar="N", help="--method differentiable: so many steps at most.")]
WidthMinutes = Annotated[float, typer.Option(metavar="M", help="--method differentiable: so long at most.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars and no table.", show_default="both")]


class Commands(typer.core.TyperGroup):
    """Turns Ctrl-C into one of our errors, at the one place that nothing below can mistake it for its own."""

    def invoke(self, ctx: Any) -> object:
        """Run a command."""
        stopping.start_raising()
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise StoppedError(stopping.MESSAGE) from None


def show(*parts: RenderableType) -> None:
    """Print what a command found. Its files are written by now, so what goes wrong here loses nothing of them.

    Raises:
        OutputError: stdout cannot be written to.
    """
    try:
        for part in parts:
            OUT.print(part)
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        _discard_output()
        raise OutputError(
            f"stdout: cannot be written: {error.strerror}; every file of this command is complete"
        ) from error


def prepare_streams() -> None:
    """Let no name fail to be printed: where the encoding lacks a character, its number is shown."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _discard_output() -> None:
    """What is left in the buffer goes nowhere, or the interpreter would try again at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def sample_count(samples: int | None) -> int | Literal["auto"] | None:
    """What `QuantizeConfig` calls this number of samples."""
    return "auto" if samples is None else samples or None


def named_number(option: str, entry: str, kind: Callable[[str], _N]) -> tuple[str, _N]:
    """NAME=NUMBER as a pair; the name itself may hold an equals sign."""
    name, _, number = entry.rpartition("=")
    try:
        value = kind(number)
    except ValueError:
        name = ""
    if not name:
        raise ConfigError(f"{option} {entry}: expected NAME=NUMBER")
    return name, value


def read_clusters(text: str | None) -> int | tuple[tuple[str, ...], ...] | None:
    """A number of groups, or those of a file."""
    if text is None or text.isdecimal():
        return None if text is None else int(text)
    return read_groups(Path(text))


@contextmanager
def progress_bars(*, quiet: bool) -> Iterator[ProgressHook]:
    """Bars on stderr, one per stage; none where stderr is not a terminal."""
    if quiet:
        yield silent
        return
    columns = (
        TextColumn("{task.description:>12}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=ERR, transient=True, disable=not ERR.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def update(stage: str, done: int, total: int) -> None:
            # Behind a comma stands what changes: a loss, an accuracy.
            name = stage.partition(",")[0]
            if name not in tasks:
                tasks[name] = bars.add_task(stage, total=total)
            bars.update(tasks[name], description=stage, completed=done, total=total)

        yield update
