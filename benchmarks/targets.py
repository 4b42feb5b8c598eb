"""Whether files are right with the kernels that run: what is written for each target, by each storage and method.

Calibrates on 1,000 samples and predicts the test images with the kernels of this processor and with the plain graph,
from which they differ by rounding alone if the file is right. The exit code is 1 if a requirement was missed.
Takes about an hour on two cores; `--only TITLE`, which may hold `*` and be repeated, makes some of the files.

python benchmarks/targets.py
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from common import CARDS, Requirements, data_file, print_table
from latency import quantize_by_onnxruntime

from onnx_cbq import CalibrationSet, DifferentiableConfig, QuantizeConfig, check, quantize, restore
from onnx_cbq.evidence.workload import Workload, prepare
from onnx_cbq.model import Array
from onnx_cbq.runtime import Session, median_latency
from onnx_cbq.system.processor import processor_kind

RESNET, TORCHSCRIPT = "resnet20_cifar10.onnx", "resnet20_cifar10_torchscript.onnx"
UNIFORM = QuantizeConfig(8, "uniform")
FEW = (4, 3, 2)
MOST_DIFFERING = 0.3  # % of the test images that kernels and plain graph predict differently
LARGEST_PLAIN_GAP = 0.15
LARGEST_COST = {8: 0.05, 4: 0.0, 2: 0.0}  # points that the limit of pairs may cost, by bits
WEIGHTS_ONLY = QuantizeConfig(4, activation_bits=0, storage="packed")
WEIGHTS_ONLY_BYTES, WEIGHTS_ONLY_LATENCY = 160_000, 1.05
FLOAT_ROUNDING = 1e-4  # of the largest logit
SECONDS = 20.0


@dataclass(frozen=True)
class Job:
    """A file to make and what it has to reach.

    Attributes:
        least: top-1 with the kernels that run, in percent.
        below_float: or by how many points it may fall below the float model.
    """

    title: str
    config: QuantizeConfig
    model: str = RESNET
    data: str = "cifar10"
    least: float | None = None
    below_float: float | None = None


JOBS = (
    Job("uniform, 8 bits", UNIFORM, least=88.15),
    Job("uniform, 8 bits, TorchScript", UNIFORM, TORCHSCRIPT, least=88.15),
    Job("uniform, 8 bits, nearest", replace(UNIFORM, rounding="nearest")),
    Job("uniform, 8 bits, VGG-small", UNIFORM, "vgg_small_cifar10.onnx", below_float=0.1),
    Job("uniform, 8 bits, LeNet", UNIFORM, "lenet_mnist.onnx", "mnist", below_float=0.1),
    *(Job(f"default, {bits} bits", QuantizeConfig(bits)) for bits in FEW),
    Job("cbq, 4 bits", QuantizeConfig(4, "cbq")),
    Job("differentiable, 4 bits", QuantizeConfig(4, "differentiable", differentiable=DifferentiableConfig(updates=50))),
    Job("default, 4 bits, 4-bit activations", QuantizeConfig(4, activation_bits=4)),
    Job("packed, 4 bits", QuantizeConfig(4, storage="packed")),
    Job("archive, 3 bits", QuantizeConfig(3, storage="archive")),
    Job("archive, ecsq, 2 bits", QuantizeConfig(2, storage="archive", codebook="ecsq")),
    Job("kmeans, 8 bits", QuantizeConfig(8, codebook="kmeans")),
    Job("hessian-kmeans, 4 bits", QuantizeConfig(4, codebook="hessian-kmeans")),
    Job("arm64, 8 bits", replace(UNIFORM, target="arm64")),
    Job("openvino, 8 bits", replace(UNIFORM, target="openvino")),
    Job("xnnpack, 8 bits", replace(UNIFORM, target="xnnpack")),
    Job("tensorrt, 8 bits", replace(UNIFORM, target="tensorrt"), least=88.0),
    Job("qnn, 8 bits", replace(UNIFORM, target="qnn"), least=88.0),
    Job("vitis, 8 bits", replace(UNIFORM, target="vitis"), least=87.5),
)


@dataclass(frozen=True)
class Test:
    """A model beside its test images."""

    work: Workload
    calibration: CalibrationSet

    @staticmethod
    def of(model: str, data: str) -> Test:
        """The model and images of these names."""
        card = CARDS / f"{data}.toml"
        test = CalibrationSet.from_card(card, data_file(f"{data}_test.npz"))
        calibration = CalibrationSet.from_card(card, data_file(f"{data}_calibration.npz"))
        return Test(prepare(data_file(model), test), calibration)

    def outputs(self, path: Path, *, plain: bool = False) -> Array:
        """The logits of all test images, [images, classes]."""
        session, samples = Session(path, "off" if plain else "all"), self.work.samples
        batch = session.samples or 100
        starts = range(0, len(samples.labels), batch)
        return np.concatenate([next(iter(session.run(samples.read(np.arange(i, i + batch))).values())) for i in starts])

    def top1(self, logits: Array) -> float:
        """Share of right predictions, in percent."""
        return float(np.mean(logits.argmax(1) == self.work.samples.labels) * 100)


def write(test: Test, model: str, config: QuantizeConfig, path: Path) -> None:
    """Quantize; what is saved as an archive is restored, since that is what runs."""
    result = quantize(data_file(model), test.calibration, config)
    if config.storage == "archive":
        result.save(path.with_suffix(".cbqz"))
        path.write_bytes(restore(path.with_suffix(".cbqz")))
    else:
        result.save(path)


def run(job: Job, test: Test, path: Path, required: Requirements) -> tuple[list[str], float]:
    """A row of the table, and the accuracy of the plain graph."""
    write(test, job.model, job.config, path)
    real, plain = test.outputs(path), test.outputs(path, plain=True)
    differing = float(np.mean(real.argmax(1) != plain.argmax(1)) * 100)
    top1, of_plain = test.top1(real), test.top1(plain)
    if job.least is not None:
        required.at_least(f"{job.title}: top-1", top1, job.least)
    if job.below_float is not None:
        required.at_least(f"{job.title}: top-1", top1, test.top1(test.outputs(data_file(job.model))) - job.below_float)
    required.at_least(f"{job.title}: top-1 beside the plain graph's", top1, of_plain - LARGEST_PLAIN_GAP)
    required.at_most(f"{job.title}: % predicted differently by the plain graph", differing, MOST_DIFFERING)
    checked = check(path, job.config.choice.target.name)
    required.at_most(f"{job.title}: violations", len(checked.violations) + (not checked.pair_safe), 0)
    return [job.title, f"{top1:.2f}", f"{of_plain:.2f}", f"{differing:.2f}", f"{path.stat().st_size:,}"], of_plain


def compare_with_vnni(test: Test, plain: Mapping[str, float], folder: Path, required: Requirements) -> None:
    """What the limit of pairs costs, by the plain graph of a file that does not keep to it."""
    for bits, limit in LARGEST_COST.items():
        config = UNIFORM if bits == UNIFORM.bits else QuantizeConfig(bits)
        path = folder / "vnni.onnx"
        title = f"{config.method if config.method == 'uniform' else 'default'}, {bits} bits"
        if title not in plain:
            continue
        write(test, RESNET, replace(config, target="vnni", run_check=False), path)
        cost = test.top1(test.outputs(path, plain=True)) - plain[title]
        required.at_most(f"{title}: points that the limit of pairs costs", cost, limit)


def run_weights_only(test: Test, folder: Path, required: Requirements) -> None:
    """Files without quantized activations: as fast as float, and the same numbers from either storage."""
    packed, plain = folder / "packed.onnx", folder / "int8.onnx"
    write(test, RESNET, WEIGHTS_ONLY, packed)
    write(test, RESNET, replace(WEIGHTS_ONLY, storage="int8"), plain)
    before, after = median_latency([Session(data_file(RESNET)), Session(packed)], test.work.samples.read([0]), SECONDS)
    required.at_most("weights only, packed, 4 bits: latency beside float", after / before, WEIGHTS_ONLY_LATENCY)
    required.at_most("weights only, packed, 4 bits: bytes", packed.stat().st_size, WEIGHTS_ONLY_BYTES)
    first, second = test.outputs(packed), test.outputs(plain)
    apart = float(np.abs(first - second).max() / np.abs(second).max())
    required.at_most("weights only: packed beside int8, share of the largest logit", apart, FLOAT_ROUNDING)
    print(f"weights only, packed, 4 bits: top-1 {test.top1(first):.2f} %")


def main() -> int:
    """Make and run every file, print, and return 1 if a requirement was missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", action="append", default=[])
    only = parser.parse_args().only or ["*"]
    jobs = [job for job in JOBS if any(fnmatch(job.title, pattern) for pattern in only)]
    tests = {key: Test.of(*key) for key in {(job.model, job.data): None for job in jobs} | {(RESNET, "cifar10"): None}}
    required = Requirements()
    print(f"processor: {processor_kind()}")
    rows, plain = [], {}
    resnet = tests[RESNET, "cifar10"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for job in jobs:
            row, plain[job.title] = run(job, tests[job.model, job.data], folder / "quantized.onnx", required)
            rows.append(row)
            print(f"{job.title}: done", file=sys.stderr)
        compare_with_vnni(resnet, plain, folder, required)
        if any(fnmatch("weights only", pattern) for pattern in only):
            run_weights_only(resnet, folder, required)
        theirs = folder / "onnxruntime.onnx"
        quantize_by_onnxruntime(data_file(RESNET), prepare(data_file(RESNET), resnet.calibration), theirs)
        required.at_least("quantize_static, uint8 x int8: violations", len(check(theirs).violations), 1)
    print_table(("ResNet-20 unless named", "top-1, %", "plain graph, %", "differing, %", "bytes"), rows)
    return required.exit_code


if __name__ == "__main__":
    sys.exit(main())
