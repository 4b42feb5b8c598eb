"""A comparison of models as tables for a terminal. Nothing is computed here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from onnx_cbq.jobs.compare_result import Compared, CompareResult
from onnx_cbq.pages.figures import letters as names_of_models
from onnx_cbq.pages.figures import percent
from onnx_cbq.report.tables import accuracy_name, listed, table_of, worst

# Disagreements of each model that are listed.
_SAMPLES = 5


def comparison_table(result: CompareResult, *, all_classes: bool = False) -> RenderableType:
    """A column for each model, the classes that changed most, and where models are farthest from the first."""
    letters = names_of_models(len(result.models))
    legend = [Text(f"{letter}  {model.label}") for letter, model in zip(letters, result.models, strict=True)]
    table = table_of("", *letters)

    def row(name: str, cell: Callable[[Compared], str], *, first: bool = True) -> None:
        table.add_row(name, *(cell(model) if first or i else "" for i, model in enumerate(result.models)))

    row(accuracy_name(result.models[0].evaluation), lambda model: percent(model.evaluation.top1))
    row("  standard error", lambda model: f"{model.error:.2f}")
    row("  gained, lost samples", lambda model: f"+{model.gained} -{model.lost}", first=False)
    row("  chance of that (McNemar)", lambda model: _chance(model.chance), first=False)
    if result.models[0].evaluation.top5 is not None:
        row("top-5 accuracy, %", lambda model: percent(model.evaluation.top5))
    row("worst class, %", lambda model: worst(model.evaluation, result.class_names))
    row("same answer as A, %", lambda model: percent(model.agreement), first=False)
    row("bytes", lambda model: f"{model.evaluation.bytes:,}")
    row("  compressed (zstd)", lambda model: f"{model.compressed:,}")
    row("memory, MB", lambda model: f"{model.memory / 1e6:,.1f}")
    for batch, threads in sorted({(t.batch, t.threads) for m in result.models for t in m.timings}, key=_order):
        spread = "1 thread" if threads else "all threads"
        row(f"ms for {batch}, {spread}", lambda model, key=(batch, threads): _timing(model, key))  # type: ignore[misc]
    lines = [
        Text(f"{result.models[0].evaluation.samples:,} samples; processor {result.processor}"),
        *(Text(f"note: {note}") for note in result.notes),
    ]
    parts = (Text(), *_classes(result, letters, all_classes=all_classes), *_disagreements(result, letters), *lines)
    return Group(*legend, Text(), table, *parts)


def _classes(result: CompareResult, letters: Sequence[str], *, all_classes: bool) -> list[RenderableType]:
    """The classes whose accuracy changed, those that changed most first."""
    first, *others = (model.evaluation.per_class for model in result.models)
    changes = [
        0.0 if share is None else max((abs((other[m] or 0.0) - share) for other in others), default=0.0)
        for m, share in enumerate(first)
    ]
    changed = [m for m, change in enumerate(changes) if change > 0]
    if not changed:
        return []
    shown = listed(changed, lambda m: -changes[m], all_classes=all_classes)
    table = table_of("class", "samples", *(f"{letter}, %" for letter in letters))
    counts = result.models[0].evaluation.counts
    for m in shown:
        shares = (percent(model.evaluation.per_class[m]) for model in result.models)
        table.add_row(result.class_names[m], f"{counts[m]:,}", *shares)
    hidden = len(changed) - len(shown)
    more = [Text(f"{hidden} classes that changed less: --all-classes shows them")] if hidden else []
    return [table, *more, Text()]


def _disagreements(result: CompareResult, letters: Sequence[str]) -> list[RenderableType]:
    """For each model the samples on which it is farthest from the first."""
    parts: list[RenderableType] = []
    for number, letter in enumerate(letters[1:], start=1):
        found = [one for one in result.disagreements if one.model == number]
        if not found:
            continue
        table = table_of(f"{letters[0]} and {letter} disagree on", "class", letters[0], letter)
        for one in found[:_SAMPLES]:
            answers = (f"{name or ''} ({100 * share:.0f} %)" for name, share in (one.answers[0], one.answers[number]))
            table.add_row(one.where, one.label or "", *answers)
        parts += [table, Text()]
    return parts


def _order(key: tuple[int, int]) -> tuple[int, int]:
    return key[1], key[0]


def _timing(model: Compared, key: tuple[int, int]) -> str:
    return next((f"{t.milliseconds:.3f}" for t in model.timings if (t.batch, t.threads) == key), "-")


def _chance(chance: float | None) -> str:
    return "-" if chance is None else f"{chance:.3f}" if chance >= 0.001 else "< 0.001"
