"""What a quantized model cost and saved, in a few lines. Nothing is computed here but ratios."""

from __future__ import annotations

from pathlib import Path

from onnx_cbq.jobs.result import Result
from onnx_cbq.pages.figures import paired_error, share, short

# Longer names of classes are cut in a line that is to fit.
_NAME = 20


def verdict_lines(result: Result, path: Path) -> list[str]:
    """The file and its bits; accuracy and the worst class; bytes and latency; what was asked for, if it is a limit."""
    before, after = result.reference, result.quantized
    error = paired_error(result.agreement, after.samples)
    worst = after.worst_class
    name, lowest, earlier = short(result.class_names[worst], _NAME), after.per_class[worst], before.per_class[worst]
    change = f"{after.top1:.2f} %, float {before.top1:.2f}: {after.top1 - before.top1:+.2f} points"
    size = after.bytes if result.sizes.archive is None else result.sizes.archive
    return [
        f"{path}: {result.average_bits:.3f} bits per weight",
        f"accuracy {change} (standard error at most {error:.2f})",
        *([] if lowest is None or earlier is None else [f"worst class {name}: {lowest:.2f} %, float {earlier:.2f}"]),
        f"{share(size, before.bytes)} of the bytes, {share(after.latency_ms, before.latency_ms)} of the latency",
        *(f"asked for {note}" for note in result.asked),
    ]
