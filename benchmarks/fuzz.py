"""Try every command on many models made at random, and group what does not hold by kind.

python benchmarks/fuzz.py --examples 20000 --jobs 2 --minutes 60 --output /tmp/faults

For each kind of fault the smallest model that was found is written as a folder of model.onnx, samples.npz and
fault.txt. Exit code 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import os
import sys

# Workers are processes; each has one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import random
import shutil
import tempfile
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from onnx_cbq.runtime import median_latency
from onnx_cbq.verification import comparison
from tests.generator.features import OFF
from tests.generator.jobs import Job, choose
from tests.generator.models import Case, build
from tests.generator.properties import BrokenError, examine, plain

_BATCH = 20
# Faults of these kinds are told apart by their messages too.
_BY_MESSAGE = ("refused without need", "its own check failed", "check finds something in what quantize wrote")


@dataclass(frozen=True)
class Found:
    """What came of one example; `wrong` is the kind of fault."""

    seed: int
    job: str
    features: frozenset[str]
    seconds: float
    refused: str | None = None
    wrong: str | None = None
    detail: str = ""
    shares: tuple[float, ...] = ()


def example(seed: int, off: frozenset[str]) -> tuple[Case, Job] | None:
    """The case and the command of a seed."""
    source = random.Random(seed)  # noqa: S311  # examples, not secrets
    case = build(source.randint, off)
    return None if case is None else (case, choose(source.randint))


def attempt(seed: int, off: frozenset[str]) -> Found | None:
    """Run one example; None if its model says nothing."""
    made = example(seed, off)
    if made is None:
        return None
    case, job = made
    started = time.monotonic()
    about = seed, job.name, case.features
    with tempfile.TemporaryDirectory() as folder:
        try:
            outcome = examine(case, job, Path(folder))
        except BrokenError as error:
            kind = f"{error.kind}: {plain(error.detail)}" if error.kind in _BY_MESSAGE else error.kind
            return Found(*about, time.monotonic() - started, wrong=kind[:160], detail=error.detail)
        except Exception as error:  # noqa: BLE001  # whatever comes out is what is looked for
            frames = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename]
            where = f"{Path(frames[-1].filename).name}:{frames[-1].name}"
            kind = f"{type(error).__name__} in {where}"
            return Found(*about, time.monotonic() - started, wrong=kind, detail=str(error))
    return Found(*about, outcome.seconds, outcome.refused, shares=tuple(outcome.distances.values()))


def attempts(seeds: range, off: frozenset[str], diary: Path) -> list[Found]:
    """A worker's part; the diary tells which example a process ended with."""
    comparison.__dict__["median_latency"] = partial(median_latency, seconds=0)
    warnings.simplefilter("error")
    results = []
    for seed in seeds:
        (diary / str(seeds.start)).write_text(str(seed))
        if (found := attempt(seed, off)) is not None:
            results.append(found)
    (diary / str(seeds.start)).unlink()
    return results


def in_processes(ranges: list[range], jobs: int, off: frozenset[str]) -> Iterator[list[Found]]:
    """What comes of each range; an example that ends its process is a fault, and the rest of its range goes on."""
    waiting = list(ranges)
    while waiting:
        with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(jobs) as pool:
            runs = {seeds: pool.submit(attempts, seeds, off, Path(folder)) for seeds in waiting}
            waiting = []
            for seeds, run in runs.items():
                diary = Path(folder) / str(seeds.start)
                try:
                    yield run.result()
                except BrokenProcessPool:
                    if not diary.exists():
                        waiting.append(seeds)
                        continue
                    # Several may have been under way: those before the last one are run again, one process each.
                    last = int(diary.read_text())
                    if jobs > 1:
                        yield from in_processes([range(seed, seed + 1) for seed in seeds], 1, off)
                        continue
                    made = example(last, off)
                    assert made is not None
                    about = last, made[1].name, made[0].features
                    yield [Found(*about, 0.0, wrong="ends the process", detail="in native code")]
                    waiting += [part for part in (range(seeds.start, last), range(last + 1, seeds.stop)) if part]


def tried(arguments: argparse.Namespace, off: frozenset[str]) -> Iterator[Found]:
    """All examples, until their number or the time is reached."""
    until = time.monotonic() + 60 * arguments.minutes
    starts = iter(range(arguments.seed, arguments.seed + arguments.examples, _BATCH))
    while time.monotonic() < until:
        ranges = [range(start, start + _BATCH) for start, _ in zip(starts, range(16 * arguments.jobs), strict=False)]
        if not ranges:
            return
        for part in in_processes(ranges, arguments.jobs, off):
            yield from part


def write(found: Found, off: frozenset[str], folder: Path) -> None:
    """A folder with the model, its samples and what went wrong."""
    made = example(found.seed, off)
    assert made is not None
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    onnx.save(made[0].model, folder / "model.onnx")
    arrays: dict[str, Any] = {**made[0].inputs, "y": made[0].labels}
    np.savez(folder / "samples.npz", **arrays)
    settings = f"logits {made[0].logits}\n{made[1].config}"
    (folder / "fault.txt").write_text(f"seed {found.seed}\n{found.job}\n{found.wrong}\n{found.detail}\n{settings}\n")


def common(faults: list[Found], everything: Counter[str]) -> str:
    """The rarest features that nearly all of `faults` have."""
    counted = Counter(feature for fault in faults for feature in fault.features)
    shared = [feature for feature, count in counted.items() if count >= 0.9 * len(faults)]
    return ", ".join(sorted(shared, key=lambda feature: everything[feature])[:3])


def main() -> int:
    """Run, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0, help="of the first example")
    parser.add_argument("--everything", action="store_true", help="features that are switched off as well")
    parser.add_argument("--output", type=Path, help="folder for a model of each kind of fault")
    arguments = parser.parse_args()
    off = frozenset() if arguments.everything else frozenset(OFF)
    started = time.monotonic()
    every = list(tried(arguments, off))
    features = Counter(feature for found in every for feature in found.features)
    faults: dict[str, list[Found]] = defaultdict(list)
    for found in every:
        if found.wrong:
            faults[found.wrong].append(found)
    report(every, faults, features, time.monotonic() - started)
    for number, (_, kind) in enumerate(sorted(faults.items(), key=lambda item: -len(item[1]))):
        if arguments.output:
            write(min(kind, key=lambda found: len(found.features)), off, arguments.output / f"{number:02}")
    return 1 if faults else 0


def report(every: list[Found], faults: dict[str, list[Found]], features: Counter[str], seconds: float) -> None:
    """Counts by command, true refusals, and faults by kind."""
    console = Console(width=200)
    counts = Table("command", "tried", "right", "refused truly", "wrong", "seconds, median", "longest")
    for job in sorted({found.job for found in every}):
        own = [found for found in every if found.job == job]
        times = [found.seconds for found in own]
        refused, wrong = sum(found.refused is not None for found in own), sum(found.wrong is not None for found in own)
        numbers = (len(own), len(own) - refused - wrong, refused, wrong)
        counts.add_row(job, *map(str, numbers), f"{np.median(times):.2f}", f"{max(times):.1f}")
    console.print(counts)
    for reason, count in Counter(found.refused for found in every if found.refused).most_common():
        console.print(f"refused {count}: {reason}", markup=False)
    for kind, found in sorted(faults.items(), key=lambda item: -len(item[1])):
        seeds = ", ".join(str(fault.seed) for fault in found[:3])
        where = common(found, features)
        console.print(f"wrong {len(found)}: {kind}", markup=False)
        console.print(f"    seeds {seeds}; in common: {where}\n    {found[0].detail[:300]}", markup=False)
    shares = [share for found in every for share in found.shares]
    if shares:
        parts = ", ".join(f"{value:.2f}" for value in np.percentile(shares, (50, 99, 100)))
        console.print(f"distances as a share of what rounding explains (median, 99 %, largest): {parts}")
    wrong = sum(map(len, faults.values()))
    console.print(f"{len(every)} examples of {len(features)} features in {seconds:.0f} s, {wrong} wrong")


if __name__ == "__main__":
    sys.exit(main())
