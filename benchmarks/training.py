"""What training adds: ResNet-20 and VGG-small on CIFAR-10 and LeNet on MNIST with `--refine`, as a Markdown table.

Training learns from the 50,000 training images (LeNet: from the 10,000 of the calibration file), plans and rounding use
4,000 of them (VGG-small 1,000), within as many minutes as the row says; real-valued widths descend for their 200 steps
before that. Evaluated on test images. The exit code is 1 if a row misses what is required of it. `--rows` takes some of
them by number. All of them train for nearly two hours, and plan about as long; `--only-trained` halves the latter.

python benchmarks/training.py
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace

from common import CARDS, Requirements, data_file, print_table

from onnx_cbq import CalibrationSet, DifferentiableConfig, QuantizeConfig, RefineConfig, evaluate, quantize

RESNET, VGG, LENET = "resnet20_cifar10.onnx", "vgg_small_cifar10.onnx", "lenet_mnist.onnx"
FIVE = RefineConfig(minutes=5, updates=100_000, augment=("flip", "shift", "mix"), views=2)
TEN, FIFTEEN, HALF_AN_HOUR = (replace(FIVE, minutes=minutes) for minutes in (10, 15, 30))
# Digits are not to be mirrored.
SHIFTED = replace(TEN, augment=("shift", "mix"))
TRAINING = {"cifar10": "cifar10_train.zip", "mnist": "mnist_calibration.npz"}


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
ARCHIVE = replace(FLOAT, storage="archive", refine=TEN)
# 1,725,610 bytes as float.
LENET_BYTES = 1_725_610 // 60
ROWS = (
    Row("3 bits, float activations", RESNET, replace(FLOAT, bits=3, refine=FIVE), 88.3),
    Row("2 bits, float activations", RESNET, replace(FLOAT, bits=2, refine=FIVE), 88.35),
    Row("1.5 bits, float activations", RESNET, replace(FLOAT, bits=1.5, refine=FIVE), 87.9),
    Row("cbq, 2 bits, 8-bit activations", RESNET, replace(QUANTIZED, bits=2, method="cbq", refine=FIVE), 84.0),
    Row(
        "2 bits, 2-bit activations, 30 minutes",
        RESNET,
        replace(QUANTIZED, bits=2, activation_bits=2, refine=HALF_AN_HOUR),
        85.5,
    ),
    Row("4 bits, 4-bit activations", RESNET, replace(QUANTIZED, bits=4, activation_bits=4, refine=FIVE), 87.9),
    Row(
        "VGG-small, cbq, 2 bits, 2-bit activations, 15 minutes",
        VGG,
        QuantizeConfig(bits=2, method="cbq", activation_bits=2, refine=FIFTEEN),
        82.3,
    ),
    Row("archive of 52,000 bytes, 10 minutes", RESNET, replace(ARCHIVE, bytes=52_000), 88.1),
    Row("archive of 35,700 bytes, 10 minutes", RESNET, replace(ARCHIVE, bytes=35_700), 87.2),
    Row(
        "LeNet, archive 60 times smaller, 10 minutes",
        LENET,
        replace(ARCHIVE, bytes=LENET_BYTES, refine=SHIFTED),
        99.0,
    ),
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
    card = CARDS / f"{name}.toml"
    learned, test = (CalibrationSet.from_card(card, data_file(f)) for f in (TRAINING[name], f"{name}_test.npz"))
    result = quantize(data_file(row.model), learned, config)
    print(*(note for note in result.notes if note.startswith("--refine")), sep="\n", file=sys.stderr)
    return evaluate(result.proto, test).model.top1, result.seconds.get("refine", 0.0)


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
