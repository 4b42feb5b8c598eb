"""Which layer hurts, on the page of `quantize`: measured where that was asked for, else predicted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnx_cbq.pages.figures import cell, loss, number, short, size

Found = Mapping[str, Any]
_BARS = 15
_LOSS = "Loss is the divergence of the class scores from the float model"


def hurting_layers(found: Found) -> dict[str, Any]:
    """What each layer alone loses, by weights and by what it reads, and what 8 bits for it would cost and give."""
    predicted: Found = found["method"].get("layers", {}) if "loss" in found["method"] else {}
    measured = {layer["name"]: layer for layer in (found["alone"] or {"layers": []})["layers"]}
    rows = []
    for layer in found["layers"]:
        name = layer["name"]
        guess, seen = predicted.get(name), measured.get(name)
        rows.append((layer, guess, seen, _order(guess, seen)))
    total = sum(order for *_, order in rows) or 1.0
    rows.sort(key=lambda row: -row[3])
    if not any(order for *_, order in rows):
        return _unknown(rows)
    most = max(value for _, guess, seen, _ in rows for _, value in _bars(guess, seen, measured=bool(measured)))
    return {
        "lead": _lead(rows, total, measured=bool(measured)),
        "shown": [
            {
                "name": short(layer["name"]),
                "bars": [
                    {"style": style, "value": round(100 * value / most, 2)}
                    for style, value in _bars(guess, seen, measured=bool(measured))
                ],
                "text": f"{100 * order / total:.0f} %",
            }
            for layer, guess, seen, order in rows[:_BARS]
        ],
        "key": [
            *([("one", "measured alone")] if measured else []),
            *([("seen" if measured else "one", "predicted")] if predicted else []),
        ],
        "head": (
            "layer",
            "share, %",
            *(("measured, nats", "signal over noise, dB", "costs most") if measured else ("signal over noise, dB",)),
            "predicted, nats",
            "at 2 bits: measured",
            "predicted",
            "8 bits: more bytes",
            "less loss, nats",
        ),
        "rows": [_row(*row[:3], 100 * row[3] / total, measured=bool(measured)) for row in rows],
        "foot": _foot(found, measured=bool(measured)),
    }


def _order(guess: Found | None, seen: Found | None) -> float:
    if seen is not None and seen["divergence"] is not None:
        return max(float(seen["divergence"]), 0.0)
    return max(float(guess["plan"]), 0.0) if guess is not None else 0.0


def _bars(guess: Found | None, seen: Found | None, *, measured: bool) -> list[tuple[str, float]]:
    """What was measured, and the prediction behind it."""
    bars = []
    if seen is not None and seen["divergence"] is not None:
        bars.append(("", float(seen["divergence"])))
    if guess is not None:
        bars.append(("soft" if measured else "", max(float(guess["plan"]), 0.0)))
    return bars


def _lead(rows: list[Any], total: float, *, measured: bool) -> str:
    layer, _, _, order = rows[0]
    half, count = 0.0, 0
    for *_, share in rows:
        half, count = half + share, count + 1
        if half >= total / 2:
            break
    how = "measured with each layer alone" if measured else "predicted"
    few = f"{count} of {len(rows)} layers make" if count > 1 else f"{short(layer['name'])} alone makes"
    return f"{short(layer['name'])} costs most, {100 * order / total:.0f} % of the loss ({how}); {few} half of it."


def _row(layer: Found, guess: Found | None, seen: Found | None, share: float, *, measured: bool) -> list[object]:
    more = (8 - layer["average_bits"]) * layer["weights"] / 8
    gain = None if guess is None else max(guess["plan"] - guess["finest"], 0.0)
    own: list[object] = [cell(layer["snr"], number(layer["snr"]))]
    if measured:
        cost = None if seen is None else seen["divergence"]
        ratio = None if seen is None else seen["alone_snr"]
        own = [cell(cost, loss(cost)), cell(ratio, number(ratio)), "" if seen is None else short(seen["cause"])]
    figures = [None if guess is None else guess[key] for key in ("plan", "coarse", "coarse_predicted")]
    return [
        short(layer["name"]),
        f"{share:.1f}",
        *own,
        *(cell(value, loss(value)) for value in figures),
        cell(more, f"+{size(more)}"),
        cell(gain, loss(gain)),
    ]


def _foot(found: Found, *, measured: bool) -> str:
    kept = "--keep LAYER=8 gives a layer 8 bits: the last two columns say what that costs and saves."
    if measured:
        return f"{_LOSS}, on {found['alone']['samples']:,} samples. {kept}"
    return (
        f"{_LOSS}; the prediction of each layer is scaled by what it was measured to lose with 2 bits. {kept} "
        f"--report-full measures every layer of the file alone."
    )


def _unknown(rows: list[Any]) -> dict[str, Any]:
    listed = sorted(rows, key=lambda row: row[0]["snr"] if row[0]["snr"] is not None else 1e9)
    return {
        "lead": "The method did not estimate what layers lose; --report-full measures each layer alone.",
        "shown": [],
        "key": [],
        "head": ("layer", "signal over noise, dB", "8 bits: more bytes"),
        "rows": [
            [
                short(layer["name"]),
                cell(layer["snr"], number(layer["snr"])),
                cell(0, f"+{size((8 - layer['average_bits']) * layer['weights'] / 8)}"),
            ]
            for layer, *_ in listed
        ],
        "foot": "Signal over noise of each layer's output, predicted from its rounded weights.",
    }
