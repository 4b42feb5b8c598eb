"""Whole runs in processes of their own, killed at random moments of their training: the same bytes, nothing twice."""

from __future__ import annotations

import hashlib
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import DIGITS_CARD, DIGITS_MODEL

START = f"""
import logging, sys
from pathlib import Path
from onnx_cbq import DifferentiableConfig, LearnedConfig, QuantizeConfig, RefineConfig, StepConfig, make_steps, quantize
from onnx_cbq.methods.differentiable import Differentiable
folder, output, log = map(Path, sys.argv[1:])
logging.basicConfig(filename=log, level="INFO", format="%(message)s")
model, card = {str(DIGITS_MODEL)!r}, {str(DIGITS_CARD)!r}
"""
QUANTIZE = """
quantize(model, card, config, cache=folder).save(output)
"""
JOBS = {
    "plain": """
config = QuantizeConfig(bits=3, samples=100)
"""
    + QUANTIZE,
    "learned": """
learned = LearnedConfig(updates=40, check_every=5)
config = QuantizeConfig(bits=2, method="uniform", rounding="learned", samples=100, activation_bits=4, learned=learned)
"""
    + QUANTIZE,
    "refine": """
refine = RefineConfig(updates=60, batch=32, check_every=5, bfloat16=False, augment=("shift",), weight_rate=0.03)
config = QuantizeConfig(bits=2, method="uniform", rounding="nearest", samples=100, activation_bits=4, refine=refine)
"""
    + QUANTIZE,
    "differentiable": """
method = Differentiable(updates=60, batch=32, bfloat16=False)
config = QuantizeConfig(bits=2, method=method, rounding="nearest", samples=100, activation_bits=0)
"""
    + QUANTIZE,
    "step": """
config = StepConfig(macs=(0.3, 0.7), updates=60, batch=32, rounds=6, check_every=5, bfloat16=False)
output.mkdir()
for name, content in make_steps(model, card, config, cache=folder).files.items():
    (output / name).write_bytes(content)
""",
}
# What logs say of a piece.
MADE, TAKEN = "computed, and kept in the cache", "from the cache"
# What is computed once, and what is held as long as it is not.
FINISHED = {
    "plain": {"class scores", "sensitivity", "tables", "plans", "rounding"},
    "learned": {"rounding", "learned rounding"},
    "refine": {"refined weights"},
    "differentiable": {"learned widths"},
    "step": {"moved units", "trained subnets"},
}


def digest(output: Path) -> str:
    files = sorted(output.iterdir()) if output.is_dir() else [output]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def logged(log: Path, what: str) -> set[tuple[str, str]]:
    text = log.read_text(encoding="utf-8") if log.exists() else ""
    return set(re.findall(rf"^([\w ]+) ([0-9a-f]{{12}}): {what}$", text, re.MULTILINE))


def remove(*paths: Path) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def states(folder: Path) -> set[tuple[str, int]]:
    """The files of the cache, and when each was written."""
    found = set()
    for path in folder.rglob("*.evidence"):
        try:
            found.add((path.name, path.stat().st_mtime_ns))
        except FileNotFoundError:
            continue
    return found


def killed(command: list[str], folder: Path, more: int, delay: float) -> bool:
    """Run, and kill once so many more files of the cache were written; whether that was before the end."""
    process = subprocess.Popen(command)  # noqa: S603
    seen, end = states(folder), time.monotonic() + 300
    enough = len(seen) + more
    while process.poll() is None and time.monotonic() < end:
        seen |= states(folder)
        if len(seen) >= enough:
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        time.sleep(0.002)
    return process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("job", ["plain", "learned"])
def test_a_run_killed_at_random_moments_repeats_nothing_that_was_finished(tmp_path: Path, job: str) -> None:
    """Killed again and again until it ends: while Python starts, inside onnxruntime, while an entry is written."""
    folder, output, log = tmp_path / "cache", tmp_path / "out.onnx", tmp_path / "log"
    command = [sys.executable, "-c", START + JOBS[job], str(folder), str(output), str(log)]
    begun = time.monotonic()
    subprocess.run(command, check=True)  # noqa: S603
    seconds, whole, everything = time.monotonic() - begun, digest(output), logged(log, MADE)
    assert {name for name, _ in everything} >= FINISHED[job]
    remove(folder, output)
    finished: set[tuple[str, str]] = set()
    chance, kills = np.random.default_rng(1), 0
    while not output.exists():
        remove(log)
        process = subprocess.Popen(command)  # noqa: S603
        try:
            # From some time on it has to end: a machine may be slower than it was at first.
            process.wait(chance.uniform(0.2, 0.9) * seconds if kills < 4 else 300)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        assert not logged(log, MADE) & finished
        finished |= logged(log, MADE)
    assert kills
    assert digest(output) == whole
    assert finished == everything


@pytest.mark.parametrize("job", ["refine", "differentiable", "step"])
def test_training_that_is_killed_anywhere_goes_on_to_the_same_bytes(tmp_path: Path, job: str) -> None:
    """Killed three times, each time some states later; then it ends, and has computed nothing that was finished."""
    pytest.importorskip("torch")
    folder, output, log = tmp_path / "cache", tmp_path / "out.onnx", tmp_path / "log"
    command = [sys.executable, "-c", START + JOBS[job], str(folder), str(output), str(log)]
    subprocess.run(command, check=True)  # noqa: S603
    whole, everything = digest(output), logged(log, MADE)
    assert {name for name, _ in everything} >= FINISHED[job]
    remove(folder, output, log)
    chance = np.random.default_rng(0)
    assert killed(command, folder, int(chance.integers(2, 6)), chance.uniform(0, 0.02))
    for _ in range(2):
        killed(command, folder, int(chance.integers(1, 4)), chance.uniform(0, 0.02))
    finished = logged(log, MADE)
    remove(output, log)
    subprocess.run(command, check=True)  # noqa: S603
    assert digest(output) == whole
    assert not logged(log, MADE) & finished
    assert logged(log, MADE) | finished == everything
    assert logged(log, TAKEN)
