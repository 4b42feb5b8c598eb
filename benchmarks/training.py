"""What training adds: ResNet-20 and VGG-small on CIFAR-10 and LeNet on MNIST with `--refine`, as a Markdown table.

Plans and rounding use 4,000 samples (VGG-small 1,000), training the 10,000 of the calibration file, within 5 minutes a
row (15 where the row says so); real-valued widths descend for their 200 steps before that. Evaluated on the 10,000
test images. The exit code is 1 if a row misses what is required of it. `--rows` takes some of them by number; all of
them take nearly two hours on two cores.

python benchmarks/training.py
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace

from common import CARDS, Requirements, data_file, print_table

from onnx_cbq import CalibrationSet, DifferentiableConfig, QuantizeConfig, RefineConfig, evaluate, quantize

RESNET, VGG, LENET = "resnet20_cifar10.onnx", "vgg_small_cifar10.onnx", "lenet_mnist.onnx"
FIVE = RefineConfig(minutes=5, updates=10_000, augment=("flip", "shift", "mix"), views=2)
FIFTEEN = replace(FIVE, minutes=15)
# An update of VGG-small with 128 samples takes more than a second.
SMALL = replace(FIFTEEN, batch=64)
SHIFTED = replace(FIVE, augment=("shift", "mix"), updates=1500)


@dataclass(frozen=True)
class Row:
    """A row of the table, and the top-1 that is required of it after training, in percent.

    With `than`, what is required are points above what those settings reach with the same training.
    """

    title: str
    model: str
    config: QuantizeConfig
    required: float
    than: QuantizeConfig | None = None


QUANTIZED = QuantizeConfig(samples=4000)
FLOAT = replace(QUANTIZED, activation_bits=0)
ARCHIVE = replace(FLOAT, storage="archive")
ROWS = (
    Row("3 bits, float activations", RESNET, replace(FLOAT, bits=3, refine=FIVE), 88.3),
    Row("2 bits, float activations", RESNET, replace(FLOAT, bits=2, refine=FIVE), 87.7),
    Row("1.5 bits, float activations", RESNET, replace(FLOAT, bits=1.5, refine=FIVE), 86.4),
    Row("cbq, 2 bits, 8-bit activations", RESNET, replace(QUANTIZED, bits=2, method="cbq", refine=FIVE), 84.0),
    Row(
        "2 bits, 2-bit activations, 15 minutes",
        RESNET,
        replace(QUANTIZED, bits=2, activation_bits=2, refine=FIFTEEN),
        82.0,
    ),
    Row("4 bits, 4-bit activations", RESNET, replace(QUANTIZED, bits=4, activation_bits=4, refine=FIVE), 87.7),
    Row(
        "VGG-small, cbq, 2 bits, 2-bit activations, 15 minutes",
        VGG,
        QuantizeConfig(bits=2, method="cbq", activation_bits=2, refine=SMALL),
        81.5,
    ),
    Row("archive of 52,000 bytes", RESNET, replace(ARCHIVE, bytes=52_000, refine=FIVE), 87.6),
    # 1,725,610 bytes as float; digits are not to be mirrored.
    Row("LeNet, archive 51 times smaller", LENET, replace(ARCHIVE, bytes=33_800, refine=SHIFTED), 98.9),
    Row(
        "differentiable, 2 bits, float activations",
        RESNET,
        replace(
            FLOAT,
            bits=2,
            method="differentiable",
            differentiable=DifferentiableConfig(augment=FIVE.augment),
            refine=FIVE,
        ),
        0.5,
        than=replace(FLOAT, bits=2, method="uniform", refine=FIVE),
    ),
)


def top1(row: Row, config: QuantizeConfig) -> tuple[float, float]:
    """Top-1 on the test images, in percent, and the seconds that training took."""
    name = row.model.removesuffix(".onnx").split("_")[-1]
    samples = {
        part: CalibrationSet.from_card(CARDS / f"{name}.toml", data_file(f"{name}_{part}.npz"))
        for part in ("calibration", "test")
    }
    result = quantize(data_file(row.model), samples["calibration"], config)
    print(*(note for note in result.notes if note.startswith("--refine")), sep="\n", file=sys.stderr)
    return evaluate(result.proto, samples["test"]).model.top1, result.seconds.get("refine", 0.0)


def main() -> int:
    """Measure, print, and return 1 if a requirement was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", type=int, nargs="*", choices=range(len(ROWS)), help="some rows, from 0 (default: all)"
    )
    parser.add_argument("--only-trained", action="store_true", help="leave out what comes without training")
    given = parser.parse_args()
    chosen = given.rows or range(len(ROWS))
    table: list[list[str]] = []
    found: list[tuple[Row, float, float]] = []

    def measure(row: Row, title: str, config: QuantizeConfig) -> float:
        before = "" if given.only_trained else f"{top1(row, replace(config, refine=None))[0]:.2f}"
        after, seconds = top1(row, config)
        table.append([title, before, f"{after:.2f}", f"{seconds:.0f}"])
        print(*table[-1], sep=", ", file=sys.stderr, flush=True)
        return after

    for row in (ROWS[i] for i in chosen):
        beaten = 0.0 if row.than is None else measure(row, f"{row.than.method}, to compare with the next", row.than)
        found.append((row, measure(row, row.title, row.config), beaten + row.required))
    print_table(("top-1, %", "without training", "with", "seconds of training"), table)
    print()
    required = Requirements()
    for row, after, limit in found:
        required.at_least(f"top-1, {row.title}", after, limit)
    return required.exit_code


if __name__ == "__main__":
    sys.exit(main())
