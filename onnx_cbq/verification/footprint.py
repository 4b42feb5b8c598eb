"""How much memory a model takes once it runs, found in a process of its own.

python -m onnx_cbq.verification.footprint MODEL FEEDS.npz [STEPS]

prints by how many bytes the process has grown once the model was loaded and had run.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import psutil

from onnx_cbq.errors import ModelError
from onnx_cbq.model import Array
from onnx_cbq.runtime import Session
from onnx_cbq.stepping.session import FirstSteps
from onnx_cbq.system.temporary import temporary_folder


def footprint(path: Path, feeds: Mapping[str, Array], steps: int | None = None) -> int:
    """Bytes that a model, or the first `steps` of a folder, takes beside the interpreter and the libraries.

    Cost: the start of an interpreter, and a run.

    Raises:
        ModelError: the model cannot be run in a process of its own.
    """
    with temporary_folder() as folder:
        given = folder / "feeds.npz"
        np.savez(given, **dict(feeds))  # type: ignore[arg-type]  # of its flag
        command = [sys.executable, "-m", __name__, str(path), str(given), *([str(steps)] if steps else [])]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # this interpreter
    if ended.returncode:
        reason = (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]
        raise ModelError(f"{path}: cannot be run in a process of its own: {reason}")
    return int(ended.stdout)


def main() -> None:
    """Load and run what the command line names."""
    path, given, *steps = sys.argv[1:]
    with np.load(given) as arrays:
        feeds = dict(arrays)
    process = psutil.Process()
    before = process.memory_info().rss
    session = FirstSteps(path, int(steps[0])) if steps else Session(Path(path))
    session.run(feeds)
    print(process.memory_info().rss - before)  # noqa: T201


if __name__ == "__main__":
    main()
