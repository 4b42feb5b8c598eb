"""What the benchmarks share: where the data is, a table, and a verdict that decides the exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
CARDS = ROOT / "calibration"
# The torch net that gradients are compared with lives in the tests.
sys.path.insert(0, str(ROOT))


def data_path(name: str) -> Path:
    """Where a file of the real data is, if it is there."""
    return Path(os.environ.get("ONNX_CBQ_DATA", ROOT.parent / "shared" / "data")) / name


def data_file(name: str) -> Path:
    """A file of the real data; ends the run with one line where it is missing."""
    path = data_path(name)
    if not path.exists():
        sys.exit(f"{path} is missing; set ONNX_CBQ_DATA to the folder of the data (docs/results.md, The data)")
    return path


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A Markdown table, as the documentation shows it."""
    for row in (header, ["---"] + ["---:"] * (len(header) - 1), *rows):
        print("| " + " | ".join(row) + " |")


def run_elsewhere(python: Path, script: str, *arguments: str | Path) -> str:
    """What a script of this folder prints in another environment; ends the run with what it says where it fails."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(part) for part in (python, Path(__file__).with_name(script), *arguments)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603, our script
    if ran.returncode:
        sys.exit(f"{script} failed in the environment of {python}:\n{ran.stderr}")
    return ran.stdout


class Requirements:
    """Limits on what was measured: each is printed, and `exit_code` is 1 if one was missed."""

    def __init__(self) -> None:
        self.exit_code = 0

    def at_most(self, what: str, value: float, limit: float) -> None:
        """Print `value` beside its upper limit."""
        self._hold(what, value, f"at most {limit:,g}", missed=not value <= limit)

    def at_least(self, what: str, value: float, limit: float) -> None:
        """Print `value` beside its lower limit."""
        self._hold(what, value, f"at least {limit:,g}", missed=not value >= limit)

    def _hold(self, what: str, value: float, limit: str, *, missed: bool) -> None:
        shown = f"{value:,.0f}" if float(value).is_integer() else f"{value:,.3f}"
        print(f"{what}: {shown}, required {limit}: {'MISSED' if missed else 'ok'}")
        self.exit_code |= missed
