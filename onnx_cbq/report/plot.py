"""The trade-off as a picture of characters: accuracy over average bits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from onnx_cbq.jobs.result import Result
from onnx_cbq.records import Evaluation
from onnx_cbq.report.tables import accuracy_name

# Columns and rows that a picture takes at most, and the columns that it needs.
_WIDEST, _NARROWEST, _HIGHEST = 80, 32, 16
# Between two marks of the axis of accuracy, in percent, and how many such spaces there are at most.
_SPACINGS, _SPACES = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20), 7
# What stands for what; where a terminal has ASCII alone, the second of each.
_OVERALL, _WORST, _CHOSEN, _BETWEEN, _FLOAT = ("●", "o"), ("○", "x"), ("◆", "#"), ("·", "."), ("╌", "-")
_UP, _MARK, _CORNER, _ALONG = ("│", "|"), ("┤", "+"), ("└", "+"), ("─", "-")
_COLOURS = {_OVERALL: "cyan", _WORST: "yellow", _CHOSEN: "magenta"}
_LABEL = " float"

_Sign = tuple[str, str]
_Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """Values along `cells` + 1 places, of which every `each`th has a mark: exactly a multiple of `spacing`."""

    low: float
    spacing: float
    each: int
    cells: int

    def place(self, value: float) -> int:
        """Where a value lies."""
        return round((value - self.low) / self.spacing * self.each)

    def marks(self) -> Iterator[tuple[int, str]]:
        """Each mark: where it is, and its number."""
        for place in range(0, self.cells + 1, self.each):
            yield place, f"{self.low + place // self.each * self.spacing:g}"


def axis_of(values: Sequence[float], spacing: float, most: int) -> Axis:
    """An axis that holds all values, whose marks are `spacing` apart, on at most `most` cells if that can be."""
    first = math.floor(min(values) / spacing)
    spaces = max(math.ceil(max(values) / spacing) - first, 1)
    each = max(most // spaces, 1)
    return Axis(first * spacing, spacing, each, spaces * each)


@dataclass(frozen=True)
class TradeOff:
    """A picture of a result with a curve; nothing where the terminal is too narrow for one.

    Of the marks that share a place, the chosen point is shown, or else the accuracy overall.
    """

    result: Result

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The lines, by the width and the characters that there are."""
        width = min(options.max_width, _WIDEST)
        if width >= _NARROWEST:
            yield Text()
            yield from _drawn(self.result, width, ascii_only=options.ascii_only)


def _drawn(result: Result, width: int, *, ascii_only: bool) -> Iterator[Text]:
    chosen = (result.average_bits, result.quantized)
    found = sorted([(p.average_bits, p.evaluation) for p in result.curve] + [chosen], key=lambda point: point[0])
    overall = [(bits, evaluation.top1) for bits, evaluation in found]
    worst = _worst_of(found)
    lines = [result.reference.top1, *(share for _, share in _worst_of([(0.0, result.reference)]))]
    accuracies = [*(share for _, share in (*overall, *worst)), *lines]
    spacing = next((s for s in _SPACINGS if axis_of(accuracies, s, 0).cells <= _SPACES), _SPACINGS[-1])
    up = axis_of(accuracies, spacing, _HIGHEST)
    margin = max(len(number) for _, number in up.marks())
    along = axis_of([bits for bits, _ in found], 1.0, width - margin - 3 - len(_LABEL))

    signs: dict[tuple[int, int], _Sign] = {}
    for share in lines:
        signs |= {(up.place(share), column): _FLOAT for column in range(along.cells + 1)}
    for points in (worst, overall):
        signs |= dict.fromkeys(_between(points, along, up), _BETWEEN)
    marked = [(chosen[0], chosen[1].top1), *_worst_of([chosen])]
    for points, sign in ((worst, _WORST), (overall, _OVERALL), (marked, _CHOSEN)):
        signs |= {(up.place(share), along.place(bits)): sign for bits, share in points}

    def cell(sign: _Sign) -> tuple[str, str]:
        return sign[ascii_only], _COLOURS.get(sign, "")

    numbers, floats = dict(up.marks()), {up.place(share) for share in lines}
    yield Text(accuracy_name(result.quantized))
    for row in range(up.cells, -1, -1):
        left = f"{numbers.get(row, ''):>{margin}} {cell(_MARK if row in numbers else _UP)[0]}"
        cells = [cell(signs[row, column]) if (row, column) in signs else " " for column in range(along.cells + 1)]
        yield Text.assemble(left, *cells, _LABEL if row in floats else "")
    yield Text(" " * (margin + 1) + cell(_CORNER)[0] + cell(_ALONG)[0] * (along.cells + 1))
    yield Text(" " * (margin + 2) + _numbers(along))
    yield Text(f"{'average bits':>{margin + 3 + along.cells}}")
    entries = ((_OVERALL, "overall"), (_WORST, "worst class"), (_CHOSEN, f"chosen: {chosen[0]:.3f} bits"))
    yield from _legend([Text.assemble(cell(sign), f" {name}") for sign, name in entries], width)


def _worst_of(found: Sequence[tuple[float, Evaluation]]) -> list[_Point]:
    """Accuracy of the worst class over bits, where a class has samples."""
    shares = ((bits, evaluation.per_class[evaluation.worst_class]) for bits, evaluation in found)
    return [(bits, share) for bits, share in shares if share is not None]


def _between(points: Sequence[_Point], along: Axis, up: Axis) -> Iterator[tuple[int, int]]:
    """Places (row, column) on the straight lines from each point to the next."""
    for (bits, share), (next_bits, next_share) in pairwise(points):
        first, last = along.place(bits), along.place(next_bits)
        for column in range(first + 1, last):
            yield up.place(share + (next_share - share) * (column - first) / (last - first)), column


def _numbers(along: Axis) -> str:
    """The numbers below an axis, each under its mark."""
    line = ""
    for place, number in along.marks():
        line = line.ljust(place) + number
    return line


def _legend(entries: Sequence[Text], width: int) -> Iterator[Text]:
    """The entries beside each other, as many in a line as there is room for."""
    line = Text()
    for entry in entries:
        if line and line.cell_len + 3 + entry.cell_len > width:
            yield line
            line = Text()
        line = Text.assemble(line, "   " if line else "", entry)
    yield line
