"""Damaged models and archives through every command: each is to succeed, or to refuse in one line, soon and cheaply.

    python benchmarks/hostile_files.py [--models 10000] [--archives 10000] [--seed 0]

Each model goes through a command drawn at random, every fifth through two: inspect, evaluate, quantize --data-free,
quantize, check or archive; each archive through restore. Forked processes do some hundreds each, are killed where they
hang, and may use 8 GiB; what counts as a fault is in `tests/hostile/judge.py`. Exit code 1 if there was any.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import Requirements

from onnx_cbq.cli.main import COMMANDS, load
from onnx_cbq.runtime import median_latency
from onnx_cbq.verification import comparison
from tests.hostile.archives import archives_of, damaged
from tests.hostile.bases import CLASSES, FLOAT, SHAPE, on_integers, quantized
from tests.hostile.judge import LONGEST, Verdict, judge
from tests.hostile.messages import mutated

_PER_PROCESS = 250
_ADDRESS_SPACE = 8 << 30
_PATIENCE = 4 * LONGEST  # wall clock, since other processes may be at work
_KINDS = ("traceback", "crash", "memory", "time", "stderr")


def commands(path: Path, folder: Path) -> tuple[tuple[object, ...], ...]:
    """What a model goes through."""
    card, out = folder / "card.toml", folder / "out.onnx"
    quick = ("--bits", "5", "--method", "uniform", "--rounding", "nearest", "--samples", "16", "--no-equalize")
    return (
        ("inspect", path),
        ("evaluate", path, "--data", card),
        ("quantize", path, "--data-free", "-o", out, "--json", folder / "out.json"),
        ("quantize", path, "--data", card, *quick, "-o", out),
        ("quantize", path, "--data", card, *quick, "-o", out, "--activation-bits", "0", "--storage", "packed"),
        ("check", path),
        ("archive", path, "-o", folder / "out.cbqz"),
    )


def prepare(folder: Path) -> None:
    """The samples that damaged models are run on."""
    x = np.random.default_rng(0).standard_normal((40, *SHAPE)).astype(np.float32)
    np.savez(folder / "data.npz", x=x, y=np.arange(40) % CLASSES)
    (folder / "card.toml").write_text('source = "data.npz"\n')


def run_model(index: int, seed: int, folder: Path, bases: list[Any]) -> Iterator[Verdict]:
    """One damaged model."""
    random = np.random.default_rng([seed, index])
    base = bases[int(random.integers(len(bases)))]
    path = folder / "m.onnx"
    path.write_bytes(mutated(base, random))
    every = commands(path, folder)
    for chosen in random.choice(len(every), 1 + int(random.random() < 0.2), replace=False).tolist():
        yield judge(every[chosen], folder)


def run_archive(index: int, seed: int, folder: Path, bases: list[bytes], model: Any) -> Iterator[Verdict]:
    """One damaged archive."""
    path = folder / "a.cbqz"
    path.write_bytes(damaged(bases, model, np.random.default_rng([seed, index])))
    yield judge(("restore", path, "-o", folder / "restored.onnx"), folder)


def work(run: Callable[..., Iterator[Verdict]], start: int, end: int, writer: int) -> None:
    """Runs `start` to `end` in this process, each announced by its number."""
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory(prefix="hostile-") as name, os.fdopen(writer, "w") as out:
        folder = Path(name)
        prepare(folder)
        for index in range(start, end):
            print(json.dumps(index), file=out, flush=True)
            for verdict in run(index, folder=folder):
                print(json.dumps(asdict(verdict)), file=out, flush=True)


def supervise(run: Callable[..., Iterator[Verdict]], count: int) -> Iterator[tuple[int, Verdict]]:
    """Runs 0 to `count`, in one process after the other."""
    start = 0
    while start < count:
        end = min(start + _PER_PROCESS, count)
        child, reader = _fork(run, start, end)
        last, kind = start - 1, "crash"
        try:
            for found in _lines(reader):
                if isinstance(found, int):
                    last = found
                else:
                    yield last, Verdict(**found)
        except TimeoutError:
            kind = "time"
            os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code:
            yield last, Verdict("?", code, "", 0, 0, kind, f"the process ended with {code}")
        start = max(last, start) + 1 if code else end


def _fork(run: Callable[..., Iterator[Verdict]], start: int, end: int) -> tuple[int, int]:
    """A process that does some runs, and where it says how they end."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return child, reader
    os.close(reader)
    code = 1
    try:
        work(run, start, end, writer)
        code = 0
    except BaseException:  # noqa: BLE001, nobody above would print it
        traceback.print_exc()
    finally:
        os._exit(code)


def _lines(reader: int) -> Iterator[Any]:
    """What a process says, line by line; an error where it says nothing for too long."""
    with os.fdopen(reader, "rb", buffering=0) as lines:
        rest = b""
        while select.select([lines], [], [], _PATIENCE)[0]:
            piece = lines.read(1 << 16)
            if not piece:
                return
            *whole, rest = (rest + piece).split(b"\n")
            yield from map(json.loads, whole)
        raise TimeoutError


def report(title: str, found: Iterator[tuple[int, Verdict]]) -> int:
    """Print what was found; returns the number of faults."""
    faults: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    codes: Counter[int] = Counter()
    slowest, largest = 0.0, 0
    for index, verdict in found:
        codes[verdict.code] += 1
        slowest, largest = max(slowest, verdict.seconds), max(largest, verdict.memory)
        if verdict.fault:
            faults[verdict.fault] += 1
            key = f"{verdict.fault}: {verdict.detail[:60]}"
            seen[key] += 1
            if seen[key] <= 2:
                print(f"  {title} {index} {verdict.command}: {verdict.fault}: {verdict.detail}", flush=True)
    print(f"{title}: {sum(codes.values()):,} runs; exit codes {dict(sorted(codes.items()))}; slowest {slowest:.1f} s, ")
    print(f"  most memory {largest >> 20} MiB; " + ", ".join(f"{kind} {faults[kind]}" for kind in _KINDS))
    return faults.total()


def main() -> int:
    """Run both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("models", 10_000), ("archives", 10_000), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", type=int, help="run this number alone, in this process")
    arguments = parser.parse_args()
    # As the command does: they are for whoever writes a program.
    warnings.simplefilter("ignore")
    setattr(comparison, "median_latency", partial(median_latency, seconds=0))  # noqa: B010, that name is not its own
    for command in COMMANDS:
        load(command)  # once, before processes are forked
    made = quantized()
    bases = [make() for make in FLOAT] + [made, on_integers()]
    models = partial(run_model, seed=arguments.seed, bases=bases)
    archives = partial(run_archive, seed=arguments.seed, bases=list(archives_of(made)), model=made)
    if arguments.only is not None:
        folder = Path(tempfile.mkdtemp(prefix="hostile-"))
        prepare(folder)
        print(folder)
        for verdict in (models if arguments.models else archives)(arguments.only, folder=folder):
            print(verdict)
        return 0
    required = Requirements()
    required.at_most("faults of models", report("model", supervise(models, arguments.models)), 0)
    required.at_most("faults of archives", report("archive", supervise(archives, arguments.archives)), 0)
    return required.exit_code


if __name__ == "__main__":
    sys.exit(main())
