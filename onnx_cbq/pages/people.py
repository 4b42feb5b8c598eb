"""Classes on the page of `quantize`: which lost, what they are taken for, and how many channels they need."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from onnx_cbq.pages.figures import cell, percent, points, short, standard_error

Found = Mapping[str, Any]
# Classes that bars are drawn of, pairs that make the matrix of confusions, classes of the table of needs.
_BARS, _PAIRS, _NEEDS = 12, 14, 15


def affected_classes(found: Found) -> dict[str, Any]:
    """Accuracy of each class before and after, those that lost most first."""
    before, after = found["float"], found["quantized"]
    rows = []
    for m, name in enumerate(found["class_names"]):
        one, other, count = before["per_class"][name], after["per_class"][name], after["class_samples"][m]
        if one is None or other is None or not count:
            continue
        error = math.hypot(standard_error(one, count), standard_error(other, count))
        rows.append((other - one, short(name), count, one, other, error))
    rows.sort(key=lambda row: row[0])
    lost = sum(row[0] < 0 for row in rows)
    significant = sum(_is_certain(row[0], row[2], row[5]) for row in rows)
    empty = len(found["class_names"]) - len(rows)
    without = f"; {empty} have no samples" if empty else ""
    lead = (
        f"{lost} of {len(rows)} classes lost accuracy, {significant} of them by more than two standard errors{without}."
    )
    return {
        "lead": lead,
        "paid": [_paid(rows[0])] if lost else ["No class lost accuracy."],
        "shown": _bars(rows[:_BARS]),
        "head": ("class", "samples", "float, %", "quantized, %", "change", "standard error"),
        "rows": [
            (
                name,
                cell(count, f"{count:,}"),
                percent(one),
                percent(other),
                cell(change, points(change), "bad" if _is_certain(change, count, error) else ""),
                f"{error:.2f}",
            )
            for change, name, count, one, other, error in rows
        ],
    }


def _is_certain(change: float, samples: int, error: float) -> bool:
    """Whether a loss is beyond two standard errors, also by the samples that changed: n of them are off by sqrt(n)."""
    return change < -2 * error and -change / 100 * samples > 4


def _paid(row: tuple[float, str, int, float, float, float]) -> str:
    change, name, _, one, other, error = row
    return (
        f"{name} lost most: {points(change)} points, {one:.2f} to {other:.2f} %, with a standard error of {error:.1f}."
    )


def _bars(rows: Sequence[tuple[float, str, int, float, float, float]]) -> list[dict[str, Any]]:
    """Changes and their errors, in percent of the largest of both together."""
    reach = max((abs(change) + error for change, *_, error in rows), default=1.0)
    return [
        {
            "name": name,
            "change": f"{100 * change / reach:.2f}",
            "error": f"{100 * error / reach:.2f}",
            "lost": change < 0,
            "text": points(change),
        }
        for change, name, *_, error in rows
    ]


def confusions(found: Found) -> dict[str, Any] | None:
    """The pairs that are confused more often than before, as a matrix of the classes in them alone."""
    pairs = found["confusions"]
    if not pairs:
        return None
    columns = (pairs["class"], pairs["taken_for"], pairs["float"], pairs["quantized"])
    grew = sorted(((after - before, m, taken) for m, taken, before, after in zip(*columns, strict=True)), reverse=True)
    grew = [entry for entry in grew[:_PAIRS] if entry[0] > 0]
    if not grew:
        return None
    names = found["class_names"]
    rows, across = sorted({m for _, m, _ in grew}), sorted({taken for *_, taken in grew})
    changes = {(m, taken): after - before for m, taken, before, after in zip(*columns, strict=True)}
    most = max(grew)[0]
    return {
        "columns": [short(names[taken], 24) for taken in across],
        "rows": [
            {
                "name": short(names[m], 24),
                "cells": [_change(changes.get((m, taken), 0), most, own=m == taken) for taken in across],
            }
            for m in rows
        ],
    }


def _change(change: int, most: int, *, own: bool) -> dict[str, Any]:
    text = "" if own or not change else f"{change:+d}"
    return {"text": text, "share": round(70 * max(change, 0) / most)}


def needed_channels(found: Found) -> dict[str, Any] | None:
    """How many of a layer's channels each class needs, in percent; of many classes those that lost most."""
    layers = [layer for layer in found["layers"] if layer["classes"]]
    if not layers:
        return None
    names = found["class_names"]
    if any(len(layer["classes"]) != len(names) for layer in layers):  # they were taken together
        return None
    before, after = found["float"]["per_class"], found["quantized"]["per_class"]
    scored = [m for m in range(len(names)) if any(layer["classes"][m] for layer in layers)]
    seen = [m for m in scored if before[names[m]] is not None and after[names[m]] is not None]
    chosen = sorted(seen, key=lambda m: after[names[m]] - before[names[m]])[:_NEEDS] if len(seen) > _NEEDS else seen
    which = f"; the {len(chosen)} classes that lost most" if len(seen) > len(chosen) else ""
    return {
        "which": which,
        "columns": [short(names[m], 24) for m in chosen],
        "rows": [
            {
                "name": short(layer["name"]),
                "cells": [round(100 * layer["classes"][m] / layer["channels"]) for m in chosen],
            }
            for layer in layers
        ],
    }
