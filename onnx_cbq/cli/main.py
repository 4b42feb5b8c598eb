"""The commands, each imported when it is needed, and what becomes of errors: exit codes."""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
import typer.core
import typer.main

from onnx_cbq.errors import OnnxCbqError, StoppedError
from onnx_cbq.system import stopping

# An environment variable: what nobody foresaw ends with Python's own account of it.
TRACEBACK = "ONNX_CBQ_TRACEBACK"
# What a line of a log begins with.
_STAMP, _STAMP_BYTES = re.compile(rb"\d{4}-\d\d-\d\d "), 11
_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True)
class Command:
    """A command: the module of this folder whose `build` makes it, and what it does, in a line."""

    name: str
    module: str
    about: str


COMMANDS = (
    Command(
        "quantize",
        "quantize",
        "Quantize MODEL and prove what it costs: accuracy overall and per class, bytes, latency.",
    ),
    Command(
        "evaluate",
        "evaluate",
        "Run MODEL on all samples of a card: accuracy overall and per class, bytes, latency at batch 1.",
    ),
    Command(
        "compare",
        "compare",
        "Hold models against the first of them, sample by sample: who is right, bytes, latency, disagreements.",
    ),
    Command(
        "debug",
        "debug",
        "Say which layer of QUANTIZED hurts, and why: each by itself beside FLOAT, its kernel, and what saturates.",
    ),
    Command("report", "report", "Make a page for a browser of what quantize, compare or debug wrote with --json."),
    Command(
        "card", "card", "Write a first card for MODEL: try the well-known ways to prepare samples, and measure each."
    ),
    Command("score", "score", "Score every channel of MODEL by how many classes need it."),
    Command("inspect", "inspect", "List the layers of a float MODEL, or the bits per layer of one that onnx-cbq made."),
    Command(
        "check", "check", "Hold a quantized FILE, of this or another tool, against what a runtime and a processor need."
    ),
    Command(
        "archive",
        "archive",
        "Make MODEL a small file for storage and transfer, its weights coded close to their entropy.",
    ),
    Command("restore", "restore", "Make the ONNX file again that ARCHIVE was made from, bit for bit."),
    Command("cache", "cache", "List what runs keep for the next ones, and make room."),
    Command(
        "step",
        "step",
        "Split MODEL into steps that give an answer early and better it without recomputing; needs torch.",
    ),
)


class Commands(typer.core.TyperGroup):
    """Imports a command when it runs, and makes Ctrl-C one of our errors, where nothing mistakes it for its own."""

    def __init__(self, **told: Any) -> None:
        super().__init__(**told)
        # Enough of each command to list it, and to name the nearest to what was mistyped.
        self.commands = {entry.name: typer.core.TyperCommand(entry.name, help=entry.about) for entry in COMMANDS}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command itself, with its options."""
        name, stub, rest = super().resolve_command(ctx, args)
        found = {command.name: command for command in COMMANDS}.get(str(name))
        loaded = stub if found is None else load(found)
        # Not before: an exception that is raised within the import of a library may end in its native code.
        stopping.start_raising()
        return name, loaded, rest

    def invoke(self, ctx: Any) -> object:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise StoppedError(stopping.MESSAGE) from None


def load(found: Command) -> Any:
    """A command with its options, from its module."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(found.name)(import_module(f"onnx_cbq.cli.{found.module}").build())
    return typer.main.get_command(app)


app = typer.Typer(
    cls=Commands,
    help="Quantize an exported ONNX classifier, with a bit width of its own for every filter and neuron.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _show_versions(wanted: bool) -> None:  # noqa: FBT001  # typer calls it so
    if not wanted:
        return
    # Only here, since it looks at the processor.
    from onnx_cbq.system.processor import processor_kind  # noqa: PLC0415

    print(f"onnx-cbq {version('onnx-cbq')}")  # noqa: T201
    for package in ("onnx", "onnxruntime", "numpy", "torch"):
        try:
            print(f"{package} {version(package)}")  # noqa: T201
        except PackageNotFoundError:
            print(f"{package} is not installed")  # noqa: T201
    print(f"processor {processor_kind()}")  # noqa: T201
    raise typer.Exit


@app.callback()
def _common(
    log_level: Annotated[
        str, typer.Option(metavar="|".join(_LEVELS), help="What --log-file, or stderr, is told.")
    ] = "warning",
    log_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a log to this file (default: stderr).", show_default=False),
    ] = None,
    show_versions: Annotated[
        bool,
        typer.Option(
            "--version", help="Show versions, and the kind of processor.", is_eager=True, callback=_show_versions
        ),
    ] = False,
) -> None:
    """Quantize an exported ONNX classifier, with a bit width of its own for every filter and neuron."""
    del show_versions
    if log_level not in _LEVELS:
        raise typer.BadParameter(f"--log-level: expected {' or '.join(_LEVELS)}, got {log_level}")
    logger = logging.getLogger("onnx_cbq")
    logger.setLevel(log_level.upper())
    if log_file is not None and not _may_log_to(log_file):
        raise typer.BadParameter(
            f"--log-file {log_file}: is another file of this command, or no log; give another file"
        )
    try:
        handler = logging.StreamHandler() if log_file is None else logging.FileHandler(log_file, encoding="utf-8")
    except OSError as error:
        raise typer.BadParameter(f"--log-file {log_file}: {error.strerror}; give another file") from None
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for old in logger.handlers:
        old.close()
    logger.handlers = [handler]


def _may_log_to(path: Path) -> bool:
    """Whether a file can be a log: not there yet, or one that was written before, and nothing else of the command."""
    others = [os.path.realpath(word) for word in sys.argv[1:] if word != str(path)]
    same = sum(word == str(path) for word in sys.argv[1:]) > 1 or os.path.realpath(path) in others
    if same or not path.exists():
        return not same
    try:
        with path.open("rb") as file:
            start = file.read(_STAMP_BYTES)
    except OSError:
        return True  # whoever opens it says what is wrong
    return not start or _STAMP.fullmatch(start) is not None


def main() -> None:
    """Run the command line.

    Exit codes: 0 done, 1 known error, 2 usage, 3 a check or a requested limit not met, 130 Ctrl-C or SIGTERM.
    """
    # Only here: a terminal is not looked at before there is something to say.
    from onnx_cbq.cli.console import prepare_streams  # noqa: PLC0415

    prepare_streams()
    try:
        app(standalone_mode=True)
    except OnnxCbqError as error:
        _end(str(error), error.exit_code)
    except Exception as error:
        if stopping.is_pending():
            _end(stopping.MESSAGE, StoppedError.exit_code)
        if TRACEBACK in os.environ:
            raise
        _end(_unforeseen(error), OnnxCbqError.exit_code)


def _end(message: str, code: int) -> NoReturn:
    from onnx_cbq.cli.console import ERR  # noqa: PLC0415

    ERR.print(f"onnx-cbq: {' '.join(message.splitlines())}", soft_wrap=True)
    sys.exit(code)


def _unforeseen(error: Exception) -> str:
    """What the system refused is nobody's fault; the rest is ours."""
    if isinstance(error, MemoryError):
        return f"out of memory: {error or 'no more is left'}; use fewer --samples, or a machine with more memory"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror or type(error).__name__}; check this file and its folder"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(frame.filename).name}:{frame.lineno}"
    return (
        f"unforeseen {type(error).__name__} at {where}: {error}; this is a fault of onnx-cbq: please report it with "
        f"what the same command prints where the environment variable {TRACEBACK} is set"
    )
