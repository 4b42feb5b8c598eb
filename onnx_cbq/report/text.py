"""Results as tables for a terminal. Nothing is computed here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from onnx_cbq.jobs.data_free import DataFreeResult
from onnx_cbq.jobs.result import CheckResult, EvaluationResult, Result
from onnx_cbq.jobs.step import Steps
from onnx_cbq.pages.figures import percent
from onnx_cbq.quantize.schemes import GridStatistics
from onnx_cbq.records import Evaluation, Layers, Scores
from onnx_cbq.report.tables import accuracy_name, listed, table_of, worst
from onnx_cbq.report.verdict import verdict_lines
from onnx_cbq.storage.archive import Archive
from onnx_cbq.storage.metadata import StoredPlan
from onnx_cbq.targets.reading import Product
from onnx_cbq.verification.counts import OutputDistance

_LISTED_FLOAT = 10


def result_table(result: Result, path: Path, *, all_classes: bool = False) -> RenderableType:
    """A verdict; accuracy, bits, bytes and latency before and after; classes; and the seconds of each stage."""
    before, after, names = result.reference, result.quantized, result.class_names
    table = table_of("", "float", "quantized")
    table.add_row(accuracy_name(after), percent(before.top1), percent(after.top1))
    if before.top5 is not None:
        table.add_row("top-5 accuracy, %", percent(before.top5), percent(after.top5))
    table.add_row("worst class, %", worst(before, names), worst(after, names))
    if not result.groups.is_trivial:
        accuracies = (percent(result.groups.accuracy(found.confusion)) for found in (before, after))
        table.add_row(f"{len(result.groups.names)} groups of classes, %", *accuracies)
    table.add_row("average bits", "32", f"{result.average_bits:.3f}")
    table.add_row("  weights left float, %", "", percent(result.left_float))
    table.add_row("bytes", f"{before.bytes:,}", f"{after.bytes:,}")
    table.add_row("  bits of the weights alone", "", f"{result.sizes.ideal:,}")
    table.add_row("  compressed (zstd)", "", f"{result.sizes.zstd:,}")
    if result.sizes.archive is not None:
        table.add_row("  archive", "", f"{result.sizes.archive:,}")
        table.add_row("  bits per weight, coded", "", f"{result.sizes.coded_bits:.3f}")
    table.add_row(f"latency, ms ({result.processor})", f"{before.latency_ms:.3f}", f"{after.latency_ms:.3f}")
    table.add_row("million MACs of the layers", *(f"{macs / 1e6:,.3f}" for macs in result.removal.macs))
    table.add_row("same prediction, %", "", percent(result.agreement))
    if result.fidelity is not None:
        table.add_row("  plain graph's prediction, %", "", percent(100 - result.fidelity.share))
    _add_outputs(table, result.outputs)
    swaps = [f"{names[m]} for {names[taken]} +{more}" for m, taken, more in result.swaps()]
    stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in result.seconds.items())
    lines = [
        *(f"group: {name}" for name in result.groups.names if not result.groups.is_trivial),
        *(["taken more often: " + ", ".join(swaps)] if swaps else []),
        *([] if result.method.table() else result.method.lines()),
        *_removal_lines(result),
        f"{after.samples:,} samples, of which {result.calibration_samples:,} were used to calibrate",
        f"seconds: {stages}",
        *_left_float(result.layers),
        *(f"note: {note}" for note in result.notes),
    ]
    verdict = (*map(Text, verdict_lines(result, path)), Text())
    parts = (*_class_table(before, after, names, all_classes=all_classes), Text(), *_method_table(result))
    return Group(*verdict, table, Text(), *parts, *(Text(line) for line in lines))


def _class_table(
    before: Evaluation, after: Evaluation, names: tuple[str, ...], *, all_classes: bool
) -> list[RenderableType]:
    """Every class before and after; of many those that lost most, unless all are asked for."""
    table = table_of("class", "samples", "float, %", "quantized, %", "change")
    pairs = list(zip(before.per_class, after.per_class, strict=True))
    changes = [0.0 if one is None or other is None else other - one for one, other in pairs]
    counts = after.counts
    seen = [m for m in range(len(names)) if counts[m]]
    shown = listed(seen, changes.__getitem__, all_classes=all_classes)
    for m in shown:
        table.add_row(names[m], f"{counts[m]:,}", *map(percent, pairs[m]), f"{changes[m]:+.2f}")
    hidden = len(seen) - len(shown)
    return [table, *([Text(f"{hidden} classes that lost less: --all-classes shows them")] if hidden else [])]


def curve_table(result: Result) -> RenderableType:
    """The trade-off: what each average of bits costs."""
    table = table_of("average bits", "top-1, %", "worst class, %", "bytes", "bytes of the bits alone")
    rows = [(p.average_bits, p.evaluation, f"{p.ideal_bytes:,}") for p in result.curve]
    for average, found, ideal in (*rows, (32.0, result.reference, "")):
        name = "float" if average == 32 else f"{average:.3f}"
        table.add_row(name, percent(found.top1), worst(found, result.class_names), f"{found.bytes:,}", ideal)
    return table


def data_free_table(result: DataFreeResult, path: Path) -> RenderableType:
    """How the grids fit, layer by layer, and the bytes before and after."""
    table = table_of("layer", "weights", "average", *_GRID_COLUMNS)
    for layer in result.layers:
        found, bits = result.statistics[layer.name], result.plan.bits[layer.name]
        table.add_row(layer.name, f"{layer.size:,}", f"{bits.mean():.2f}", *_grid_columns(found))
    return Group(
        table,
        Text(
            f"{path}: {result.average_bits:.3f} bits per weight, {result.bytes:,} bytes (float {result.float_bytes:,})"
        ),
        Text("activations stay float; run evaluate to see what it costs"),
        *map(Text, _left_float(result.layers)),
        *(Text(f"note: {note}") for note in result.notes),
    )


def steps_table(result: Steps, folder: Path) -> RenderableType:
    """Multiplications, accuracy, latency and bytes of every step, beside the model."""
    table = table_of("step", "million MACs", "MACs so far, %", "top-1, %", "latency, ms", "bytes")
    record = result.record
    for number, step in enumerate(record.steps, start=1):
        figures = f"{step.macs / 1e6:,.3f}", f"{100 * step.share:.1f}", percent(step.top1), f"{step.latency_ms:.3f}"
        table.add_row(str(number), *figures, f"{step.bytes:,}")
    figures = f"{record.model_macs / 1e6:,.3f}", "100", percent(result.float_top1), f"{result.float_latency_ms:.3f}"
    table.add_row("model", *figures, f"{result.float_bytes:,}")
    stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in result.seconds.items())
    lines = [
        f"{folder}: top-1 on {record.held_back:,} samples held back; latency of each step by itself at batch 1",
        f"seconds: {stages}",
        *(f"note: {note}" for note in result.notes),
    ]
    return Group(table, Text(), *(Text(line) for line in lines))


def weights_table(found: Mapping[str, Mapping[str, GridStatistics]], bits: int) -> RenderableType:
    """How each scheme's grid fits the weights of each layer."""
    table = table_of("layer", "scheme", *_GRID_COLUMNS)
    for name, schemes in found.items():
        for i, (scheme, statistics) in enumerate(schemes.items()):
            table.add_row("" if i else name, scheme, *_grid_columns(statistics))
    return Group(table, Text(f"at {bits} bits; zero: share of weights on the level 0; used: share of levels in use"))


_GRID_COLUMNS = ("range", "zero, %", "used, %", "SNR, dB")


def _grid_columns(found: GridStatistics) -> tuple[str, ...]:
    snr = "-" if found.snr_db is None else f"{found.snr_db:.1f}"
    return (f"{found.range:.4g}", percent(100 * found.zero_share), percent(100 * found.occupancy), snr)


def _method_table(result: Result) -> list[RenderableType]:
    """What the method says of how it chose, where that is a table."""
    rows = result.method.table()
    if not rows:
        return []
    table = table_of(*rows[0])
    for row in rows[1:]:
        table.add_row(*row)
    return [table, *map(Text, result.method.lines()), Text()]


def _removal_lines(result: Result) -> list[str]:
    """Which layers lost channels, and which keep some of 0 bits."""
    found = result.removal
    removed = ", ".join(
        f"{name} {len(channels)} of {result.layers.by_name[name].channels}" for name, channels in found.removed.items()
    )
    return [
        *([f"channels removed: {removed}"] if removed else []),
        *(f"kept as zeros: {entry.channels} of {entry.layer}: {entry.reason}" for entry in found.kept_zero),
    ]


def evaluation_table(result: EvaluationResult, *, all_classes: bool = False) -> RenderableType:
    """Accuracy overall and per class, bytes and latency, beside the reference if there is one."""
    compared = [result.model] if result.reference is None else [result.reference, result.model]
    table = table_of("", *(["model"] if result.reference is None else ["reference", "model"]))
    table.add_row(accuracy_name(result.model), *(percent(e.top1) for e in compared))
    if result.model.top5 is not None:
        table.add_row("top-5 accuracy, %", *(percent(e.top5) for e in compared))
    table.add_row("worst class, %", *(worst(e, result.class_names) for e in compared))
    table.add_row("samples", *(f"{e.samples:,}" for e in compared))
    table.add_row("bytes", *(f"{e.bytes:,}" for e in compared))
    table.add_row("latency, ms", *(f"{e.latency_ms:.3f}" for e in compared))
    if result.agreement is not None:
        table.add_row("same prediction, %", "", percent(result.agreement))
    _add_outputs(table, result.outputs)
    seen = [m for m, accuracy in enumerate(result.model.per_class) if accuracy is not None]
    shown = listed(seen, lambda m: result.model.per_class[m] or 0.0, all_classes=all_classes)
    table.add_section()
    for m in shown:
        table.add_row(f"  {result.class_names[m]}", *(percent(e.per_class[m]) for e in compared))
    hidden = len(seen) - len(shown)
    more = [Text(f"{hidden} classes of higher accuracy: --all-classes shows them")] if hidden else []
    return Group(table, *more, *(Text(f"note: {note}") for note in result.notes))


def check_lines(result: CheckResult, path: Path) -> RenderableType:
    """A line per violation, and what the file is."""
    count, target = len(result.violations), result.target
    verdict = f"{count} violations of" if count > 1 else "1 violation of" if count else "fit for"
    pairs = "pair-safe" if result.pair_safe else "NOT pair-safe: wrong in onnxruntime on x86 without VNNI"
    return Group(
        *(Text(str(violation)) for violation in result.violations),
        Text(f"{path}: {verdict} {target.name} ({target.what}); {pairs}"),
        Text(
            f"{result.integers} of {result.products} products with a weight are of integers; onnxruntime's CPU "
            f"provider runs {result.fused} as such"
        ),
    )


def archive_table(archive: Archive, path: Path) -> RenderableType:
    """Bytes before and after, what each part takes, and the entropy of the codes."""
    size = len(archive.content)
    table = table_of("", "bytes")
    table.add_row("ONNX file", f"{archive.model_bytes:,}")
    table.add_row("archive", f"{size:,}")
    table.add_section()
    for name, part in (
        ("  codes of the weights", archive.code_bytes),
        ("  scales, biases and other numbers", archive.number_bytes),
        ("  grids and predictors of the codes", archive.parameter_bytes),
        ("  nodes, names and the plan", archive.frame_bytes),
    ):
        table.add_row(name, f"{part:,}")
    table.add_row("ideal for the codes", f"{archive.ideal_bytes:,.0f}")
    lines = (
        f"{archive.weights:,} weights of {archive.entropy:.3f} bits: entropy by frequencies of each width and grid",
        f"{path}: 1/{archive.model_bytes / size:.2f} of the ONNX file, coded by {archive.coder}",
    )
    return Group(table, *(Text(line) for line in lines))


def score_table(layers: Layers, scores: Scores) -> RenderableType:
    """Importance gamma per layer: how many classes need its channels."""
    table = table_of("layer", "channels", "weights", "lowest", "median", "highest", "needed by none", "by all")
    classes = sum(count > 0 for count in scores.samples)
    for layer in layers:
        gamma = sorted(scores.by_layer[layer.name].gamma.tolist())
        table.add_row(
            layer.name,
            str(layer.channels),
            f"{layer.size:,}",
            *(f"{value:.2f}" for value in (gamma[0], gamma[len(gamma) // 2], gamma[-1])),
            str(sum(value == 0 for value in gamma)),
            str(sum(value == classes for value in gamma)),
        )
    samples = f"{sum(scores.samples):,} samples of {classes} classes"
    line = Text(f"gamma: how many of {classes} classes need a channel; from {samples}")
    return Group(table, line, *(Text(f"note: {note}") for note in scores.notes))


def float_table(layers: Layers) -> RenderableType:
    """The layers of a float model."""
    table = table_of("layer", "operator", "weight", "channels", "weights")
    for layer in layers:
        shape = "x".join(map(str, layer.weight_shape))
        table.add_row(layer.name, layer.operator, shape, str(layer.channels), f"{layer.size:,}")
    return Group(table, Text(f"{len(layers)} layers, {layers.size:,} weights"), *map(Text, _left_float(layers)))


def _left_float(layers: Layers) -> list[str]:
    """What stays float, largest first; of many the largest."""
    entries = layers.left_float
    lines = [f"left float: {e.name} ({e.operator}), {e.weights:,} weights: {e.reason}" for e in entries[:_LISTED_FLOAT]]
    rest = sum(entry.weights for entry in entries[_LISTED_FLOAT:])
    return [*lines, f"left float: {len(entries) - _LISTED_FLOAT} more, {rest:,} weights"] if rest else lines


def plan_table(stored: StoredPlan, unsafe: Mapping[str, int]) -> RenderableType:
    """How many channels of each layer have which width, and which of them are wrong on x86 without VNNI."""
    widths = sorted({int(width) for layer in stored.layers.values() for width in layer.bits})
    table = table_of("layer", "operator", "weight", "average", *map(str, widths))
    for name, layer in stored.layers.items():
        counts = Counter(layer.bits.tolist())
        shape = "x".join(map(str, layer.shape))
        columns = (str(counts[width] or "") for width in widths)
        table.add_row(name, layer.operator, shape, f"{layer.bits.mean():.2f}", *columns)
    title = f"made by onnx-cbq {stored.version}, method {stored.method}, {stored.average_bits:.3f} bits per weight"
    return Group(table, Text("columns of a number: channels that have so many bits"), Text(title), _pairs(unsafe))


def products_table(products: Sequence[Product], unsafe: Mapping[str, int]) -> RenderableType:
    """The products of a quantized file of another tool, and which of them are wrong on x86 without VNNI."""
    table = table_of("product", "operator", "weight", "codes", "activations")
    for product in products:
        codes, kind = product.codes, product.activation_type
        row = ("float", "") if codes is None else (str(codes.dtype), "x".join(map(str, codes.shape)))
        table.add_row(product.name, product.operator, row[1], row[0], "float" if kind is None else str(kind))
    return Group(table, Text(f"{len(products)} products, not made by onnx-cbq"), _pairs(unsafe))


def _pairs(unsafe: Mapping[str, int]) -> Text:
    layers = ", ".join(f"{name} ({largest})" for name, largest in unsafe.items())
    return Text(
        f"NOT pair-safe, wrong on x86 without VNNI; largest sum of two codes: {layers}" if unsafe else "pair-safe"
    )


def _add_outputs(table: Table, outputs: Sequence[OutputDistance]) -> None:
    """A row for every output beside the class scores."""
    for found in outputs:
        if found.relative is not None:
            table.add_row(f"{found.output}: change, % of its deviation", "", percent(100 * found.relative))
        elif found.differing is not None:
            table.add_row(f"{found.output}: elements that differ, %", "", percent(100 * found.differing))
