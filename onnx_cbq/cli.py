"""The command line: flags become settings, settings go through the pipeline, errors become exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from onnx_cbq import pipeline, report, stopping
from onnx_cbq.calibration import CalibrationSet
from onnx_cbq.cli_quantize import quantize
from onnx_cbq.cli_step import step
from onnx_cbq.config import (
    CODERS,
    QuantizeConfig,
)
from onnx_cbq.console import (
    ERR,
    CardPath,
    Commands,
    JsonPath,
    Logits,
    ModelPath,
    Quiet,
    Samples,
    Seed,
    SkipUnreadable,
    SourcePath,
    TargetName,
    prepare_streams,
    progress_bars,
    sample_count,
    show,
)
from onnx_cbq.data_free import layer_statistics
from onnx_cbq.emit.archive import archive as make_archive
from onnx_cbq.emit.archive import restore as restore_archive
from onnx_cbq.emit.files import write_arrays, write_bytes, write_text
from onnx_cbq.errors import OnnxCbqError, StoppedError, VerificationError
from onnx_cbq.outputs import Inputs, beside, check_outputs

# An environment variable: what nobody foresaw ends with Python's own account of it.
TRACEBACK = "ONNX_CBQ_TRACEBACK"

app = typer.Typer(
    cls=Commands,
    help="Quantize an exported ONNX classifier, with a bit width of its own for every filter and neuron.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(quantize)


@app.command()
def evaluate(
    model: ModelPath,
    data: CardPath,
    source: SourcePath = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="FLOAT.onnx", help="Model to compare with, prediction by prediction.", show_default="none"
        ),
    ] = None,
    logits: Logits = None,
    skip_unreadable: SkipUnreadable = False,
    json: JsonPath = None,
    quiet: Quiet = False,
) -> None:
    """Run MODEL on all samples of a card: accuracy overall and per class, bytes, latency at batch 1."""
    check_outputs(json, inputs=Inputs((model, reference), data, source))
    card = CalibrationSet.from_card(data, source, skip_unreadable=skip_unreadable)
    with progress_bars(quiet=quiet) as progress:
        result = pipeline.evaluate(model, card, reference, logits, progress)
    if json:
        write_text(json, result.to_json())
    if not quiet:
        show(report.evaluation_table(result))


@app.command()
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
            help="Write beta and gamma of every layer to this file.",
            show_default="none",
        ),
    ] = None,
    samples: Samples = None,
    seed: Seed = 0,
    logits: Logits = None,
    skip_unreadable: SkipUnreadable = False,
    quiet: Quiet = False,
) -> None:
    """Score every channel of MODEL by how many classes need it."""
    check_outputs(output, inputs=Inputs((model,), data, source))
    config = QuantizeConfig(samples=sample_count(samples), seed=seed, logits=logits)
    card = CalibrationSet.from_card(data, source, skip_unreadable=skip_unreadable)
    with progress_bars(quiet=quiet) as progress:
        layers, scores = pipeline.score(model, card, config, progress)
    if output:
        write_arrays(output, scores.arrays())
    if not quiet:
        show(report.score_table(layers, scores))


@app.command()
def inspect(
    model: ModelPath,
    weights: Annotated[
        bool,
        typer.Option("--weights", help="Show how each scheme of --data-free fits each layer.", show_default="no"),
    ] = False,
    bits: Annotated[int, typer.Option(metavar="B", help="Width that --weights looks at, 2 to 8.")] = 4,
    per_tensor: Annotated[
        bool, typer.Option("--per-tensor", help="--weights: one scale per layer.", show_default="one per channel")
    ] = False,
) -> None:
    """List the layers of a float MODEL, or the bits per layer of one that onnx-cbq made."""
    if weights:
        show(report.weights_table(layer_statistics(model, bits, per_tensor=per_tensor), bits))
        return
    found = pipeline.inspect(model)
    if found.plan is not None:
        show(report.plan_table(found.plan, found.unsafe))
    elif found.products:
        show(report.products_table(found.products, found.unsafe))
    if found.layers.layers:
        show(report.float_table(found.layers))


@app.command()
def check(
    model: Annotated[Path, typer.Argument(metavar="FILE", help="A quantized ONNX file.", show_default=False)],
    target: TargetName = "cpu",
    json: JsonPath = None,
    quiet: Quiet = False,
) -> None:
    """Hold a quantized FILE, of this or another tool, against what a runtime and a processor need.

    A line per violation, and exit code 3 if there is one.
    """
    check_outputs(json, inputs=Inputs((model,)))
    found = pipeline.check(model, target)
    if json:
        write_text(json, found.to_json())
    if not quiet:
        show(report.check_lines(found, model))
    if found.violations:
        raise typer.Exit(VerificationError.exit_code)


@app.command()
def archive(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="The ONNX file that quantize wrote.", show_default=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="OUT.cbqz", help="File to write.", show_default="MODEL with the ending .cbqz"
        ),
    ] = None,
    coder: Annotated[
        str,
        typer.Option(metavar="|".join(CODERS), help="ans: close to the entropy; huffman: to compare."),
    ] = "ans",
    json: JsonPath = None,
    quiet: Quiet = False,
) -> None:
    """Make MODEL a small file for storage and transfer, its weights coded close to their entropy."""
    target = output or beside(model, ".cbqz")
    check_outputs(target, json, inputs=Inputs((model,)))
    made = make_archive(model, coder)
    made.save(target)
    if json:
        write_text(json, made.to_json())
    if not quiet:
        show(report.archive_table(made, target))


@app.command()
def restore(
    source: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="The file that archive wrote.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="OUT.onnx", help="File to write.", show_default="ARCHIVE with the ending .onnx"
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Make the ONNX file again that ARCHIVE was made from, bit for bit."""
    target = output or beside(source, ".onnx")
    check_outputs(target, inputs=Inputs(others=(source,)))
    content = restore_archive(source)
    write_bytes(target, content)
    if not quiet:
        show(f"{target}: {len(content):,} bytes, SHA-256 as archived")


app.command()(step)


def main() -> None:
    """Run the command line.

    Exit codes: 0 done, 1 known error, 2 usage, 3 a check or a requested limit not met, 130 Ctrl-C or SIGTERM.
    """
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
