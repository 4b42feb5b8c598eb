"""The command `quantize`: its options, and which of them go together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnx_cbq import pipeline, report
from onnx_cbq.calibration import CalibrationSet
from onnx_cbq.config import (
    CODEBOOKS,
    CODERS,
    CURVE,
    METHODS,
    RANGES,
    ROUNDINGS,
    SCOPES,
    STORAGES,
    DataFreeConfig,
    DifferentiableConfig,
    QuantizeConfig,
    RefineConfig,
)
from onnx_cbq.console import (
    Augment,
    Granularity,
    JsonPath,
    Logits,
    ModelPath,
    Quiet,
    Samples,
    Seed,
    SkipUnreadable,
    SourcePath,
    TargetName,
    Views,
    WidthMinutes,
    WidthSteps,
    named_number,
    progress_bars,
    read_clusters,
    sample_count,
    show,
)
from onnx_cbq.emit.files import weights_beside, write_text
from onnx_cbq.outputs import Inputs, beside, check_outputs
from onnx_cbq.records.names import split_names
from onnx_cbq.refining import State

# Options of quantize that mean something with --data-free, and those that mean nothing without it.
_WITHOUT_DATA = {"model", "output", "bits", "data_free", "scheme", "per_tensor", "storage", "json", "quiet"}
_ONLY_WITHOUT_DATA = {"scheme", "per_tensor"}
_ONLY_DIFFERENTIABLE = {"granularity", "width_steps", "width_minutes"}
_ONLY_REFINING = {"refine_minutes", "refine_steps", "alpha", "views", "resume"}
_ONLY_LEARNING = {"augment"}


def quantize(
    context: typer.Context,
    model: ModelPath,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="CARD", help="Calibration card: a TOML file; needed but for --data-free.", show_default="none"
        ),
    ] = None,
    source: SourcePath = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT.onnx",
            help="File to write.",
            show_default="MODEL with the ending .quantized.onnx/.cbqz",
        ),
    ] = None,
    bits: Annotated[float, typer.Option(metavar="B", help="Average bits per weight, over all layers.")] = 4.0,
    method: Annotated[
        str,
        typer.Option(
            metavar="|".join(METHODS),
            help="rate-distortion: bits where they lower the loss most; cbq: by class importance; "
            "differentiable: real-valued widths by gradient descent, needs torch; uniform: the same everywhere.",
        ),
    ] = "rate-distortion",
    granularity: Granularity = "channel",
    width_steps: WidthSteps = 200,
    width_minutes: WidthMinutes = 15.0,
    rounding: Annotated[
        str, typer.Option(metavar="|".join(ROUNDINGS), help="compensate: weights make up for each other's errors.")
    ] = "compensate",
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=BITS", help="Width that a layer keeps, by name or pattern; repeatable.", show_default="none"
        ),
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            metavar="A,B,C",
            help="The only classes that matter; the rest may degrade. Repeatable; names with commas in double quotes.",
            show_default="all",
        ),
    ] = None,
    class_weight: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=W", help="What samples of a class count; repeatable.", show_default="1 each"),
    ] = None,
    clusters: Annotated[
        str | None,
        typer.Option(
            metavar="K|FILE",
            help="Tell only groups of classes apart: K groups by confusion, or a file with a line per group.",
            show_default="each class by itself",
        ),
    ] = None,
    storage: Annotated[
        str,
        typer.Option(
            metavar="|".join(STORAGES),
            help="int8: a byte per weight; packed: each takes its bits, unpacked when a session is opened; "
            "archive: --bits are those of an entropy coder, and an archive for restore is written.",
        ),
    ] = "int8",
    coder: Annotated[
        str, typer.Option(metavar="|".join(CODERS), help="--storage archive: huffman is there to compare.")
    ] = "ans",
    codebook: Annotated[
        str,
        typer.Option(
            metavar="|".join(CODEBOOKS),
            help="Values of the weights. uniform: steps; kmeans, hessian-kmeans: 2^B values that weights share; "
            "ecsq: with --storage archive, shared values by error and code length.",
        ),
    ] = "uniform",
    codebook_scope: Annotated[
        str, typer.Option(metavar="|".join(SCOPES), help="Which weights share the values of another --codebook.")
    ] = "layer",
    max_bytes: Annotated[
        int | None,
        typer.Option(
            "--bytes",
            metavar="N",
            help="Find the most bits that fit into a file of this size, in place of --bits; not with int8 storage.",
            show_default="no limit",
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            help="Find the fewest bits that lose no more accuracy, in place of --bits.",
            show_default="no limit",
        ),
    ] = None,
    max_class_drop: Annotated[
        float | None,
        typer.Option(metavar="POINTS", help="No class may lose more accuracy than this.", show_default="no limit"),
    ] = None,
    activation_bits: Annotated[int, typer.Option(metavar="2..8|0", help="One width for all; 0 leaves them float.")] = 8,
    target: TargetName = "cpu",
    no_run_check: Annotated[
        bool,
        typer.Option(
            "--no-run-check",
            help="Do not run integer kernels here; the figures are those of the plain graph.",
            show_default="the result is run as it will run",
        ),
    ] = False,
    activation_range: Annotated[
        str, typer.Option(metavar="|".join(RANGES), help="mse: the range of least squared error.")
    ] = "mse",
    no_equalize: Annotated[
        bool,
        typer.Option(
            "--no-equalize",
            help="Leave channels as they are, even where activations fit better once they are alike.",
            show_default="measured for each pair of layers",
        ),
    ] = False,
    curve: Annotated[
        bool,
        typer.Option("--curve", help="Also show the whole trade-off, 1.5 to 8 bits on average.", show_default="no"),
    ] = False,
    refine: Annotated[
        bool,
        typer.Option(
            "--refine",
            help="Train weights, scales and biases once the bits are chosen; needs torch.",
            show_default="no",
        ),
    ] = False,
    refine_minutes: Annotated[float, typer.Option(metavar="M", help="--refine: train so long at most.")] = 15.0,
    refine_steps: Annotated[int, typer.Option(metavar="N", help="--refine: train so many steps at most.")] = 1200,
    alpha: Annotated[
        float, typer.Option(metavar="0..1", help="--refine: share of the labels in what is learned; 0 needs none.")
    ] = 0.0,
    augment: Augment = None,
    views: Views = 1,
    resume: Annotated[
        bool, typer.Option("--resume", help="--refine: go on where a killed run ended.", show_default="no")
    ] = False,
    data_free: Annotated[
        bool,
        typer.Option("--data-free", help="Use nothing but the weights; activations stay float.", show_default="no"),
    ] = False,
    scheme: Annotated[
        str, typer.Option(metavar="|".join(DataFreeConfig.SCHEMES), help="How --data-free quantizes.")
    ] = "mse",
    per_tensor: Annotated[
        bool, typer.Option("--per-tensor", help="--data-free: one scale per layer.", show_default="one per channel")
    ] = False,
    samples: Samples = None,
    seed: Seed = 0,
    logits: Logits = None,
    ignore_output: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Output beside the class scores that may be lost; repeatable.",
            show_default="all outputs count",
        ),
    ] = None,
    skip_unreadable: SkipUnreadable = False,
    json: JsonPath = None,
    quiet: Quiet = False,
) -> None:
    """Quantize MODEL and prove what it costs: accuracy overall and per class, bytes, latency."""
    destination = output or beside(model, ".quantized.cbqz" if storage == "archive" else ".quantized.onnx")
    _refuse_ignored(context, data_free=data_free, method=method, refine=refine)
    if data_free:
        _quantize_data_free(model, destination, DataFreeConfig(bits, scheme, per_tensor, storage), json, quiet=quiet)
        return
    if data is None:
        raise typer.BadParameter("give a calibration card with --data, or use --data-free")
    changed = tuple(augment or ())
    config = QuantizeConfig(
        bits=bits,
        method=method,
        differentiable=DifferentiableConfig(
            granularity, width_steps, width_minutes, augment=changed if method == "differentiable" else ()
        ),
        rounding=rounding,
        keep=tuple(named_number("--keep", entry, int) for entry in keep or ()),
        classes=tuple(name for text in classes for name in split_names(text, "--classes")) if classes else None,
        class_weights=tuple(named_number("--class-weight", entry, float) for entry in class_weight or ()),
        clusters=read_clusters(clusters),
        storage=storage,
        coder=coder,
        codebook=codebook,
        codebook_scope=codebook_scope,
        bytes=max_bytes,
        max_drop=max_drop,
        curve=_curve(method, codebook, storage) if curve else (),
        max_class_drop=max_class_drop,
        activation_bits=activation_bits,
        activation_range=activation_range,
        target=target,
        run_check=not no_run_check,
        equalize=not no_equalize,
        samples=sample_count(samples),
        seed=seed,
        logits=logits,
        ignore_outputs=tuple(ignore_output or ()),
        refine=RefineConfig(refine_steps, refine_minutes, alpha=alpha, augment=changed, views=views)
        if refine
        else None,
    )
    state = State(destination.with_name(f"{destination.name}.training"), resume) if refine else None
    groups = None if clusters is None or clusters.isdecimal() else Path(clusters)
    check_outputs(
        *(destination, json, weights_beside(destination), state.path if state else None),
        inputs=Inputs((model,), data, source, (groups,)),
    )
    card = CalibrationSet.from_card(data, source, skip_unreadable=skip_unreadable)
    with progress_bars(quiet=quiet) as progress:
        result = pipeline.quantize(model, card, config, progress, state)
    result.save(destination)
    if state is not None:
        state.remove()
    if json:
        write_text(json, result.to_json())
    if not quiet:
        show(report.result_table(result, destination))
        if curve:
            show(report.curve_table(result))


def _curve(method: str, codebook: str, storage: str) -> tuple[float, ...]:
    """The averages of bits of the curve that such a method can have."""
    whole = method == "uniform" or (codebook != "uniform" and storage != "archive")
    return tuple(bits for bits in CURVE if not whole or bits.is_integer())


def _refuse_ignored(context: typer.Context, *, data_free: bool, method: str, refine: bool) -> None:
    """An option that changes nothing is a mistake of whoever gave it."""
    # By name, since typer brings a click of its own in some versions.
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    ignored = given - _WITHOUT_DATA if data_free else given & _ONLY_WITHOUT_DATA
    if ignored:
        options = ", ".join(sorted(f"--{name.replace('_', '-')}" for name in ignored))
        reason = "--data-free uses no samples and leaves activations float" if data_free else "only for --data-free"
        raise typer.BadParameter(f"{reason}; leave out {options}")
    differentiable = method == "differentiable"
    for wanted, missing, names in (
        ("--refine", not refine, _ONLY_REFINING),
        ("--method differentiable", not differentiable, _ONLY_DIFFERENTIABLE),
        ("--refine or --method differentiable", not (refine or differentiable), _ONLY_LEARNING),
    ):
        if missing and given & names:
            options = ", ".join(sorted(f"--{name.replace('_', '-')}" for name in given & names))
            raise typer.BadParameter(f"only for {wanted}; leave out {options}")


def _quantize_data_free(model: Path, target: Path, config: DataFreeConfig, json: Path | None, *, quiet: bool) -> None:
    check_outputs(target, json, weights_beside(target), inputs=Inputs((model,)))
    result = pipeline.quantize_without_data(model, config)
    result.save(target)
    if json:
        write_text(json, result.to_json())
    if not quiet:
        show(report.data_free_table(result, target))
