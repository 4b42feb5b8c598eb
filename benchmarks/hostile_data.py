"""Damaged and hostile cards, `.npz` files and images: each is to be used, or refused in one line, soon and cheaply.

    python benchmarks/hostile_data.py [--cards 10000] [--npz 2000] [--images 2000] [--seed 0]

Valid ones are changed at random (`tests/calibration/mutations.py`), read whole and evaluated with the sample model. A
fault is an exception that is none of ours, a message of several lines, more than 2 GB, more than 10 seconds, or
anything on stderr. Exit code 1 if there was any.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from common import Requirements, print_table

from tests.calibration import mutations
from tests.calibration.trials import Trials, Verdict, without_latency

_SHOWN = 40


def verdicts(kind: str, count: int, seed: int, trials: Trials) -> Iterator[tuple[int, Verdict]]:
    """What each of `count` changed files of a kind led to."""
    bases = mutations.image_bases()
    for index in range(count):
        random = np.random.default_rng([seed, len(kind), index])
        if kind == "cards":
            yield index, trials.card(mutations.card(random))
        elif kind == "npz":
            yield index, trials.npz(mutations.npz(random))
        else:
            yield index, trials.image(*mutations.image(random, bases), skip=bool(index % 2))


def main() -> int:
    """Try all kinds; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind, count in (("cards", 10_000), ("npz", 2_000), ("images", 2_000)):
        parser.add_argument(f"--{kind}", type=int, default=count, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    without_latency()
    required, rows = Requirements(), []
    with tempfile.TemporaryDirectory(prefix="hostile-") as name, tempfile.TemporaryFile() as noise:
        said = os.dup(2)
        os.dup2(noise.fileno(), 2)
        trials = Trials(Path(name))
        for kind in ("cards", "npz", "images"):
            ends: Counter[str] = Counter()
            start, slowest = time.monotonic(), 0.0
            before = time.monotonic()
            for index, found in verdicts(kind, getattr(arguments, kind), arguments.seed, trials):
                slowest, before = max(slowest, time.monotonic() - before), time.monotonic()
                ends[found.end] += 1
                if found.is_fault and sum(ends.values()) - ends["used"] - ends["refused"] <= _SHOWN:
                    print(f"{kind} {index}: {found.end}: {found.what[:300]}", flush=True)
            faults = sum(ends.values()) - ends["used"] - ends["refused"]
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
            figures = (sum(ends.values()), ends["used"], ends["refused"], faults)
            rows.append(
                (kind, *map(str, figures), f"{slowest:.2f}", f"{memory:.2f}", f"{time.monotonic() - start:.0f}")
            )
        os.dup2(said, 2)
        noise.seek(0)
        text = noise.read().decode(errors="replace")
    print_table(("files", "tried", "used", "refused", "faults", "slowest, s", "memory, GiB", "seconds"), rows)
    if text:
        print(text[:2000])
    required.at_most("faults", sum(int(row[4]) for row in rows), 0)
    required.at_most("bytes on stderr", len(text), 0)
    return required.exit_code


if __name__ == "__main__":
    sys.exit(main())
