"""Progress in a log: a line a minute, with what is left of a stage by its own speed."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from onnx_cbq.cli import progress
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
