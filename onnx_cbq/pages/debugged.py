"""What the page of `debug` shows: the layers that cost most, why, and what runs on integers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnx_cbq.pages.figures import cell, loss, made_by, number, percent, short

Found = Mapping[str, Any]
_PARTS = (("layers", "Which layer hurts"), ("order", "In the order of the model"), ("kernels", "Kernels"))
_BARS = 20


def debug_page(found: Found) -> dict[str, Any]:
    """Everything that the template names."""
    layers = found["layers"]
    by_name = {layer["name"]: layer for layer in layers}
    ranked = [by_name[name] for name in found["ranking"]]
    most = max((layer["divergence"] or 0.0 for layer in layers), default=0.0)
    return {
        "title": "Which layer hurts",
        "lead": _lead(found, ranked),
        "parts": _PARTS,
        "notes": found["notes"],
        "bars": [
            {
                "name": short(layer["name"]),
                "value": round(100 * (layer["divergence"] or 0.0) / most, 2),
                "text": f"{layer['share'] or 0.0:.0f} %",
                "cause": layer["cause"],
            }
            for layer in ranked[:_BARS]
            if most
        ],
        "head": (
            *("layer", "nats", "share, %", "weight, dB", "input, dB", "beyond the grid, %", "weight alone, dB"),
            *("input alone, dB", "both, dB", "in the file, dB", "kernel", "costs most"),
        ),
        "rows": [_row(layer) for layer in ranked],
        "order": [_row(layer) for layer in layers],
        "kernels": _kernels(found),
        "foot": f"Measured on {found['samples']:,} samples; processor {found['processor']}; {made_by(found)}.",
    }


def _lead(found: Found, ranked: list[Found]) -> list[str]:
    first = f"Same answer {percent(found['agreement'])} %, divergence {loss(found['divergence'])} nats."
    if not ranked or not ranked[0]["divergence"]:
        return [first, "No layer costs anything by itself."]
    worst = ranked[0]
    cause = f": {worst['cause']}" if worst["cause"] else ""
    return [
        first,
        f"{short(worst['name'])} hurts most, {worst['share'] or 0.0:.0f} % of what layers cost alone{cause}.",
    ]


def _row(layer: Found) -> list[Any]:
    ratios = (layer["weight_snr"], layer["input_snr"])
    outputs = (layer["weight_alone_snr"], layer["input_alone_snr"], layer["alone_snr"], layer["accumulated_snr"])
    return [
        short(layer["name"]),
        cell(layer["divergence"], loss(layer["divergence"])),
        cell(layer["share"], number(layer["share"])),
        *(cell(value, number(value)) for value in ratios),
        f"{layer['clipped']:.2f}",
        *(cell(value, number(value)) for value in outputs),
        "integer" if layer["integer"] else "float",
        layer["cause"],
    ]


def _kernels(found: Found) -> list[str]:
    layers, fallbacks = found["layers"], found["fallbacks"]
    on = sum(layer["integer"] for layer in layers)
    lines = [f"{on} of {len(layers)} layers run on integers."]
    lines += [_in_float(short(layer["name"]), layer["reason"]) for layer in layers if layer["reason"]]
    lines += [_in_float(f"{one['operator']} {short(one['name'])}, between codes,", one["reason"]) for one in fallbacks]
    lines += [
        f"{short(one['node'], 120)} is off by up to {one['codes']} codes in {one['numbers']:,} numbers here"
        for one in found["deviations"]
    ]
    unsafe = [f"{short(layer['name'])} ({layer['pair_sum']})" for layer in layers if layer["pair_sum"] is not None]
    if unsafe:
        lines.append(f"May saturate on x86 without VNNI (largest sum of two codes): {', '.join(unsafe)}")
    lines += [f"Not in the file: {short(name)}" for name in found["unmatched"]]
    lines += [f"Not in the float model: {short(name)}" for name in found["unmatched_in_file"]]
    return lines


def _in_float(what: str, reason: str) -> str:
    return f"{what} runs in float{f': {reason}' if reason else ''}"
