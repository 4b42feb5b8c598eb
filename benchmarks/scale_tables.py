"""The tables of `scale.py`: what was measured, what it means for a run of another size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from scale_plan import BY_SAMPLES, BY_WEIGHTS, OVER_SAMPLES, Measured, Stage, growth, line_of, merging_of, passes

# Bytes for a sample, a class or a neuron below which nothing is kept of each: what Python itself does varies so much.
NOTHING = 8.0
RUNS = ("by samples", "by width", "by classes")


def show(found: Mapping[str, Any], stages: Sequence[Stage]) -> None:
    """Print all tables."""
    console = Console(width=170)
    console.print(f"processor: {found['processor']}; one thread, core seconds", markup=False, highlight=False)
    measured = found["measured"]
    tables = [
        _over_samples(measured),
        _over_weights(measured["by width"]),
        _held(measured["memory"]),
        _plan(found, stages),
        _memory("Extrapolated: memory of a worker", found["extrapolated"]["worker"]),
        _memory("Extrapolated: memory of the merging process", found["extrapolated"]["merging"]),
    ]
    for table in tables:
        console.print(table)
    for name, value in found["assumed"].items():
        console.print(f"assumed: {name}: {value}", markup=False, highlight=False)


def amount(value: float) -> str:
    """Bytes, for people."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= size:
            return f"{value / size:,.1f} {unit}"
    return f"{value:,.0f} B"


def duration(seconds: float) -> str:
    """Seconds, for people."""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.2f} s"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=not number)
    return table


def _over_samples(measured: Mapping[str, Any]) -> Table:
    runs = measured["by samples"]
    last, together = runs[-1], [run for name in RUNS for run in measured[name]]
    title = f"Measured: work over samples, {last['net']['weights']:,} weights, {last['net']['macs']:,} multiplications"
    columns = ("stage", "passes a sample", "fixed, s", "foretold, off by", "reads a sample", "back, a piece")
    table = _table(title, *columns, "to a worker", "of it mapped", "merging, ms a piece", "s/GB")
    for name in BY_SAMPLES:
        spent = last["stages"][name]
        busy, read = (line_of(runs, name, what, "samples") for what in ("busy", "read"))
        told = spent["parcel_far"] + spent["told"]
        piece, each = merging_of(together, name)
        table.add_row(
            OVER_SAMPLES.get(name, name),
            f"{passes(last, busy):.2f}",
            f"{max(busy.fixed, 0):.3f}",
            f"{busy.error:.0%}",
            f"{read.slope:.2f}",
            amount(spent["back"] / spent["shards"]),
            amount(told),
            amount(spent["parcel_far"] - spent["parcel"]),
            f"{1e3 * piece:.2f}",
            f"{1e9 * each:.2f}",
        )
    table.caption = f"a pass: {1e3 * last['forward']:.3f} ms, {1e9 * last['forward'] / last['net']['macs']:.3f} s/GMAC"
    return table


def _over_weights(runs: Measured) -> Table:
    table = _table(
        "Measured: the merging process by itself", "stage", "grows with", "fixed, s", "slope, s/1e9", "off by"
    )
    for name, over in BY_WEIGHTS.items():
        line = line_of(runs, name, "local", over)
        table.add_row(name, over, f"{max(line.fixed, 0):.3f}", f"{1e9 * line.slope:.2f}", f"{line.error:.0%}")
    table.caption = "solver: every weight times the weights of its channel, which the solver multiplies it with"
    return table


def _held(memory: Mapping[str, Measured]) -> Table:
    samples, classes, sides = memory["samples"], memory["classes"], memory["sides"]
    table = _table(
        "Measured: what the merging process holds at most in a stage, beyond what was there before",
        *("stage", *(f"{run['samples']:,} samples" for run in samples)),
        *(f"{run['classes']:,} classes" for run in classes),
        *("4 x neurons", "B a sample", "B a class", "B a class left"),
    )
    for name in samples[0]["held"]:
        peaks = [run["held"][name][0] for run in (*samples, *classes, sides[-1])]
        figures = growth(samples, "samples", name, 0), growth(classes, "classes", name, 0)
        left = growth(classes, "classes", name, 1)
        shown = [f"{value:,.0f}" if value >= NOTHING else "-" for value in (*figures, left)]
        table.add_row(name, *map(amount, peaks), *shown)
    whole = [run["merging"] for run in (*samples, *classes, sides[-1])]
    workers = [run["worker"] for run in (*samples, *classes, sides[-1])]
    table.add_row("whole process", *map(amount, whole), "", "", "")
    table.add_row("a worker", *map(amount, workers), "", "", "")
    return table


def _plan(found: Mapping[str, Any], stages: Sequence[Stage]) -> Table:
    assumed, sums = found["assumed"], found["extrapolated"]
    title = (
        f"Extrapolated: {assumed['images']:,} samples, {assumed['classes']:,} classes, {amount(assumed['bytes'])}, "
        f"{assumed['workers']} workers of a core"
    )
    columns = ("working", "moving", "merging", "by itself", "in all", "to workers", "back", "in flight")
    table = _table(title, "stage", *columns)
    for stage in stages:
        parts = (stage.working, stage.moving, stage.merging, stage.local, stage.seconds)
        moved = (stage.sent, stage.back, stage.flying)
        table.add_row(stage.name, *map(duration, parts), *map(amount, moved))
    table.add_row("all", "", "", "", "", duration(sums["seconds"]), amount(sums["sent"]), amount(sums["back"]), "")
    table.caption = (
        "working, moving and merging go on beside each other; what the merging process does by itself does not"
    )
    return table


def _memory(title: str, parts: Mapping[str, float]) -> Table:
    table = _table(title, "what", "bytes")
    for name, value in parts.items():
        table.add_row(name, amount(value))
    table.add_row("all", amount(sum(parts.values())))
    return table
