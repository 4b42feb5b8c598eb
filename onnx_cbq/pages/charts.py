"""Pictures of a page as SVG, and as bars of plain HTML. Colours come from the page's style sheet, text is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup, escape

WIDTH, HEIGHT = 480, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 40
# Two ends, `low` and `high`, and `counts` of numbers in equal parts between them.
Bars = Mapping[str, Any]
# Ticks of an axis, about.
_TICKS = 5


@dataclass(frozen=True)
class Series:
    """A line of a chart: points (x, y), marked by dots or not, a style of the style sheet, and what it is."""

    name: str
    style: str
    points: Sequence[tuple[float, float]]
    dots: bool = True


def tag(element: str, *content: object, **attributes: object) -> Markup:
    """An element; text and attributes are escaped, attributes of None are left out, `_` stands for `-`."""
    listed = Markup("").join(
        Markup(' {}="{}"').format(name.rstrip("_").replace("_", "-"), value)
        for name, value in attributes.items()
        if value is not None
    )
    return Markup("<{}{}>{}</{}>").format(element, listed, Markup("").join(map(escape, content)), element)


def line_chart(series: Sequence[Series], names: tuple[str, str], mark: tuple[float, float], title: str) -> Markup:
    """Lines over an axis, with points; `names` are those of the axes, `mark` is the chosen point."""
    points = [mark, *(point for one in series for point in one.points)]
    x_ends, y_ends = _ends([x for x, _ in points], whole=True), _ends([y for _, y in points])

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ends[0]) / (x_ends[1] - x_ends[0])
        up = (y - y_ends[0]) / (y_ends[1] - y_ends[0])
        return (
            round(_LEFT + across * (WIDTH - _LEFT - _RIGHT), 1),
            round(HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM), 1),
        )

    parts: list[Markup] = []
    for y in ticks(*y_ends):
        left, line = at(x_ends[0], y)
        parts.append(tag("line", x1=left, x2=WIDTH - _RIGHT, y1=line, y2=line, class_="grid"))
        parts.append(tag("text", f"{y:g}", x=_LEFT - 6, y=line + 4, class_="end"))
    for x in ticks(*x_ends):
        place, _ = at(x, y_ends[0])
        parts.append(tag("text", f"{x:g}", x=place, y=HEIGHT - _BOTTOM + 18, class_="middle"))
    for one in series:
        places = [at(*point) for point in one.points]
        parts.append(tag("polyline", points=" ".join(f"{x},{y}" for x, y in places), class_=f"line {one.style}"))
        for (x, y), (left, line) in zip(one.points, places, strict=True) if one.dots else ():
            told = tag("title", f"{one.name}: {y:.2f} at {x:.4g}")
            parts.append(tag("circle", told, cx=left, cy=line, r=3, class_=f"dot {one.style}"))
    left, line = at(*mark)
    told = tag("title", f"this file: {mark[1]:.2f} at {mark[0]:.4g}")
    parts.append(tag("circle", told, cx=left, cy=line, r=7, class_="mark"))
    parts.append(tag("text", names[0], x=(WIDTH + _LEFT) / 2, y=HEIGHT - 4, class_="middle"))
    parts.append(tag("text", names[1], x=4, y=_TOP + 2, class_="start"))
    return _svg(parts, title, WIDTH, HEIGHT)


def histogram(
    behind: Mapping[str, object], front: Mapping[str, object] | None, ends: Sequence[float], title: str
) -> Markup:
    """Bars of what was seen, outlined bars in front of them, and lines at some values; heights are square roots."""
    width, height, foot = 240, 90, 16
    low, high = float(str(behind["low"])), float(str(behind["high"]))

    def at(value: float) -> float:
        return round(width * (value - low) / (high - low), 1)

    parts = [_bars(behind, width, height - foot, "seen")]
    if front is not None:
        parts.append(_bars(front, width, height - foot, "level"))
    parts += [
        tag("line", x1=at(end), x2=at(end), y1=0, y2=height - foot, class_="limit")
        for end in ends
        if low <= end <= high
    ]
    parts.append(tag("text", f"{low:.3g}", x=0, y=height - 3, class_="start"))
    parts.append(tag("text", f"{high:.3g}", x=width, y=height - 3, class_="end"))
    return _svg(parts, title, width, height)


def _bars(found: Bars, width: int, height: int, style: str) -> Markup:
    """One path for all bars; the square root keeps rare values in sight."""
    counts = np.asarray(found["counts"], np.float64)
    heights = np.sqrt(counts / max(counts.max(initial=0), 1)) * (height - 2)
    step = width / max(len(heights), 1)
    path = "".join(f"M{i * step:.1f},{height}v-{h:.1f}h{step:.1f}v{h:.1f}z" for i, h in enumerate(heights) if h > 0)
    return tag("path", d=path, class_=style)


def _svg(parts: Iterable[Markup], title: str, width: int, height: int) -> Markup:
    return tag("svg", tag("title", title), *parts, viewBox=f"0 0 {width} {height}", role="img")


def ticks(low: float, high: float) -> list[float]:
    """Round numbers between two ends, about `_TICKS`."""
    rough = (high - low) / _TICKS
    power = 10.0 ** np.floor(np.log10(rough))
    step = float(power * min((1, 2, 5, 10), key=lambda m: abs(m * power - rough)))
    first = np.ceil(low / step - 1e-9)
    count = int(np.floor((high - first * step) / step + 1e-9)) + 1
    return [round(float((first + i) * step), 12) for i in range(count)]


def _ends(values: Sequence[float], *, whole: bool = False) -> tuple[float, float]:
    """The ends of an axis for some values; from 0 on with `whole`."""
    low, high = min(values), max(values)
    low = min(low, 0.0) if whole else low
    room = (high - low) * 0.06 or max(abs(high), 1.0) * 0.06
    return (low if whole else low - room), high + room
