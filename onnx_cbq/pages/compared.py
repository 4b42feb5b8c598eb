"""What the page of `compare` shows: a column for each model, the classes that changed, and where models disagree."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onnx_cbq.pages.figures import cell, letters, made_by, percent, points, short, size

Found = Mapping[str, Any]
# What is no such picture is not shown: it would be asked for from elsewhere, or run.
_PICTURE = "data:image/png;base64,"
_PARTS = (("models", "Models"), ("classes", "Classes"), ("disagreements", "Disagreements"))


def compare_page(found: Found) -> dict[str, Any]:
    """Everything that the template names."""
    models = found["models"]
    names = letters(len(models))
    return {
        "title": f"{len(models)} models beside each other",
        "lead": _lead(models, names),
        "parts": _PARTS,
        "legend": [(letter, short(model["label"], 120)) for letter, model in zip(names, models, strict=True)],
        "head": ("", *names),
        "rows": _rows(models),
        "notes": found["notes"],
        "class_head": ("class", *(f"{letter}, %" for letter in names), "largest change"),
        "class_rows": _classes(found, models),
        "disagreements": [_disagreeing(found, number, names) for number in range(1, len(models))],
        "foot": f"Measured on {models[0]['samples']:,} samples; processor {found['processor']}; {made_by(found)}.",
    }


def _lead(models: Sequence[Found], names: Sequence[str]) -> list[str]:
    first = models[0]
    lines = []
    for letter, model in zip(names[1:], models[1:], strict=True):
        sure = "" if model["chance"] is None else f"; by chance alone in {_chance(model['chance'])} of cases"
        lines.append(
            f"{letter} beside A: {points(model['top1'] - first['top1'])} points (+{model['gained']} "
            f"-{model['lost']} samples{sure}), {100 * model['bytes'] / max(first['bytes'], 1):.0f} % of the bytes"
        )
    return lines


def _chance(chance: float) -> str:
    return "less than 0.1 %" if chance < 0.001 else f"{100 * chance:.1f} %"


def _rows(models: Sequence[Found]) -> list[list[str]]:
    """A row for each figure: its name, and a cell for each model; some are only those of the others beside A."""
    everyone: list[tuple[str, Callable[[Found], str]]] = [
        ("accuracy, %", lambda m: percent(m["top1"])),
        ("standard error", lambda m: f"{m['standard_error']:.2f}"),
        ("worst class, %", lambda m: f"{percent(m['per_class'][m['worst_class']])} ({short(m['worst_class'], 30)})"),
        ("bytes", lambda m: f"{m['bytes']:,}"),
        ("compressed (zstd)", lambda m: f"{m['compressed']:,}"),
        ("memory of the session", lambda m: size(m["memory"])),
    ]
    others: list[tuple[str, Callable[[Found], str]]] = [
        ("gained, lost samples", lambda m: f"+{m['gained']} -{m['lost']}"),
        ("chance of that (McNemar)", lambda m: "-" if m["chance"] is None else f"{m['chance']:.3g}"),
        ("same answer as A, %", lambda m: percent(m["agreement"])),
    ]
    rows = [[name, *map(text, models)] for name, text in everyone]
    rows[2:2] = [[name, "", *map(text, models[1:])] for name, text in others]
    for threads, batch in sorted({(t["threads"], t["batch"]) for m in models for t in m["timings"]}):
        spread = f"{threads} thread" if threads else "all threads"
        rows.append([f"ms for {batch}, {spread}", *(_timing(model, threads, batch) for model in models)])
    return rows


def _timing(model: Found, threads: int, batch: int) -> str:
    found = (t["milliseconds"] for t in model["timings"] if (t["threads"], t["batch"]) == (threads, batch))
    return next((f"{milliseconds:.3f}" for milliseconds in found), "-")


def _classes(found: Found, models: Sequence[Found]) -> list[list[Any]]:
    rows: list[tuple[float, list[Any]]] = []
    for name in found["class_names"]:
        shares = [model["per_class"][name] for model in models]
        if shares[0] is None:
            continue
        change = max((share - shares[0] for share in shares[1:] if share is not None), key=abs, default=0.0)
        rows.append((change, [short(name), *map(percent, shares), cell(change, points(change))]))
    return [row for _, row in sorted(rows, key=lambda entry: -abs(entry[0]))]


def _disagreeing(found: Found, number: int, names: Sequence[str]) -> dict[str, Any]:
    """The samples that a model answers unlike the first, farthest first."""
    rows = []
    for one in found["disagreements"]:
        if one["model"] != number:
            continue
        image, answers = one["thumbnail"], [one["answers"][0], one["answers"][number]]
        rows.append(
            {
                "image": image if str(image).startswith(_PICTURE) else None,
                "where": short(one["where"], 120),
                "label": "-" if one["label"] is None else short(one["label"]),
                "answers": [f"{short(a['class'] or '-')} ({100 * a['confidence']:.0f} %)" for a in answers],
            }
        )
    return {"title": f"A and {names[number]}", "letters": ("A", names[number]), "rows": rows}
