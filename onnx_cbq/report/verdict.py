"""What a quantized model cost and saved, in a few lines. Nothing is computed here but ratios."""

from __future__ import annotations

import math
from pathlib import Path

from onnx_cbq.jobs.result import Result

# Longer names of classes are cut in a line that is to fit.
_NAME = 20


def verdict_lines(result: Result, path: Path) -> list[str]:
    """The file and its bits; accuracy and the worst class; bytes and latency; what was asked for, if it is a limit.

    The standard error is at most that of the difference of two models that answer a share d of n samples unlike each
    other: sqrt(d / n), since each of these samples changes the sum by one or nothing.
    """
    before, after = result.reference, result.quantized
    error = 100 * math.sqrt(max(1 - result.agreement / 100, 0.0) / max(after.samples, 1))
    worst = after.worst_class
    name, share, earlier = result.class_names[worst], after.per_class[worst], before.per_class[worst]
    short = name if len(name) <= _NAME else f"{name[: _NAME - 3]}..."
    change = f"{after.top1:.2f} %, float {before.top1:.2f}: {after.top1 - before.top1:+.2f} points"
    size = after.bytes if result.sizes.archive is None else result.sizes.archive
    return [
        f"{path}: {result.average_bits:.3f} bits per weight",
        f"accuracy {change} (standard error at most {error:.2f})",
        *([] if share is None or earlier is None else [f"worst class {short}: {share:.2f} %, float {earlier:.2f}"]),
        f"{_share(size, before.bytes)} of the bytes, {_share(after.latency_ms, before.latency_ms)} of the latency",
        *(f"asked for {note}" for note in result.asked),
    ]


def _share(after: float, before: float) -> str:
    return f"{100 * after / before:.0f} %" if before else "-"
