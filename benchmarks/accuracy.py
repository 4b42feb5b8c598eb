"""Accuracy per bit without training: ResNet-20 on CIFAR-10, as a Markdown table.

Calibrates on 1,000 samples and evaluates on the 10,000 test images, which quantization never sees. Rows: this project's
default method with float and with 8-bit activations, rounding to nearest with the same bits everywhere, and
onnxruntime's own int8 and int4. Seconds are those of the whole run without its final evaluation, which takes as long as
the card has samples. Takes about ten minutes on two cores.

python benchmarks/accuracy.py
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from common import CARDS, data_file, print_table
from latency import quantize_by_onnxruntime
from onnxruntime.quantization import QuantType

from onnx_cbq import CalibrationSet, QuantizeConfig, evaluate, quantize
from onnx_cbq.workload import prepare

MODEL = "resnet20_cifar10.onnx"
BITS = (4.0, 3.0, 2.5, 2.0)
SETTINGS = (
    ("default, float activations", QuantizeConfig(activation_bits=0)),
    ("default, 8-bit activations", QuantizeConfig()),
    ("uniform, to nearest, float activations", QuantizeConfig(4, "uniform", "nearest", activation_bits=0)),
)


def main() -> None:
    """Measure and print."""
    model = data_file(MODEL)
    calibration = CalibrationSet.from_card(CARDS / "cifar10.toml", data_file("cifar10_calibration.npz"))
    test = CalibrationSet.from_card(CARDS / "cifar10.toml", data_file("cifar10_test.npz"))
    rows = []
    for title, config in SETTINGS:
        accuracies, seconds = [], []
        for bits in BITS:
            if config.method == "uniform" and not bits.is_integer():
                accuracies.append("")
                continue
            result = quantize(model, calibration, replace(config, bits=bits))
            accuracies.append(f"{evaluate(result.proto, test).model.top1:.2f}")
            seconds.append(sum(value for stage, value in result.seconds.items() if stage != "verify"))
            print(f"{title}, {bits:g} bits: done", file=sys.stderr)
        rows.append([title, *accuracies, f"{max(seconds):.0f}"])
    work = prepare(model, calibration)
    for title, kind in (("8", QuantType.QInt8), ("4", QuantType.QInt4)):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "theirs.onnx"
            quantize_by_onnxruntime(model, work, path, kind)
            accuracy = f"{evaluate(path, test).model.top1:.2f}"
        place = [accuracy if title == "4" and bits == 4 else "" for bits in BITS]
        rows.append([f"onnxruntime int{title}{'' if title == '4' else f': {accuracy}'}", *place, ""])
    print_table(("top-1, % (float 88.29)", *(f"{bits:g} bits" for bits in BITS), "seconds at most"), rows)


if __name__ == "__main__":
    main()
