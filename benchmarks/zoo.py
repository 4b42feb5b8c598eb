"""Quantize every model of a folder, and say of each whether it is right, refused, wrong or slow.

python benchmarks/zoo_models.py FOLDER    # in each environment that has an exporter
python benchmarks/zoo.py FOLDER [--bits 4] [--match 'torchvision*'] [--seconds 120]

Samples are NAME.npz beside NAME.onnx (an array for each input, and labels `y`); a model without any is quantized by its
weights alone. Right is: the file runs, keeps names and shapes, and its class scores stay closer to the float model's
than the mean of the scores does; a refusal is one line within ten seconds. Exit code 1 if anything was wrong or slow.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from rich.console import Console
from rich.table import Table

import onnx_cbq
from onnx_cbq import CalibrationSet, OnnxCbqError, QuantizeConfig, RateDistortionConfig, RoundingConfig
from onnx_cbq.model import Array

# A refusal takes no longer; that covers reading a large model.
_REFUSED_WITHIN = 10.0
# Distance of the class scores from the float model's, in standard deviations of the latter; the mean alone gives 1.
_FAR = 1.0
# Scores that vary by less than this share of their size are taken to be alike.
_ALIKE = 0.05


@dataclass(frozen=True)
class Outcome:
    """What became of one model."""

    kind: str
    seconds: float
    detail: str
    distance: float = float("nan")
    agreement: float = float("nan")


def quantize(path: Path, bits: float, rounding: str, scratch: Path) -> Outcome:
    """Quantize one model with quick settings, and hold it against the float one."""
    started = time.monotonic()
    target = scratch / "quantized.onnx"
    samples = path.with_suffix(".npz")
    config = QuantizeConfig(
        bits=bits,
        rounding=rounding,
        search=RateDistortionConfig(exchanges=2),
        compensation=RoundingConfig(refits=1, sweeps=1, rows=500, passes=2),
    )
    inputs: dict[str, Array] = {}
    try:
        if samples.exists():
            inputs = dict(np.load(samples))
            labels = inputs.pop("y")
            result = onnx_cbq.quantize(path, CalibrationSet.from_arrays(inputs, labels), config)
            result.save(target)
            notes = "; ".join(note for note in result.notes if "samples" not in note and "slower" not in note)
        else:
            free = onnx_cbq.quantize_without_data(path)
            free.save(target)
            notes = "; ".join(free.notes)
    except OnnxCbqError as error:
        seconds = time.monotonic() - started
        kind = "refused" if error.exit_code == 1 and seconds < _REFUSED_WITHIN else "wrong"
        return Outcome(kind, seconds, str(error))
    seconds = time.monotonic() - started
    if not inputs:
        return Outcome("right", seconds, notes)
    distance, agreement = compare(path, target, inputs)
    return Outcome("right" if distance < _FAR else "wrong", seconds, notes, distance, agreement)


def compare(path: Path, target: Path, inputs: dict[str, Array]) -> tuple[float, float]:
    """Distance of the first float output in standard deviations, and the share of samples with the same prediction."""
    session = onnxruntime.InferenceSession(str(path))
    known = {info.name for info in session.get_inputs()}
    feeds = {name: value for name, value in inputs.items() if name in known} or {next(iter(known)): inputs["x"]}
    outputs = session.run(None, feeds)
    index, reference = next((i, scores) for i, value in enumerate(outputs) if (scores := _scores(value)) is not None)
    found = _scores(onnxruntime.InferenceSession(str(target)).run(None, feeds)[index])
    assert found is not None
    # Deep nets of random weights may give the same scores for all samples, to the last digits.
    deviation = max(float(reference.std(axis=0).mean()), _ALIKE * float(np.sqrt(np.square(reference).mean()))) or 1.0
    distance = float(np.sqrt(np.square(found - reference).mean())) / deviation
    return distance, float((found.argmax(axis=1) == reference.argmax(axis=1)).mean())


def _scores(output: Any) -> Array | None:
    """An output as numbers [samples, ...] -> [samples, n], those of ZipMap as well; None if it has none."""
    values = np.array([list(row.values()) for row in output]) if isinstance(output, list) else output
    return values.reshape(len(values), -1) if values.dtype.kind == "f" else None


def in_a_process(path: Path, bits: float, rounding: str, seconds: float) -> Outcome:
    """The same, in a process of its own: whatever happens there is an outcome."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, __file__, str(path), "--one", "--bits", str(bits), "--rounding", rounding]
    started = time.monotonic()
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=seconds, check=False, env=environment
        )
    except subprocess.TimeoutExpired:
        return Outcome("slow", seconds, f"more than {seconds:.0f} s")
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return Outcome("wrong", time.monotonic() - started, f"traceback: {last}")
    return Outcome(**json.loads(lines[-1]))


def main() -> int:
    """Run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bits", type=float, default=4.0)
    parser.add_argument(
        "--rounding", default="compensate", help="compensate or nearest; large nets take minutes by the first"
    )
    parser.add_argument("--match", default="*", help="pattern of names")
    parser.add_argument("--seconds", type=float, default=300.0, help="for each model")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        with tempfile.TemporaryDirectory() as scratch:
            print(json.dumps(vars(quantize(arguments.folder, arguments.bits, arguments.rounding, Path(scratch)))))
        return 0
    console = Console(width=180)
    table = Table("model", "outcome", "seconds", "distance", "same prediction, %", "what it said")
    outcomes = []
    for path in sorted(arguments.folder.glob("*.onnx"), key=lambda path: path.stat().st_size):
        if not fnmatch(path.stem, arguments.match):
            continue
        found = in_a_process(path, arguments.bits, arguments.rounding, arguments.seconds)
        outcomes.append(found.kind)
        console.print(f"{path.stem}: {found.kind}, {found.seconds:.1f} s {found.detail[:150]}", markup=False)
        numbers = [f"{found.seconds:.1f}", f"{found.distance:.3f}", f"{100 * found.agreement:.0f}"]
        table.add_row(path.stem, found.kind, *numbers, found.detail[:100])
    console.print(table)
    console.print(", ".join(f"{kind} {outcomes.count(kind)}" for kind in dict.fromkeys(outcomes)))
    return 1 if {"wrong", "slow"} & set(outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
