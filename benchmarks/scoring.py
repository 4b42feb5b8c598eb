"""What the scoring pass costs: time beside a forward pass and beside torch autograd, memory with more samples.

All three read the same class-pure batches of ResNet-20 and take turns in one run; the ratios are of their medians.

- scoring: the whole pass, from making the session to beta, saliency and squared gradients per layer.
- forward: the float model in onnxruntime, outputs only.
- torch: the net rebuilt from its ONNX nodes, torch.autograd.grad at every layer's output, then the same sums. With one
  thread and with all, and the faster of the two counts: on a busy machine its threads wait for each other.

Memory is the peak of a process that does nothing else, with 1,000 and with 10,000 samples.

python benchmarks/scoring.py
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from common import CARDS, Requirements, data_file

from onnx_cbq import CalibrationSet, QuantizeConfig, score
from onnx_cbq.calibration.draw import Draw, draw
from onnx_cbq.calibration.samples import Batch
from onnx_cbq.evidence.gradients import ScoringWork
from onnx_cbq.evidence.scoring import batch_size, score_channels
from onnx_cbq.evidence.scoring_graph import scoring_graph
from onnx_cbq.evidence.workload import Workload, prepare
from onnx_cbq.records import Grouping
from onnx_cbq.runtime import Session

LARGEST_OVER_FORWARD = 4.0
LARGEST_OVER_TORCH = 0.55
LARGEST_MEMORY_GROWTH = 1.05


def calibration() -> CalibrationSet:
    """The CIFAR-10 calibration samples."""
    return CalibrationSet.from_card(CARDS / "cifar10.toml", data_file("cifar10_calibration.npz"))


def batches(work: Workload, drawn: Draw) -> Iterator[tuple[int, Batch]]:
    """The batches that the scoring pass takes: one class each."""
    for label, indices in enumerate(drawn.by_class):
        for batch in work.samples.batches(indices, batch_size(work.layers)):
            yield label, batch


def passes(work: Workload, drawn: Draw) -> dict[str, Callable[[], object]]:
    """The passes to time."""
    # Imported late: a child process starts with its parent's peak, and torch would cover the memory being measured.
    import torch  # noqa: PLC0415

    from tests.torch_resnet import OnnxResNet  # noqa: PLC0415

    net = OnnxResNet(work.model.to_proto())
    name = work.model.inputs[0].name

    def scoring() -> None:
        graph = scoring_graph(work.model, work.layers, work.logits, work.example, QuantizeConfig().scoring)
        score_channels(ScoringWork(graph, work.layers, work.samples, Grouping.single(work.class_names)), drawn)

    def forward() -> None:
        session = Session(work.model)
        for _, batch in batches(work, drawn):
            session.run(batch.feeds)

    def torch_autograd(threads: int) -> None:
        torch.set_num_threads(threads)
        totals: list[list[torch.Tensor]] = []
        for label, batch in batches(work, drawn):
            logits, outputs = net(torch.tensor(batch.feeds[name], requires_grad=True))
            gradients = torch.autograd.grad(logits[:, label].sum(), outputs)
            sums = []
            for z, g in zip(outputs, gradients, strict=True):
                criticality = (z.detach() * g).abs()
                axes = [axis for axis in range(g.ndim) if axis != 1]
                sums += [(criticality > 0).sum(0), criticality.sum(axes), (g * g).sum(axes)]
            totals.append(sums)

    timed: dict[str, Callable[[], object]] = {"scoring": scoring, "forward": forward}
    for threads in sorted({1, torch.get_num_threads()}):
        timed[f"torch, threads: {threads}"] = partial(torch_autograd, threads)
    return timed


def medians(timed: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each function, the functions taking turns; the first round only warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(rounds + 1):
        for name, function in timed.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(spent[1:])) for name, spent in seconds.items()}


def peak_memory(samples: int) -> int:
    """Peak kilobytes of a process that scores so many samples."""
    command = [sys.executable, __file__, "--peak-of", str(samples)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)  # noqa: S603, this file


def main() -> int:
    """Measure, print, and return 1 if a requirement was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default: 5)")
    parser.add_argument("--peak-of", type=int, metavar="SAMPLES", help="only score so many samples and print the peak")
    options = parser.parse_args()
    model = data_file("resnet20_cifar10.onnx")
    if options.peak_of:
        score(model, calibration(), QuantizeConfig(samples=options.peak_of))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return 0
    few, many = (peak_memory(samples) for samples in (1000, 10000))
    work = prepare(model, calibration())
    drawn = draw(work.samples, work.class_names, 1000, seed=0)
    spent = medians(passes(work, drawn), options.rounds)
    for name, seconds in spent.items():
        print(f"{name}: {seconds:.3f} s for 1,000 samples in batches of {batch_size(work.layers)}")
    print(f"peak memory: {few / 1024:.0f} MiB with 1,000 samples, {many / 1024:.0f} MiB with 10,000")
    fastest = min(seconds for name, seconds in spent.items() if name.startswith("torch"))
    required = Requirements()
    required.at_most("scoring / forward", spent["scoring"] / spent["forward"], LARGEST_OVER_FORWARD)
    required.at_most("scoring / torch", spent["scoring"] / fastest, LARGEST_OVER_TORCH)
    required.at_most("peak memory, 10,000 / 1,000 samples", many / few, LARGEST_MEMORY_GROWTH)
    return required.exit_code


if __name__ == "__main__":
    sys.exit(main())
