"""Accuracy per bit without training: ResNet-20 on CIFAR-10, as a Markdown table.

Calibrates on 1,000 samples and evaluates on the 10,000 test images, which quantization never sees. Rows: this project's
default method with float, 8-bit and 4-bit activations, rounding to nearest with the same bits everywhere, and
onnxruntime's own int8 and int4. Seconds are those of the whole run without its final evaluation, which takes as long as
the card has samples. Takes about ten minutes on two cores. The exit code is 1 if a row misses what is required of it.

`--seeds` also shows what other calibration samples and the other exporter do at 3 bits. `peers.py` has other tools.

python benchmarks/accuracy.py
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from common import CARDS, Requirements, data_file, print_table
from latency import quantize_by_onnxruntime
from onnxruntime.quantization import QuantType

from onnx_cbq import AutoBits, CalibrationSet, QuantizeConfig, evaluate, quantize
from onnx_cbq.evidence.workload import prepare

MODEL = "resnet20_cifar10.onnx"
OTHER_EXPORT = "resnet20_cifar10_torchscript.onnx"
BITS = (4.0, 3.0, 2.5, 2.0)
# Top-1 that the default method must reach with float activations, in percent.
REQUIRED = {4.0: 88.1, 3.0: 88.0, 2.5: 87.4, 2.0: 85.5}
# 8-bit activations may lose so many points beside float ones.
LARGEST_LOSS = 0.2
# 4 bits for weights and activations alike.
REQUIRED_W4A4 = 85.0
SEED_BITS = 3.0
SEEDS = (0, 1, 2)
LARGEST_SEED_SPREAD = 0.4
LARGEST_EXPORT_SPREAD = 0.3


@dataclass(frozen=True)
class Row:
    """A row of the table: settings, and the budgets to try them with."""

    title: str
    config: QuantizeConfig
    bits: tuple[float, ...] = BITS


FLOAT, EIGHT, FOUR = (QuantizeConfig(activation_bits=bits) for bits in (0, 8, 4))
ROWS = (
    Row("default, float activations", FLOAT),
    Row("default, 8-bit activations", EIGHT),
    Row("default, 4-bit activations", FOUR, (4.0,)),
    Row("default, activations of 4 bits on average", QuantizeConfig(activation_bits=AutoBits(4.0)), (4.0,)),
    Row(
        "uniform, to nearest, float activations", replace(FLOAT, method="uniform", rounding="nearest"), (4.0, 3.0, 2.0)
    ),
)


def samples(part: str) -> CalibrationSet:
    """The calibration or the test samples of CIFAR-10."""
    return CalibrationSet.from_card(CARDS / "cifar10.toml", data_file(f"cifar10_{part}.npz"))


@cache
def measured(name: str, config: QuantizeConfig) -> tuple[float, float]:
    """Top-1 on the test images, in percent, and the seconds that quantization took."""
    result = quantize(data_file(name), samples("calibration"), config)
    print(f"{name}: {config.method}, {config.bits:g} bits, seed {config.seed}: done", file=sys.stderr)
    seconds = sum(value for stage, value in result.seconds.items() if stage != "verify")
    return evaluate(result.proto, samples("test")).model.top1, seconds


def our_row(row: Row) -> list[str]:
    """A row of the table."""
    found = {bits: measured(MODEL, replace(row.config, bits=bits)) for bits in row.bits}
    accuracies = [f"{found[bits][0]:.2f}" if bits in found else "" for bits in BITS]
    return [row.title, *accuracies, f"{max(seconds for _, seconds in found.values()):.0f}"]


def onnxruntime_rows() -> list[list[str]]:
    """onnxruntime's own int8 and int4."""
    model = data_file(MODEL)
    work = prepare(model, samples("calibration"))
    rows = []
    for title, kind in (("8", QuantType.QInt8), ("4", QuantType.QInt4)):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "theirs.onnx"
            quantize_by_onnxruntime(model, work, path, kind)
            accuracy = f"{evaluate(path, samples('test')).model.top1:.2f}"
        place = [accuracy if title == "4" and bits == 4 else "" for bits in BITS]
        rows.append([f"onnxruntime int{title}{'' if title == '4' else f': {accuracy}'}", *place, ""])
    return rows


def check_rows(required: Requirements) -> None:
    """What is required of the rows."""
    for bits, least in REQUIRED.items():
        exact, eight = (measured(MODEL, replace(config, bits=bits))[0] for config in (FLOAT, EIGHT))
        required.at_least(f"top-1 at {bits:g} bits, float activations", exact, least)
        required.at_most(f"points that 8-bit activations lose at {bits:g} bits", exact - eight, LARGEST_LOSS)
    required.at_least("top-1 at 4 bits, 4-bit activations", measured(MODEL, replace(FOUR, bits=4.0))[0], REQUIRED_W4A4)


def check_seeds(required: Requirements) -> None:
    """Other calibration samples, and the other exporter."""
    config = replace(FLOAT, bits=SEED_BITS)
    by_seed = [measured(MODEL, replace(config, seed=seed))[0] for seed in SEEDS]
    other = measured(OTHER_EXPORT, replace(config, seed=SEEDS[0]))[0]
    header = (f"top-1 at {SEED_BITS:g} bits, float activations, %", *(f"seed {seed}" for seed in SEEDS))
    print()
    print_table(
        header,
        (
            ["torch.export", *(f"{accuracy:.2f}" for accuracy in by_seed)],
            ["TorchScript", f"{other:.2f}", *("" for _ in SEEDS[1:])],
        ),
    )
    print()
    required.at_most("points between seeds", max(by_seed) - min(by_seed), LARGEST_SEED_SPREAD)
    required.at_most("points between the two exports", abs(by_seed[0] - other), LARGEST_EXPORT_SPREAD)


def main() -> int:
    """Measure, print, and return 1 if a requirement was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", action="store_true", help="also other samples, and the other exporter")
    options = parser.parse_args()
    rows = [*map(our_row, ROWS), *onnxruntime_rows()]
    print_table(("top-1, % (float 88.29)", *(f"{bits:g} bits" for bits in BITS), "seconds at most"), rows)
    print()
    required = Requirements()
    check_rows(required)
    if options.seeds:
        check_seeds(required)
    return required.exit_code


if __name__ == "__main__":
    sys.exit(main())
