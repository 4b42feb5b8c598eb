"""The main job on real models: accuracy, bytes, latency and seconds, as a Markdown table.

Calibrates on 1,000 samples and evaluates on test samples that quantization never sees. Takes about ten minutes on two
cores. Latency is relative to the float model, both measured side by side in one run.

python benchmarks/main_job.py
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from common import CARDS, data_file, print_table

from onnx_cbq import CalibrationSet, QuantizeConfig, evaluate, quantize


@dataclass(frozen=True)
class Job:
    """A model, its card, and the files of its samples."""

    title: str
    model: str
    data: str  # cifar10 or mnist


JOBS = (
    Job("ResNet-20, torch.export", "resnet20_cifar10.onnx", "cifar10"),
    Job("ResNet-20, TorchScript", "resnet20_cifar10_torchscript.onnx", "cifar10"),
    Job("LeNet", "lenet_mnist.onnx", "mnist"),
    Job("VGG-small", "vgg_small_cifar10.onnx", "cifar10"),
)
SETTINGS = (("uniform, 8 bits", QuantizeConfig(8, "uniform")), ("cbq, 4 bits", QuantizeConfig(4, "cbq")))
HEADER = (
    *("model", "weights", "average bits", "top-1, %", "worst class, %", "same prediction, %"),
    *("kB", "latency / float", "seconds"),
)


def run(job: Job) -> list[list[str]]:
    """The rows of one model: float, then each setting."""
    card, model = CARDS / f"{job.data}.toml", data_file(job.model)
    calibration = CalibrationSet.from_card(card, data_file(f"{job.data}_calibration.npz"))
    test = CalibrationSet.from_card(card, data_file(f"{job.data}_test.npz"))
    before = evaluate(model, test).model
    worst = f"{before.per_class[before.worst_class]:.2f}"
    size = f"{before.bytes / 1000:,.0f}"
    rows = [[job.title, "float", "32", f"{before.top1:.2f}", worst, "", size, "1", ""]]
    for title, config in SETTINGS:
        result = quantize(model, calibration, config)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "quantized.onnx"
            result.save(path)
            compared = evaluate(path, test, reference=model)
        after, reference = compared.model, compared.reference
        assert reference is not None
        figures = (result.average_bits, after.top1, after.per_class[after.worst_class], compared.agreement)
        ratio, seconds = after.latency_ms / reference.latency_ms, sum(result.seconds.values())
        tail = (f"{after.bytes / 1000:,.0f}", f"{ratio:.2f}", f"{seconds:.0f}")
        rows.append(["", title, *(f"{figure:.2f}" for figure in figures), *tail])
        print(f"{job.title}, {title}: done", file=sys.stderr)
    return rows


def main() -> None:
    """Run all jobs."""
    print_table(HEADER, [row for job in JOBS for row in run(job)])


if __name__ == "__main__":
    main()
