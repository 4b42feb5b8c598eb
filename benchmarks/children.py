"""Other processes, with what they took: time, memory, and why they failed; and environments that are made for them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Seconds between two looks at a child's memory.
_INTERVAL = 0.05
# Written last into an environment, so that one that was cut off is made again.
_READY = "ready.txt"
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_LONGEST_REASON = 200


class ChildError(Exception):
    """A child failed; the message is one line."""


@dataclass(frozen=True)
class Limits:
    """How long a child may run, and how much memory it may hold."""

    minutes: float
    gigabytes: float


UNLIMITED = Limits(minutes=float("inf"), gigabytes=float("inf"))


@dataclass(frozen=True)
class Spent:
    """What a child took: seconds, and the most bytes of memory (0 where there is no /proc to read it from)."""

    seconds: float
    peak: int


def run_child(command: Sequence[str | Path], folder: Path, limits: Limits) -> Spent:
    """Run a command in a folder until it ends, with its descendants.

    Raises:
        ChildError: it failed, ran too long or took too much memory; with it end its descendants.
    """
    environment = dict(os.environ)
    if str(command[0]) != sys.executable:  # another environment has its own packages
        environment.pop("PYTHONPATH", None)
    start, peak = time.perf_counter(), 0
    with (folder / "log.txt").open("w+", encoding="utf-8", errors="replace") as log:
        child = subprocess.Popen(  # noqa: S603, our scripts
            [str(part) for part in command],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            while child.poll() is None:
                peak = max(peak, memory(child.pid))
                if time.perf_counter() - start > limits.minutes * 60:
                    raise ChildError(f"stopped after {limits.minutes:g} minutes")
                if peak > limits.gigabytes * 1e9:
                    raise ChildError(f"stopped, since it took more than {limits.gigabytes:g} GB of memory")
                time.sleep(_INTERVAL)
        finally:
            with contextlib.suppress(ProcessLookupError):  # all have ended
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        spent = Spent(time.perf_counter() - start, peak)
        if child.returncode < 0:
            raise ChildError(f"ended by signal {-child.returncode}")
        log.seek(0)
        if child.returncode:
            raise ChildError(_reason(log.read()) or f"exit code {child.returncode}, without a word")
    return spent


def memory(pid: int) -> int:
    """The most bytes that a process held so far, with those of its descendants; 0 if it is gone.

    Of a child that is waited for the system would give the peak as well, but starts it with that of its parent.
    """
    place = Path("/proc", str(pid))
    try:
        found = re.search(r"VmHWM:\s*(\d+) kB", (place / "status").read_text(encoding="utf-8"))
        children = [pid for task in (place / "task").iterdir() for pid in (task / "children").read_text().split()]
    except OSError:  # it has just ended, or this system has no such folder
        return 0
    return (1024 * int(found[1]) if found else 0) + sum(memory(int(child)) for child in children)


def make_environment(folder: Path, name: str, packages: Sequence[str]) -> Path:
    """The interpreter of a virtual environment with such packages, made in `folder` unless it is there already.

    Raises:
        ChildError: a package cannot be installed.
    """
    asked = "\n".join((sys.version, *packages))
    place = folder / f"{name}-{hashlib.sha256(asked.encode()).hexdigest()[:10]}"
    python = place / "bin" / "python"
    if (place / _READY).exists():
        return python
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    print(f"installing {' '.join(packages)} in {place}", file=sys.stderr)
    try:
        run_child([sys.executable, "-m", "venv", place], place, UNLIMITED)
        run_child([python, "-m", "pip", "install", "--no-input", *packages], place, UNLIMITED)
    except ChildError as error:
        raise ChildError(f"cannot be installed: {error}") from None
    (place / _READY).write_text(asked, encoding="utf-8")
    return python


def _reason(log: str) -> str:
    """The line of a log that says what went wrong: what pip calls an error, else the last one."""
    lines = [text for line in _COLOUR.sub("", log).splitlines() if (text := " ".join(line.split()))]
    said = next((line for line in lines if line.startswith("ERROR: ")), lines[-1] if lines else "")
    return said.removeprefix("ERROR: ").replace("|", "/")[:_LONGEST_REASON]
