"""Progress in a log: a line a minute, with what is left of a stage by its own speed, and what is left in all."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

import pytest
from rich.console import Console

from onnx_cbq.cli import progress
from onnx_cbq.cli.estimate import Route
from onnx_cbq.cli.progress import Lines


class Clock:
    """Goes on by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_log_gets_a_line_a_minute() -> None:
    lines: list[str] = []
    clock = Clock()
    tell = Lines(lines.append, clock)
    for done in range(401):
        clock.now = 100 + done
        tell("rounding", done, 400)
    assert len(lines) == 6
    assert lines[0] == "rounding: 15 %, about 5:40 left; 1:00 so far"
    assert lines[5] == "rounding: 90 %, about 0:40 left; 6:00 so far"


def test_each_stage_has_a_speed_of_its_own() -> None:
    """Statistics that took an hour say nothing of how long rounding takes."""
    lines: list[str] = []
    clock = Clock()
    tell = Lines(lines.append, clock)
    tell("statistics", 0, 10)
    clock.now += 3600
    tell("statistics, loss 0.12", 10, 10)
    clock.now += 10
    tell("rounding", 0, 50)
    clock.now += 55
    tell("rounding", 5, 50)
    assert lines == [
        "statistics, loss 0.12: 100 %, about 0:00 left; 1:00:00 so far",
        "rounding: 10 %, about 8:15 left; 1:01:05 so far",
    ]


def test_a_stage_of_nothing_is_no_error() -> None:
    lines: list[str] = []
    Lines(lines.append, Clock(), every=0)("search", 0, 0)
    assert lines == ["search: begun; 0:00 so far"]


def test_a_stage_that_comes_again_is_timed_anew() -> None:
    """As the search for every point of a curve: by the speed since its first run, it would take for ever."""
    lines: list[str] = []
    clock = Clock()
    tell = Lines(lines.append, clock)
    for _ in range(2):
        tell("search", 0, 10)
        clock.now += 1000
        tell("search", 10, 10)
    tell("search", 0, 10)
    clock.now += 60
    tell("search", 5, 10)
    assert lines[-1] == "search: 50 %, about 1:00 left; 34:20 so far"


ROUTE = Route(("tables", "search", "rounding", "evaluation"), 2000)


def story(clock: Clock) -> Iterator[tuple[str, int, int]]:
    """Statistics of ten minutes behind a first look of one."""
    for stage, seconds in (("samples", 60), ("tables", 600), ("search", 240), ("rounding", 540), ("evaluation", 144)):
        for done in range(0, 1001, 10):
            clock.now += seconds / 100 if done else 0
            yield stage, done, 1000


def test_a_log_says_what_is_left_in_all_once_that_is_known() -> None:
    lines: list[str] = []
    clock = Clock()
    tell = Lines(lines.append, clock, route=ROUTE)
    clock.now += 0.25
    for told in story(clock):
        tell(*told)
    assert lines[0] == "samples: 100 %, about 0:00 left; 1:00 so far"
    assert lines[1] == "tables: 10 %, about 9:00 left; 2:00 so far"
    assert lines[5] == "tables: 50 %, about 5:00 left; 6:00 so far, about 20 min left in all"
    assert lines[11] == "search: 26 %, about 2:58 left; 12:03 so far, about 14 min left in all"
    assert lines[-1].startswith("evaluation: ")
    assert re.search(r"; 2[56]:\d\d so far, about \d0 s left in all$", lines[-1])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "about 10 s"),
        (44, "about 40 s"),
        (94, "about 90 s"),
        (95, "about 2 min"),
        (3540, "about 59 min"),
        (3590, "about 1 h"),
        (4800, "about 1 h 20 min"),
        (90000, "about 25 h"),
    ],
)
def test_an_estimate_is_no_more_exact_than_it_can_be(seconds: float, text: str) -> None:
    assert progress._about(seconds) == text


@pytest.mark.parametrize(("width", "fits"), [(60, False), (66, True), (80, True), (200, True)])
def test_bars_say_what_is_left_in_all(monkeypatch: pytest.MonkeyPatch, width: int, fits: bool) -> None:
    """In one line, on the bar of the stage that runs alone; not at all where it would take a second line."""
    terminal, clock = io.StringIO(), Clock()
    monkeypatch.setattr(progress, "ERR", Console(file=terminal, force_terminal=True, width=width, no_color=True))
    shown = []
    with progress.progress_bars(quiet=False, route=ROUTE) as tell:
        for told in story(clock):
            tell(*told)
            if told[:2] == ("rounding", 500):
                break
        terminal.truncate(0)
    for line in re.sub(r"\x1b\[[\d?]*[A-Za-z]", "\n", terminal.getvalue()).splitlines():
        shown += [line.rstrip()] if "%" in line else []
    assert len(shown) == len({line.split()[0] for line in shown}) == 4
    assert all(len(line) <= width for line in shown)
    assert [line.split()[0] for line in shown if "left in all" in line] == (["rounding"] if fits else [])
    if fits:
        assert shown[-1].endswith("about 10 s left in all")  # by the clock on the wall


@pytest.mark.parametrize("width", [30, 59, 60, 200])
def test_bars_fit_the_terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(progress, "ERR", Console(file=terminal, force_terminal=True, width=width, no_color=True))
    with progress.progress_bars(quiet=False) as tell:
        tell("rounding", 3, 4)
    assert "rounding" in terminal.getvalue()
    assert "75%" in terminal.getvalue() or width < 40
    assert "\x1b[3" not in terminal.getvalue()  # no colour


def test_a_log_that_is_no_terminal_stays_empty_for_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(progress, "ERR", Console(file=log))
    with progress.progress_bars(quiet=False) as tell:
        tell("rounding", 3, 4)
    assert log.getvalue() == ""
