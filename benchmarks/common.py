"""What the benchmarks share: where the data is, a table, and a verdict that decides the exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
CARDS = ROOT / "calibration"
# The torch net that gradients are compared with lives in the tests.
sys.path.insert(0, str(ROOT))


def data_file(name: str) -> Path:
    """A file of the real data; ends the run with one line where it is missing."""
    folder = Path(os.environ.get("ONNX_CBQ_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / name).exists():
        sys.exit(f"{folder / name} is missing; set ONNX_CBQ_DATA to the folder of the data (README.md, The data)")
    return folder / name


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A Markdown table, as the README shows it."""
    for row in (header, ["---"] + ["---:"] * (len(header) - 1), *rows):
        print("| " + " | ".join(row) + " |")


class Requirements:
    """Upper limits on what was measured: each is printed, and `exit_code` is 1 if one was missed."""

    def __init__(self) -> None:
        self.exit_code = 0

    def at_most(self, what: str, value: float, limit: float) -> None:
        """Print `value` beside its limit."""
        missed = not value <= limit
        print(f"{what}: {value:.3f}, required at most {limit:g}: {'MISSED' if missed else 'ok'}")
        self.exit_code |= missed
