"""Two models side by side in the runtime of another environment, as JSON: OpenVINO if it is there, else onnxruntime.

Runs in an environment of its own, so it imports nothing of this project. `differing` counts the samples whose outputs
are not the same to the last bit, `seconds` is what opening each model took, `latencies` are median seconds at batch 1,
and `refused` is what the runtime says of a model that it does not open.

PYTHON benchmarks/other_runtime.py INPUTS.npz FIRST.onnx SECOND.onnx
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 100
SECONDS = 10.0
Run = Callable[[dict[str, Any]], Any]


def open_by_openvino(path: Path) -> Run:
    """A function from inputs to the first output."""
    import openvino  # noqa: PLC0415, where it is installed

    compiled = openvino.Core().compile_model(str(path), "CPU")
    return lambda feeds: compiled(feeds)[0]


def open_by_onnxruntime(path: Path) -> Run:
    """A function from inputs to the first output."""
    import onnxruntime  # noqa: PLC0415, where the other is not installed

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds)[0]


def median_latencies(runs: list[Run], feeds: dict[str, Any]) -> list[float]:
    """Median seconds of each, taking turns."""
    spent: list[list[float]] = [[] for _ in runs]
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        for run, times in zip(runs, spent, strict=True):
            start = time.perf_counter()
            run(feeds)
            times.append(time.perf_counter() - start)
    return [float(np.median(times)) for times in spent]


def main() -> None:
    """Open, run, compare, print."""
    source, *models = map(Path, sys.argv[1:])
    name = "openvino" if importlib.util.find_spec("openvino") else "onnxruntime"
    open_model = {"openvino": open_by_openvino, "onnxruntime": open_by_onnxruntime}[name]
    with np.load(source) as file:
        inputs = dict(file)
    samples = len(next(iter(inputs.values())))
    batches = [{key: x[i : i + BATCH] for key, x in inputs.items()} for i in range(0, samples, BATCH)]
    found: dict[str, Any] = {"runtime": f"{name} {importlib.import_module(name).__version__}", "samples": samples}
    outputs, seconds, runs = [], [], []
    for path in models:
        start = time.perf_counter()
        try:
            run = open_model(path)
        except Exception as error:  # noqa: BLE001, of every runtime another
            found["refused"] = f"{path.name}: {' '.join(str(error).split())}"
            break
        seconds.append(time.perf_counter() - start)
        runs.append(run)
        outputs.append(np.concatenate([np.array(run(feeds)) for feeds in batches]))
    else:
        first, second = outputs
        found["differing"] = int((first != second).any(1).sum())
        found["largest"] = float(np.abs(first - second).max())
        found["latencies"] = median_latencies(runs, {key: x[:1] for key, x in inputs.items()})
    sys.stdout.write(json.dumps(found | {"seconds": seconds}) + "\n")


if __name__ == "__main__":
    main()
