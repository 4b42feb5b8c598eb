"""What the merging process and a worker hold in every stage, on a made net with worker processes: prints JSON.

Batches are small and every one is a shard, so that classes have several: then sums of neurons are sent back, as they
are where a class has many samples. What Python and numpy hold is counted to the byte.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from scale_meter import BITS, as_planned, run_stages
from scale_nets import Net, made_net, made_samples

from onnx_cbq import QuantizeConfig
from onnx_cbq.evidence import scoring
from onnx_cbq.execution import Place
from onnx_cbq.execution.processes import processes
from onnx_cbq.verification import counts

BATCH, PLANNED = 8, 1_300_000


def peak_of(pid: int) -> int:
    """The most bytes that a process held so far, without what it started; 0 where the system does not say."""
    try:
        status = Path("/proc", str(pid), "status").read_text(encoding="utf-8")
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s*(\d+) kB", status)
    return 1024 * int(found[1]) if found else 0


def main() -> None:
    """Run the stages, and print what each held beyond what was there before, what it left, and the peaks."""
    parser = argparse.ArgumentParser()
    for name in ("samples", "classes", "width", "side"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args()
    scoring.LARGEST_BATCH = counts.LARGEST_BATCH = BATCH
    scoring._TOGETHER = 1  # noqa: SLF001, nobody else changes it
    held: dict[str, tuple[int, int]] = {}

    @contextmanager
    def watch(name: str) -> Iterator[None]:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        yield
        now, peak = tracemalloc.get_traced_memory()
        held[name] = (peak - before, now - before)

    net = made_net(options.width, options.classes, options.side)
    samples = made_samples(options.samples, options.classes, options.side)
    with processes(2, Place(1)) as engine, as_planned(options.samples, PLANNED) as compensation:
        tracemalloc.start()
        config = QuantizeConfig(BITS, samples=options.samples, compensation=compensation)
        work = run_stages((net, samples), config, engine, watch)
        workers = [peak_of(child.pid or 0) for child in multiprocessing.active_children()]
    sizes = asdict(Net.of(work.layers.layers, options.classes))
    json.dump(
        {**vars(options), "net": sizes, "held": held, "merging": peak_of(os.getpid()), "worker": max(workers)},
        sys.stdout,
    )


if __name__ == "__main__":
    main()
