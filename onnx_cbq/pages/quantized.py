"""What the page of `quantize` shows, in the order of its questions: what did it cost, who paid, which layer hurts."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from onnx_cbq.pages.charts import Series, histogram, line_chart
from onnx_cbq.pages.figures import (
    cell,
    loss,
    made_by,
    number,
    paired_error,
    percent,
    points,
    share,
    short,
    size,
    standard_error,
)
from onnx_cbq.pages.layers import hurting_layers
from onnx_cbq.pages.people import affected_classes, confusions, needed_channels

Found = Mapping[str, Any]
_PARTS = (
    ("verdict", "What it cost"),
    ("trade-off", "Other budgets"),
    ("bits", "Where the bits went"),
    ("classes", "Who paid"),
    ("layers", "Which layer hurts"),
    ("numbers", "Numbers behind"),
)


def quantize_page(found: Found) -> dict[str, Any]:
    """Everything that the template names."""
    after = found["quantized"]
    name = short(found["model"] or "model")
    classes, hurts = affected_classes(found), hurting_layers(found)
    again = f"onnx-cbq quantize {shlex.quote(found['model'] or 'MODEL.onnx')} --data CARD"
    return {
        "title": f"{name} at {found['average_bits']:.2f} bits",
        "lead": [_lead(found), *classes["paid"], hurts["lead"]],
        "parts": _PARTS,
        "cards": _cards(found),
        "asked": found["asked"],
        "notes": found["notes"],
        "curve": _curve(found) if found["curve"] else None,
        "again": again,
        **_bits(found),
        "classes": classes,
        "confusions": confusions(found),
        "needs": needed_channels(found),
        "hurts": hurts,
        "histograms": [_histograms(layer) for layer in found["layers"]],
        "seconds": _table(("stage", "seconds"), ((stage, f"{s:.1f}") for stage, s in found["seconds"].items())),
        "settings": _table(("option", "value"), _settings(found)),
        "foot": f"Measured on {after['samples']:,} samples, of which {found['calibration_samples']:,} were used to "
        f"calibrate; processor {found['processor']}; target {found['target']}; {made_by(found)}.",
    }


def _bytes(found: Found) -> int:
    sizes = found["sizes"]
    return int(sizes["file"] if sizes["archive"] is None else sizes["archive"])


def _lead(found: Found) -> str:
    before, after = found["float"], found["quantized"]
    shares = share(_bytes(found), before["bytes"]), share(after["latency_ms"], before["latency_ms"])
    change = points(after["top1"] - before["top1"])
    return f"{change} points of accuracy, {shares[0]} of the bytes, {shares[1]} of the latency."


def _cards(found: Found) -> list[dict[str, str]]:
    before, after = found["float"], found["quantized"]
    paired = paired_error(found["agreement"], after["samples"])
    worst = after["worst_class"]
    names = found["class_names"]
    samples = after["class_samples"][names.index(worst)]
    lowest, earlier = after["per_class"][worst], before["per_class"][worst]
    errors = f"standard errors {after['latency_error_ms']:.2g} and {before['latency_error_ms']:.2g}"
    cards = [
        (
            "Accuracy",
            f"{after['top1']:.2f} %",
            f"float {before['top1']:.2f} %; the difference has a standard error of at most {paired:.2f}",
        ),
        (
            "Worst class",
            f"{percent(lowest)} %",
            f"{short(worst, 40)}: float {percent(earlier)} %; standard error {standard_error(lowest, samples):.1f}",
        ),
        ("Bytes", size(_bytes(found)), f"float {size(before['bytes'])}; {found['average_bits']:.3f} bits per weight"),
        (
            "Latency of one sample",
            f"{after['latency_ms']:.3g} ms",
            f"float {before['latency_ms']:.3g} ms on {found['processor']}; {errors}",
        ),
        ("Same prediction", f"{found['agreement']:.2f} %", "as the float model"),
    ]
    return [{"name": name, "value": value, "beside": beside} for name, value, beside in cards]


def _curve(found: Found) -> dict[str, Any]:
    """Accuracy over average bits: the file's own bytes hardly change where each weight takes one byte."""
    rows = sorted(found["curve"], key=lambda point: point["average_bits"])
    before, after = found["float"], found["quantized"]
    chosen = found["average_bits"]
    ends = [min(rows[0]["average_bits"], chosen), max(rows[-1]["average_bits"], chosen)]
    chart = line_chart(
        [
            Series("accuracy", "one", [(point["average_bits"], point["top1"]) for point in rows]),
            Series("worst class", "two", [(p["average_bits"], p["per_class"][p["worst_class"]]) for p in rows]),
            Series("float", "float", [(end, before["top1"]) for end in ends], dots=False),
        ],
        ("bits per weight, on average", "%"),
        (chosen, after["top1"]),
        "Accuracy and the worst class over bits per weight",
    )
    head = ("average bits", "accuracy, %", "worst class, %", "", "bytes of the bits alone", "bytes of the file")
    listed = [
        (
            f"{point['average_bits']:.3f}",
            percent(point["top1"]),
            percent(point["per_class"][point["worst_class"]]),
            short(point["worst_class"]),
            f"{point['ideal_bytes']:,}",
            f"{point['bytes']:,}",
        )
        for point in rows
    ]
    worst = before["worst_class"]
    figures = percent(before["top1"]), percent(before["per_class"][worst])
    listed.append(("float", *figures, short(worst), "", f"{before['bytes']:,}"))
    return {"chart": chart, "head": head, "rows": listed}


def _bits(found: Found) -> dict[str, Any]:
    """A row of runs for each layer, a table of them, and what a script tells of channels."""
    layers = found["layers"]
    weights, macs = (max(sum(layer[key] for layer in layers), 1) for key in ("weights", "macs"))
    rows, listed, channels = [], [], []
    for layer in layers:
        bits = found["bits"][layer["name"]]
        counts = {width: len(list(group)) for width, group in groupby(sorted(bits, reverse=True))}
        runs = [{"bits": width, "count": n, "share": 100 * n / len(bits)} for width, n in counts.items()]
        said = ", ".join(f"{n} of {width} bits" for width, n in counts.items())
        name = short(layer["name"])
        average = layer["average_bits"]
        taken = average * layer["weights"] / 8
        rows.append(
            {"name": name, "runs": runs, "label": f"{name}: {len(bits)} channels: {said}", "average": f"{average:.2f}"}
        )
        listed.append(
            (
                name,
                f"{len(bits)}",
                cell(layer["weights"], f"{layer['weights']:,}"),
                f"{average:.3f}",
                cell(taken, f"{taken:,.0f}"),
                f"{100 * layer['weights'] / weights:.1f}",
                f"{100 * layer['macs'] / macs:.1f}",
                str(counts.get(0, 0)),
                str(found["removed"].get(layer["name"], 0)),
            )
        )
        channels.append(
            {"name": name, "bits": "".join(map(str, bits)), "gamma": layer["gamma"], "needed": layer["needed"]}
        )
    head = ("layer", "channels", "weights", "bits", "bytes", "% of weights", "% of MACs", "of 0 bits", "removed")
    return {
        "layers": rows,
        "layer_head": head,
        "layer_rows": listed,
        "channels": {"layers": channels, "classes": [short(name, 40) for name in found["class_names"]]},
        "removed": _removed(found),
    }


def _removed(found: Found) -> list[str]:
    cut = ", ".join(f"{count} of {short(name)}" for name, count in found["removed"].items())
    kept = [
        f"Kept as zeros: {entry['channels']} of {short(entry['layer'])}: {entry['reason']}"
        for entry in found["kept_zero"]
    ]
    float_ = [
        f"Left float: {short(entry['name'])} ({entry['operator']}), {entry['weights']:,} weights: {entry['reason']}"
        for entry in found["left_float"][:10]
    ]
    return [*([f"Channels cut out of the file: {cut}"] if cut else []), *kept, *float_]


def _histograms(layer: Found) -> dict[str, Any]:
    """The weights of a layer and what it reads."""
    parts: list[dict[str, object]] = [
        {
            "chart": histogram(layer["before"], layer["after"], (), f"Weights of {short(layer['name'])}"),
            "text": f"weights, {layer['average_bits']:.2f} bits on average",
        }
    ]
    for one in layer["inputs"]:
        ends = (one["low"], one["high"])
        parts.append(
            {
                "chart": histogram(one["seen"], None, ends, f"Values of {short(one['tensor'])}"),
                "text": f"input {short(one['tensor'])}: {one['bits']} bits from {one['low']:.4g} to {one['high']:.4g}; "
                f"{one['outside']:.3f} % beyond",
            }
        )
    return {"name": short(layer["name"]), "parts": parts}


def _table(head: Sequence[str], rows: Any) -> dict[str, Any]:
    return {"head": head, "rows": list(rows)}


def _settings(found: Found) -> list[tuple[str, str]]:
    given = [(name, short(value, 200)) for name, value in found["settings"].items()]
    method = found["method"]
    said = [("method", short(method["name"]))]
    if "loss" in method:
        said.append(("divergence on samples held back, nats", loss(method["loss"])))
        said += [(f"plan by {name}", loss(value)) for name, value in method["measured"].items()]
    return [*given, *said, ("signal over noise of outputs, dB", _spread([layer["snr"] for layer in found["layers"]]))]


def _spread(values: Sequence[float | None]) -> str:
    known = sorted(value for value in values if value is not None)
    return f"{number(known[0])} to {number(known[-1])}" if known else "-"
