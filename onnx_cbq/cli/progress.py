"""How far a command is: bars where somebody looks at a terminal, a line now and then where stderr is a file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from onnx_cbq.cli.console import ERR
from onnx_cbq.system.progress import Progress as ProgressHook
from onnx_cbq.system.progress import silent

# Seconds between two lines of a log.
EVERY = 60.0
# Columns of a terminal that a bar has room in.
_WIDE = 60


@contextmanager
def progress_bars(*, quiet: bool) -> Iterator[ProgressHook]:
    """A bar per stage on a terminal, with the time it has taken and what is left by that; else a line a minute."""
    if quiet:
        yield silent
    elif not ERR.is_terminal:
        yield Lines(lambda line: ERR.print(line, soft_wrap=True))
    else:
        with _bars() as update:
            yield update


@contextmanager
def _bars() -> Iterator[ProgressHook]:
    columns: list[ProgressColumn] = [TextColumn("{task.description:>12}", markup=False)]
    columns += [BarColumn()] if ERR.width >= _WIDE else []
    columns += [TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()]
    with Progress(*columns, console=ERR, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def update(stage: str, done: int, total: int) -> None:
            # Behind a comma stands what changes: a loss, an accuracy.
            name = stage.partition(",")[0]
            if name not in tasks:
                tasks[name] = bars.add_task(stage, total=total)
            bars.update(tasks[name], description=stage, completed=done, total=total)

        yield update


class Lines:
    """A line for a log at most every so many seconds: the stage, how far it is, the time so far, and what is left.

    What is left of a stage is by its own speed; how long the stages behind it take is not known.
    """

    def __init__(
        self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic, every: float = EVERY
    ) -> None:
        self._write, self._clock, self._every = write, clock, every
        self._begun = self._last = clock()
        self._stages: dict[str, float] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Take note of the progress of `stage`."""
        now = self._clock()
        since = self._stages.setdefault(stage.partition(",")[0], now)
        if now - self._last < self._every:
            return
        self._last = now
        share = f"{100 * done / total:.0f} %" if total else "begun"
        left = f", about {_text((now - since) * (total - done) / done)} left" if done and now > since else ""
        self._write(f"{stage}: {share}{left}; {_text(now - self._begun)} in all")


def _text(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
