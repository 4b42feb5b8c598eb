"""Accuracy of a vision transformer that `vit.py` has trained, by bits, as a Markdown table.

Calibrates on 1,000 samples and evaluates on the 10,000 test images. Every row with channels equalized where that helps,
and without. The exit code is 1 if a row loses more beside the float model than it may. Takes some fifteen minutes on
two cores.

python benchmarks/transformer.py
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from accuracy import samples
from common import Requirements, data_file, print_table

from onnx_cbq import QuantizeConfig, evaluate, quantize

# Bits of weights and of activations, and the points of top-1 that may be lost.
ROWS = ((8.0, 8, 0.2), (4.0, 8, 0.8), (4.0, 4, 2.5))


def top1(model: Path, config: QuantizeConfig) -> float:
    """In percent, on the test images."""
    result = quantize(model, samples("calibration"), config)
    print(*result.notes, sep="\n", file=sys.stderr)
    return evaluate(result.proto, samples("test")).model.top1


def main() -> int:
    """Measure, print, and hold against the limits."""
    model = data_file("vit_cifar10.onnx")
    float_top1 = evaluate(model, samples("test")).model.top1
    rows, limits = [["float", f"{float_top1:.2f}", ""]], Requirements()
    for bits, activation_bits, allowed in ROWS:
        config = QuantizeConfig(bits=bits, activation_bits=activation_bits)
        found = [top1(model, replace(config, equalize=equalizes)) for equalizes in (True, False)]
        rows.append([f"W{bits:g}/A{activation_bits}", *(f"{value:.2f}" for value in found)])
        limits.at_most(f"W{bits:g}/A{activation_bits}: points lost", float_top1 - found[0], allowed)
    print_table(("bits", "top-1, %", "without equalization"), rows)
    return limits.exit_code


if __name__ == "__main__":
    sys.exit(main())
