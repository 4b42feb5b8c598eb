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
from onnx_cbq.cli.estimate import Route, Span, seconds_left, told
from onnx_cbq.system.progress import Progress as ProgressHook
from onnx_cbq.system.progress import silent

# Seconds between two lines of a log.
EVERY = 60.0
# Columns of a terminal that a bar has room in, and those that all but the bar takes, with the time left in all.
_WIDE, _BESIDE_BAR = 60, 66
# Of a bar.
_SHORTEST, _LONGEST = 6, 40


@contextmanager
def progress_bars(*, quiet: bool, route: Route | None = None) -> Iterator[ProgressHook]:
    """A bar per stage on a terminal, with the time it has taken and what is left by that; else a line a minute.

    With a route both say what is left in all, once that can be told.
    """
    if quiet:
        yield silent
    elif not ERR.is_terminal:
        yield Lines(lambda line: ERR.print(line, soft_wrap=True), route=route)
    else:
        with _bars(route) as update:
            yield update


@contextmanager
def _bars(route: Route | None) -> Iterator[ProgressHook]:
    columns: list[ProgressColumn] = [TextColumn("{task.description:>12}", markup=False)]
    told_in_all = route is not None and ERR.width >= _BESIDE_BAR
    room = ERR.width - _BESIDE_BAR if told_in_all else _LONGEST if ERR.width >= _WIDE else 0
    columns += [BarColumn(min(room, _LONGEST))] if room >= _SHORTEST else []
    columns += [TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()]
    columns += [TextColumn("{task.fields[in_all]}", markup=False)] if told_in_all else []
    with Progress(*columns, console=ERR, transient=True) as bars:
        tasks: dict[str, TaskID] = {}
        story = _Story(route)

        def update(stage: str, done: int, total: int) -> None:
            # Behind a comma stands what changes: a loss, an accuracy.
            name = stage.partition(",")[0]
            begins = story.tell(stage, done, total).begun == story.now
            for task in tasks.values() if begins else ():
                bars.update(task, in_all="")
            if name not in tasks:
                tasks[name] = bars.add_task(stage, total=total, in_all="")
            elif begins:
                bars.reset(tasks[name], total=total)
            bars.update(tasks[name], description=stage, completed=done, total=total, in_all=story.left_in_all())

        yield update


class _Story:
    """The runs of stages so far, by a clock."""

    def __init__(self, route: Route | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._route, self._clock = route, clock
        self.begun = self.now = clock()
        self.spans: tuple[Span, ...] = ()

    def tell(self, stage: str, done: int, total: int) -> Span:
        """Take note of the progress of `stage`; gives its run back."""
        self.now = self._clock()
        self.spans = told(self.spans, self.now, stage, done, total, self.begun)
        return self.spans[-1]

    def left_in_all(self) -> str:
        """What is left in all, in words; "" where nobody knows."""
        left = seconds_left(self.spans, self._route) if self._route is not None else None
        return "" if left is None else f"{_about(left)} left in all"


class Lines:
    """A line for a log at most every so many seconds: the stage, how far it is, what is left of it, the time so far.

    What is left of a stage is by its own speed.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        every: float = EVERY,
        route: Route | None = None,
    ) -> None:
        self._write, self._every, self._story = write, every, _Story(route, clock)
        self._last = self._story.begun

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Take note of the progress of `stage`."""
        story = self._story
        span = story.tell(stage, done, total)
        if story.now - self._last < self._every:
            return
        self._last = story.now
        share = f"{100 * span.share:.0f} %" if total else "begun"
        left = "" if span.left is None else f", about {_text(span.left)} left"
        in_all = story.left_in_all()
        so_far = f"{_text(story.now - story.begun)} so far"
        self._write(f"{stage}: {share}{left}; {so_far}{', ' if in_all else ''}{in_all}")


def _about(seconds: float) -> str:
    """A time that is not known better: ten seconds, minutes, hours and tens of minutes."""
    if seconds < 95:
        return f"about {max(round(seconds, -1), 10):.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"about {minutes} min"
    hours, minutes = divmod(round(minutes, -1), 60)
    return f"about {hours} h {minutes} min" if minutes else f"about {hours} h"


def _text(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
