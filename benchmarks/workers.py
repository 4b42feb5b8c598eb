"""Scoring and evaluation with one process of one thread, and with two workers of one thread each, in turn.

The workers have started when the clock starts. A round is the whole work over samples: what is sent, sessions that are
opened (in every process), and the sums. The overhead of shards is the core seconds of all processes beside those of the
single one. The latency that an evaluation measures besides, in one process whoever evaluates, is left out.

On an idle machine of at least two cores; what else runs takes from two workers first.

python benchmarks/workers.py
python benchmarks/workers.py --digits --rounds 3
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import CARDS, ROOT, Requirements, data_file
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from onnx_cbq import CalibrationSet, QuantizeConfig
from onnx_cbq.calibration.draw import draw, everything
from onnx_cbq.evidence.gradients import ScoringWork
from onnx_cbq.evidence.scoring import score_channels
from onnx_cbq.evidence.scoring_graph import scoring_graph
from onnx_cbq.evidence.workload import Workload, prepare
from onnx_cbq.execution import Engine, InProcess, Place
from onnx_cbq.execution.processes import processes
from onnx_cbq.records import Grouping
from onnx_cbq.system.processor import microarchitecture, processor_kind
from onnx_cbq.system.workers import cores, share
from onnx_cbq.verification import comparison
from onnx_cbq.verification.comparison import compare

WORKERS = 2
LEAST_TIMES, LARGEST_OVERHEAD = 1.7, 0.05


def stages(work: Workload, samples: int) -> dict[str, Callable[[Engine], object]]:
    """What is timed, by name."""
    graph = scoring_graph(work.model, work.layers, work.logits, work.example, QuantizeConfig().scoring)
    scoring = ScoringWork(graph, work.layers, work.samples, Grouping.single(work.class_names))
    drawn = draw(work.samples, work.class_names, samples, seed=0)
    indices = np.resize(everything(work.samples, work.class_names), samples)
    asked = work.logits, work.samples, indices
    return {
        "scoring": lambda engine: score_channels(scoring, drawn, engine=engine),
        "evaluation": lambda engine: compare([work.model], [0], asked, engine=engine),
    }


def core_seconds(pid: int) -> float:
    """Of another process so far; 0 where the system does not say."""
    try:
        content = Path("/proc", str(pid), "stat").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    user, system = content.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def spent_by_all() -> float:
    """Core seconds of this process and its workers."""
    return time.process_time() + sum(core_seconds(child.pid or 0) for child in multiprocessing.active_children())


def timed(work: Callable[[Engine], object], engine: Engine) -> tuple[float, float]:
    """Seconds of the clock, and of all cores."""
    start, before = time.perf_counter(), spent_by_all()
    work(engine)
    return time.perf_counter() - start, spent_by_all() - before


def main() -> int:
    """Measure, print, and return 1 if a requirement was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits", action="store_true", help="the bundled net, in place of ResNet-20")
    parser.add_argument("--samples", type=int, default=2000, help="samples of a round (default: 2,000)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default: 5)")
    options = parser.parse_args()
    model = ROOT / "samples" / "digits_cnn.onnx" if options.digits else data_file("resnet20_cifar10.onnx")
    source = None if options.digits else data_file("cifar10_calibration.npz")
    card = CARDS / ("digits.toml" if options.digits else "cifar10.toml")
    work = prepare(model, CalibrationSet.from_card(card, source))
    share(1)
    threadpool_limits(1)
    vars(comparison)["median_latency"] = lambda sessions, _: [0.0] * len(sessions)
    one, required = Place(1), Requirements()
    table = Table("stage", "1 process, s", f"{WORKERS} workers, s", "times as fast", "overhead of shards")
    print(f"processor: {microarchitecture()}, {processor_kind()}, {cores()} cores")
    print(f"{model.name}, {options.samples:,} samples")
    with processes(WORKERS, one) as engine:
        for name, stage in stages(work, options.samples).items():
            both = (InProcess(one), engine)
            rounds = [[value for each in both for value in timed(stage, each)] for _ in range(options.rounds + 1)]
            # The first warms up.
            alone, alone_busy, shared, shared_busy = np.median(rounds[1:], axis=0)
            times, overhead = alone / shared, shared_busy / alone_busy - 1
            table.add_row(name, f"{alone:.3f}", f"{shared:.3f}", f"{times:.2f}", f"{overhead:.1%}")
            required.at_least(f"{name}: times as fast with {WORKERS} workers", times, LEAST_TIMES)
            required.at_most(f"{name}: overhead of shards", overhead, LARGEST_OVERHEAD)
    Console(width=120).print(table)
    return required.exit_code


if __name__ == "__main__":
    sys.exit(main())
