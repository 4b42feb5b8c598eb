"""Run commands on one file, and say what no command may do: end in a traceback, print more than its one line, waste."""

from __future__ import annotations

import os
import re
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from onnx_cbq.cli import main as entry

LONGEST = 10.0  # seconds of the processor
MOST_MEMORY = 2 << 30
_MEMORY = re.compile(r"out of memory|bad_alloc|Failed to allocate|Unable to allocate")


@dataclass(frozen=True)
class Verdict:
    """How a command ended: `fault` is "" if it may end so, else of which kind it is, and `detail` shows it."""

    command: str
    code: int
    line: str
    seconds: float
    memory: int
    fault: str = ""
    detail: str = ""


@contextmanager
def captured_streams(scratch: Path) -> Iterator[Path]:
    """What libraries in C++ print as well goes to a file; stdout goes nowhere."""
    kept, before = (os.dup(1), os.dup(2)), sys.stderr
    path = scratch / "stderr"
    with path.open("w") as errors, Path(os.devnull).open("w") as nowhere:
        # Whoever captures already has replaced it, and no longer writes to 2.
        sys.stderr = errors
        sys.stdout.flush()
        os.dup2(nowhere.fileno(), 1)
        os.dup2(errors.fileno(), 2)
        try:
            yield path
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            sys.stderr = before
            for number, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, number)
                os.close(copy)


def judge(arguments: Sequence[object], scratch: Path) -> Verdict:
    """Run `onnx-cbq` with these arguments in this process."""
    before, raised, code = _reset_peak(), "", -1
    began, argv = time.process_time(), ["onnx-cbq", *map(str, arguments)]
    with captured_streams(scratch) as printed, patch.dict(os.environ, {entry.TRACEBACK: "1"}), patch("sys.argv", argv):
        try:
            entry.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else -1
        except BaseException as error:  # noqa: BLE001, whatever it is, it is what is looked for
            frame = traceback.extract_tb(error.__traceback__)[-1]
            ours = [f for f in traceback.extract_tb(error.__traceback__) if "onnx_cbq" in f.filename][-1:]
            at = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in [frame, *ours])
            raised = f"{type(error).__name__} at {at}: {str(error)[:200]}"
    seconds, memory = time.process_time() - began, _peak() - before
    lines = printed.read_text(errors="replace").splitlines()
    verdict = Verdict(str(arguments[0]), code, lines[-1] if lines else "", seconds, memory)
    fault, detail = _fault(verdict, raised, lines)
    return (
        Verdict(*vars(verdict).values())
        if not fault
        else Verdict(verdict.command, code, verdict.line, seconds, memory, fault, detail)
    )


def _fault(verdict: Verdict, raised: str, lines: list[str]) -> tuple[str, str]:
    if raised:
        return ("memory" if raised.startswith("MemoryError") else "traceback"), raised
    if verdict.memory > MOST_MEMORY or _MEMORY.search(verdict.line):
        return "memory", f"{verdict.memory >> 20} MiB: {verdict.line}"
    if verdict.seconds > LONGEST:
        return "time", f"{verdict.seconds:.0f} s: {verdict.line}"
    said = len(lines) == 1 and lines[0].startswith("onnx-cbq: ")
    fine = {0: not lines, 1: said, 3: said or not lines}.get(verdict.code, False)
    return ("", "") if fine else ("stderr", f"code {verdict.code}, {len(lines)} lines: {' | '.join(lines)[:300]}")


def _reset_peak() -> int:
    """Forget the most memory that this process had, and say what it has."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _peak()
    return _peak()


def _peak() -> int:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s*(\d+) kB", status)
    return 1024 * int(found[1]) if found else 0
