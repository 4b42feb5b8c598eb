"""Results made up for pages: small, of the form that the schema states, every figure another number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnx_cbq.records.figures import FORMAT

Found = dict[str, Any]
VERSIONS = {"onnx-cbq": "1.2.3", "onnx": "4.5.6"}


def bars(low: float, high: float, counts: Sequence[int]) -> Found:
    return {"low": low, "high": high, "counts": list(counts)}


def evaluation(shares: dict[str, float | None], counts: Sequence[int], size: int, latency: float) -> Found:
    known = {name: share for name, share in shares.items() if share is not None}
    total = sum(counts)
    return {
        "top1": sum(share * n for share, n in zip(shares.values(), counts, strict=True) if share) / total,
        "top5": None,
        "per_class": shares,
        "worst_class": min(known, key=lambda name: known[name]),
        "samples": total,
        "class_samples": list(counts),
        "bytes": size,
        "latency_ms": latency,
        "latency_error_ms": latency / 50,
    }


def layer(name: str, bits: Sequence[int], classes: int, snr: float | None) -> Found:
    """A layer of 9 weights for each channel; each class needs as many channels as its number and a half."""
    return {
        "name": name,
        "operator": "Conv",
        "weights": 9 * len(bits),
        "macs": 9000 * len(bits),
        "snr": snr,
        "before": bars(-1.5, 1.5, (1, 20, 2)),
        "after": bars(-1.5, 1.5, (0, 23, 0)),
        "inputs": [
            {"tensor": f"{name}/in", "low": 0.0, "high": 2.25, "bits": 8, "outside": 0.125, "seen": bars(0, 3, (9, 4))}
        ],
        "gamma": [classes - i / 2 for i in range(len(bits))],
        "needed": [[i % classes, (i + 1) % classes] for i in range(len(bits))],
        "classes": [m + 0.5 for m in range(classes)],
        "channels": len(bits),
        "average_bits": sum(bits) / len(bits),
    }


def debugged(name: str, divergence: float, share: float, cause: str) -> Found:
    """A layer of `debug`."""
    ratios = ("weight_snr", "input_snr", "weight_alone_snr", "input_alone_snr", "alone_snr", "accumulated_snr")
    return {
        "name": name,
        "node": f"{name}_q",
        "operator": "Conv",
        "weight_type": "int8",
        "input_type": "uint8",
        "integer": True,
        "reason": "",
        "pair_sum": None,
        "deviation": None,
        "clipped": 0.0625,
        **{ratio: 20.5 + i + 10 * share / 100 for i, ratio in enumerate(ratios)},
        "weight_gain": 1.0,
        "gain": 0.5,
        "divergence": divergence,
        "share": share,
        "cause": cause,
    }


def alone() -> Found:
    """What `debug` says of a file of two layers, the second of which costs three times as much."""
    return {
        "layers": [debugged("first", 0.01, 25.0, "input"), debugged("second", 0.03, 75.0, "weights")],
        "ranking": ["second", "first"],
        "unmatched": [],
        "unmatched_in_file": [],
        "divergence": 0.037,
        "agreement": 93.75,
        "samples": 64,
        "deviations": [],
        "fallbacks": [],
        "processor": "avx2",
        "notes": [],
        "versions": VERSIONS,
    }


def debug_result() -> Found:
    return {"format": FORMAT, "command": "debug", **alone()}


def quantize_result(names: Sequence[str] = ("cat", "dog", "eel"), *, full: bool = False) -> Found:
    """Two layers, and classes of 40 samples each; the class at 0 loses 25 points, the last one gains 5."""
    count = len(names)
    counts = [40] * count
    before = {name: 90.0 - 5 * (m % 3) for m, name in enumerate(names)}
    after = dict(before)
    after[names[0]] -= 25
    after[names[-1]] += 5
    bits = {"first": [8, 8, 3, 0], "second": [4, 2]}
    losses = {"plan": 0.02, "finest": 0.004, "coarse": 0.5, "coarse_predicted": 0.25}
    return {
        "format": FORMAT,
        "command": "quantize",
        "model": "net.onnx",
        "asked": ["--max-drop 9: 3 bits lose 6.67 points, on 120 samples"],
        "average_bits": 4.125,
        "bits": bits,
        "float": evaluation(dict(before), counts, 1_230_000, 4.0),
        "quantized": evaluation(dict(after), counts, 410_000, 1.0),
        "agreement": 91.0,
        "outputs": {},
        "sizes": {"ideal": 100, "file": 410_000, "zstd": 300, "archive": None, "coded_bits": None},
        "target": "cpu",
        "processor": "avx2",
        "fused_against_plain": None,
        "weights_left_float": 12.5,
        "removed": {"first": 1},
        "kept_zero": [{"layer": "second", "channels": 2, "reason": "an output"}],
        "macs": {"float": 54000, "quantized": 45000},
        "swaps": [],
        "confusions": {"class": [0, 0, 1], "taken_for": [1, 2, 0], "float": [1, 4, 2], "quantized": [10, 5, 1]},
        "layers": [layer("first", bits["first"], count, 31.25), layer("second", bits["second"], count, 17.5)],
        "groups": None,
        "class_names": list(names),
        "method": {
            "name": "rate-distortion",
            "criterion": "noise",
            "measured": {"noise": 0.0625},
            "loss": 0.0375,
            "exchanges": 3,
            "plans": 20,
            "layers": {"first": {**losses, "plan": 0.06}, "second": losses},
        },
        "alone": alone() if full else None,
        "curve": [
            {"average_bits": bits, "ideal_bytes": size, **evaluation(dict(after), counts, 10 * size, 1.5)}
            for bits, size in ((2.0, 50), (6.0, 150))
        ],
        "calibration_samples": 30,
        "left_float": [{"name": "odd", "operator": "MatMul", "reason": "computed", "weights": 12}],
        "notes": ["slower than the float model"],
        "seconds": {"load": 0.25, "search": 61.5},
        "versions": VERSIONS,
        "settings": {"bits": 3.5, "method": "rate-distortion"},
    }


def compare_result() -> Found:
    """A float model and two others, of which the second has one disagreement with a picture."""
    names = ("cat", "dog")
    models = [
        {
            "label": f"net{i}.onnx",
            "standard_error": 1.5 + i,
            "compressed": 1000 - i,
            "memory": 2_000_000 + i,
            **evaluation({"cat": 90.0 - 10 * i, "dog": 80.0 + i}, (50, 50), 4000 // (i + 1), 2.0 - i / 2),
            "agreement": 100.0 - 5 * i,
            "gained": i,
            "lost": 4 * i,
            "chance": (None, 0.0625, 0.0001)[i],
            "timings": [
                {"batch": batch, "threads": threads, "milliseconds": 1 + i + batch / 10 + threads / 100, "error": 0.01}
                for batch, threads in ((1, 0), (16, 0), (1, 1))
            ],
        }
        for i in range(3)
    ]
    return {
        "format": FORMAT,
        "command": "compare",
        "models": models,
        "disagreements": [
            {
                "model": 1,
                "sample": 7,
                "where": "cats/7.png",
                "label": "cat",
                "divergence": 2.5,
                "answers": [{"class": c, "confidence": p} for c, p in (("cat", 0.75), ("dog", 0.625), (None, 0.5))],
                "thumbnail": "data:image/png;base64,iVBORw0KGgo=",
            }
        ],
        "class_names": list(names),
        "processor": "avx2",
        "notes": ["a note"],
        "versions": VERSIONS,
    }


def thousand() -> Found:
    """As large as pages get: 1,000 classes, 60 layers of 512 channels."""
    names = [f"n{m:08d} kind of animal" for m in range(1000)]
    found = quantize_result(names)
    widths = [1 + i % 8 for i in range(512)]
    layers = [f"/features/{i}/conv/Conv" for i in range(60)]
    found["bits"] = dict.fromkeys(layers, widths)
    found["layers"] = [layer(name, widths, 1000, 20.0 + i) for i, name in enumerate(layers)]
    found["method"]["layers"] = dict.fromkeys(layers, found["method"]["layers"]["first"])
    pairs = range(5000)
    found["confusions"] = {
        "class": [i % 1000 for i in pairs],
        "taken_for": [(i * 7 + 1) % 1000 for i in pairs],
        "float": [1 + i % 3 for i in pairs],
        "quantized": [1 + i % 7 for i in pairs],
    }
    return found
