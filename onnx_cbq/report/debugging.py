"""What `debug` found as tables for a terminal. Nothing is computed here."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from onnx_cbq.jobs.debug_result import DebugResult, LayerDebug
from onnx_cbq.pages.figures import percent
from onnx_cbq.report.tables import table_of

# Layers, and what goes with them, that are listed unless all are asked for.
LISTED_LAYERS = 12
_FEW = 5
_COLUMNS = 80
_LEAST_NAME = 12


def debug_table(result: DebugResult, *, all_layers: bool = False) -> RenderableType:
    """Which layer hurts and why, the kernels that run, and the layers that cost most by themselves."""
    order = result.ranking
    shown = order if all_layers else order[:LISTED_LAYERS]
    table = _table(shown)
    hidden = len(order) - len(shown)
    lines = [
        *([f"{hidden} layers that cost less: --all-layers shows them"] if hidden else []),
        "nats, %: divergence from the float model with that layer alone as in the file",
        "dB of signal over noise: weight, rounded input, output alone and in the file",
        *(f"note: {note}" for note in result.notes),
    ]
    return Group(*_texts(_verdict(result)), Text(), table, Text(), *_texts(lines))


def _texts(lines: Sequence[str]) -> list[Text]:
    """Lines that fit, what goes on further in than it begins; a name that is longer stays whole."""
    texts: list[Text] = []
    for line in lines:
        inner = " " * (len(line) - len(line.lstrip()) + 2)
        wrapped = textwrap.wrap(line, _COLUMNS, subsequent_indent=inner, break_long_words=False, break_on_hyphens=False)
        texts += map(Text, wrapped)
    return texts


def _table(layers: Sequence[LayerDebug]) -> Table:
    kernels = len({layer.integer for layer in layers}) > 1
    heads = ["layer", "nats", "%", "weight", "input", "alone", "file", *(["runs"] if kernels else []), "cause"]
    rows = []
    for layer in layers:
        ratios = (layer.weight_snr, layer.input_snr, layer.alone_snr, layer.accumulated_snr)
        cost = "-" if layer.divergence is None else f"{layer.divergence:.0e}"
        kernel = ["int" if layer.integer else "float"] if kernels else []
        rows.append([layer.name, cost, _whole(layer.share), *map(_ratio, ratios), *kernel, layer.cause])
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    room = max(_COLUMNS - sum(widths[1:]) - len(widths) + 1, _LEAST_NAME)
    table = table_of(*heads[:-1])
    table.collapse_padding = True
    table.add_column(heads[-1])
    for name, *row in rows:
        # What tells names apart stands at the end.
        table.add_row(name if len(name) <= room else f"...{name[3 - room :]}", *row)
    return table


def _whole(share: float | None) -> str:
    return "-" if share is None else f"{share:.0f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _verdict(result: DebugResult) -> list[str]:
    answers = f"same answer {percent(result.agreement)} %, divergence {result.divergence:.2e} nats"
    return [
        f"{answers}, on {result.samples:,} samples",
        *_worst(result),
        *_kernels(result),
        *_saturation(result),
        *_unmatched(result),
    ]


def _worst(result: DebugResult) -> list[str]:
    worst = next((layer for layer in result.ranking if layer.divergence), None)
    if worst is None:
        return ["no layer costs anything by itself"]
    cause = f": {worst.cause}" if worst.cause else ""
    return [f"hurts most: {worst.name}, {_whole(worst.share)} % of the cost of all layers{cause}"]


def _kernels(result: DebugResult) -> list[str]:
    layers, on = result.layers, sum(layer.integer for layer in result.layers)
    lines = [f"integer kernels: {on} of {len(layers)} layers"]
    why = Counter(layer.reason for layer in layers if layer.reason)
    for reason, _ in why.most_common(_FEW):
        names = [layer.name for layer in layers if layer.reason == reason]
        which = "all" if len(names) == len(layers) else _some(names)
        lines.append(f"  in float: {which}: {reason}")
    rest = list(why)[_FEW:]
    if rest:
        lines.append(f"  in float for {len(why) - _FEW} other reasons: --json has them")
    others = Counter(found.operator for found in result.fallbacks)
    if others:
        listed = ", ".join(f"{count} {operator}" for operator, count in others.most_common())
        lines.append(f"  in float between codes, besides: {listed}")
        explained = [found for found in result.fallbacks if found.reason]
        lines += [f"    {found.operator} {found.name}: {found.reason}" for found in explained[:_FEW]]
    return lines


def _saturation(result: DebugResult) -> list[str]:
    lines = []
    if result.deviations:
        first = result.deviations[0]
        rest = len(result.deviations) - 1
        more = f", and {rest} tensor{'s' if rest > 1 else ''} behind it" if rest else ""
        lines.append(
            f"kernels of this processor ({result.processor}) compute something else than the file says: first "
            f"{first.node}, by up to {first.codes} codes in {first.numbers:,} numbers{more}"
        )
    unsafe: list[LayerDebug] = sorted(
        (layer for layer in result.layers if layer.pair_sum is not None), key=lambda layer: -(layer.pair_sum or 0)
    )
    if unsafe:
        names = [f"{layer.name} ({layer.pair_sum})" for layer in unsafe]
        lines.append(
            f"may saturate on x86 without VNNI: {len(unsafe)} layers; largest sum of two codes: {_some(names)}; "
            f"reduce_range, or quantize for --target cpu"
        )
    if not lines:
        lines.append("saturation: none")
    return lines


def _unmatched(result: DebugResult) -> list[str]:
    lines = []
    if result.unmatched:
        lines.append(f"layers that the file does not have: {_some(result.unmatched)}")
    if result.unmatched_in_file:
        lines.append(f"products that the float model does not have: {_some(result.unmatched_in_file)}")
    return lines


def _some(names: Sequence[str]) -> str:
    """The first few of some names."""
    more = len(names) - _FEW
    return ", ".join(names[:_FEW]) + (f" and {more} more" if more > 0 else "")
