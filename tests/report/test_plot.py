"""The trade-off as a picture: every point where its figures say, on any width, in any character set."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from rich.console import Console

from onnx_cbq.cli import console
from onnx_cbq.jobs.result import CurvePoint, Result
from onnx_cbq.records import Evaluation
from onnx_cbq.report.plot import TradeOff
from tests.command import Command
from tests.conftest import DIGITS_CARD, DIGITS_MODEL
from tests.jobs.test_result import QUANTIZED, result

BITS = (1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
OVERALL = (60.0, 85.0, 88.5, 90.0, 91.2, 91.3, 91.4, 91.4)
WORST = (30.0, 72.0, 78.0, 80.0, 83.0, 84.0, 84.0, 84.0)
# The plan of `result`: (8 + 1) x 3 and (0 + 2 + 4) x 4 bits of 18 weights.
CHOSEN = 51 / 18
QUICK = ("--rounding", "nearest", "--samples", "40", "--method", "uniform", "--curve")


def evaluation(overall: float, worst: float | None) -> Evaluation:
    return replace(QUANTIZED, top1=overall, per_class=(worst, overall, None))


def with_curve(worst: tuple[float | None, ...] = WORST) -> Result:
    points = (CurvePoint(bits, bits, 5, evaluation(a, b)) for bits, a, b in zip(BITS, OVERALL, worst, strict=True))
    return replace(result(), curve=tuple(points), reference=evaluation(91.5, 84.5), quantized=evaluation(89.0, 79.0))


def drawn(shown: Result, width: int, encoding: str = "utf-8", *, terminal: bool = False) -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    colours: Literal["standard", "auto"] = "standard" if terminal else "auto"
    target = Console(file=file, width=width, soft_wrap=True, force_terminal=terminal or None, color_system=colours)
    target.print(TradeOff(shown))
    file.seek(0)
    return file.read()


def points(picture: str, signs: str) -> list[tuple[float, float]]:
    """The signs of the canvas as (bits, accuracy), by the numbers of the axes alone."""
    lines = picture.splitlines()
    numbers = next(line for line in lines if re.fullmatch(r"[\d ]+", line) and len(line.split()) > 1)
    columns = [(match.start(), float(match[0])) for match in re.finditer(r"\d+", numbers)]
    rows = [(y, float(match[1])) for y, line in enumerate(lines) if (match := re.match(r" *([\d.]+) [┤+]", line))]

    def value(place: int, marks: list[tuple[int, float]]) -> float:
        (first, low), (last, high) = marks[0], marks[-1]
        return low + (high - low) * (place - first) / (last - first)

    return sorted(
        (value(match.start(), columns), value(y, rows))
        for y in range(rows[0][0], rows[-1][0] + 1)
        for match in re.finditer(f"[{re.escape(signs)}]", lines[y].removesuffix(" float"))
    )


@pytest.mark.parametrize(
    ("width", "encoding"), [(80, "utf-8"), (200, "utf-8"), (60, "utf-8"), (40, "utf-8"), (40, "ascii")]
)
def test_points_are_where_their_figures_say(width: int, encoding: str) -> None:
    """Within half a place of either axis: 10 % of accuracy are two rows, and a bit takes at least three columns."""
    picture = drawn(with_curve(), width, encoding)
    signs = ("●", "○", "◆") if encoding == "utf-8" else ("o", "x", "#")
    bit = 1 / 3 if width == 40 else 1 / 6
    for sign, accuracies in zip(signs, (OVERALL, WORST), strict=False):
        found = points(picture, sign)
        assert [bits for bits, _ in found] == pytest.approx(BITS, abs=bit / 2)
        assert [accuracy for _, accuracy in found] == pytest.approx(accuracies, abs=2.5)
    chosen = points(picture, signs[2])
    assert [bits for bits, _ in chosen] == pytest.approx([CHOSEN] * 2, abs=bit / 2)
    assert [accuracy for _, accuracy in chosen] == pytest.approx([79, 89], abs=2.5)
    assert "chosen: 2.833 bits" in picture
    assert max(map(len, picture.splitlines())) <= min(width, 80)


def test_the_float_model_is_a_line_for_each_accuracy() -> None:
    lines = drawn(with_curve(), 80).splitlines()
    rows = [y for y, line in enumerate(lines) if line.endswith(" float")]
    top = next(y for y, line in enumerate(lines) if line.startswith("100 ┤"))
    assert [100 - 5 * (y - top) for y in rows] == pytest.approx([91.5, 84.5], abs=2.5)
    assert all("╌╌╌╌" in lines[y] for y in rows)
    assert sum("╌" in line for line in lines) == 2


def test_small_differences_get_fine_numbers() -> None:
    """Points of 99.1 to 99.6 % that all lie in one row would say nothing."""
    shown = replace(with_curve((None,) * 8), reference=evaluation(99.6, None), quantized=evaluation(99.5, None))
    curve = tuple(replace(p, evaluation=evaluation(99.1 + 0.1 * k, None)) for k, p in enumerate(shown.curve[:5]))
    picture = drawn(replace(shown, curve=curve), 80)
    assert [accuracy for _, accuracy in points(picture, "●")] == pytest.approx([99.1, 99.2, 99.3, 99.4, 99.5], abs=0.03)
    assert "○" not in "".join(line for line in picture.splitlines() if "┤" in line)


def test_all_alike_is_a_flat_line() -> None:
    """An axis of no length would divide by zero."""
    flat = evaluation(100.0, 100.0)
    point = CurvePoint(CHOSEN, CHOSEN, 5, flat)
    picture = drawn(replace(with_curve(), curve=(point,), reference=flat, quantized=flat), 80)
    assert [accuracy for _, accuracy in points(picture, "◆")] == [100]


@pytest.mark.parametrize("width", [1, 20, 31])
def test_a_terminal_that_is_too_narrow_gets_none(width: int) -> None:
    assert drawn(with_curve(), width) == ""


def test_colours_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file, and a terminal with NO_COLOR, get characters alone; a terminal of ASCII no others."""
    plain = drawn(with_curve(), 80)
    assert "\x1b" not in plain
    assert "\x1b[36m" in drawn(with_curve(), 80, terminal=True)
    assert drawn(with_curve(), 80, "ascii").isascii()
    monkeypatch.setenv("NO_COLOR", "1")
    assert drawn(with_curve(), 80, terminal=True) == plain


def test_the_command_draws_what_its_table_says(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the table of --curve; nothing with --quiet."""
    monkeypatch.setattr(console.OUT, "_width", 80)
    arguments = (
        "quantize",
        DIGITS_MODEL,
        "--data",
        DIGITS_CARD,
        "--output",
        tmp_path / "q.onnx",
        "--bits",
        "4",
        *QUICK,
    )
    done = command(*arguments)
    assert (done.code, done.err) == (0, "")
    table, _, picture = done.out.rpartition("\ntop-1 accuracy, %\n")
    rows = re.findall(r"^(\d\.\d{3}) +(\d+\.\d\d) ", table, re.MULTILINE)
    averages, accuracies = ([float(row[k]) for row in rows] for k in (0, 1))
    assert averages == [2, 3, 4, 5, 6, 8]
    found = [(bits, share) for bits, share in points(picture, "●◆") if share > min(accuracies) - 1]
    for average, accuracy in zip(averages, accuracies, strict=True):
        assert any(abs(average - bits) < 0.1 and abs(accuracy - share) <= 2.5 for bits, share in found), average
    assert {bits for bits, _ in points(picture, "◆")} == {4}
    quiet = command(*arguments, "--quiet")
    assert (quiet.code, quiet.out) == (0, "")
