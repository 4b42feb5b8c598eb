"""Pictures: points lie where their numbers are, axes have round numbers, text is escaped."""

from __future__ import annotations

import pytest

from onnx_cbq.pages.charts import HEIGHT, WIDTH, Series, histogram, line_chart, tag, ticks
from onnx_cbq.pages.figures import letters, loss, number, percent, points, short, size
from tests.pages.parsed import parse


def test_points_lie_where_their_numbers_are() -> None:
    """Right of each other by x, above each other by y, both in proportion and inside the picture."""
    series = Series("one", "one", [(1.0, 10.0), (2.0, 30.0), (4.0, 20.0)])
    chart = parse(line_chart([series], ("x", "y"), (3.0, 25.0), "title"))
    places = [(float(dot.attributes["cx"]), float(dot.attributes["cy"])) for dot in chart.all("circle")]
    (x1, y1), (x2, y2), (x3, y3), (x4, y4) = places
    assert (x3 - x1) / (x2 - x1) == pytest.approx(3, abs=0.01)
    assert (x4 - x1) / (x2 - x1) == pytest.approx(2, abs=0.01)
    assert (y1 - y3) / (y1 - y2) == pytest.approx(1 / 2, abs=0.01)
    assert (y1 - y4) / (y1 - y2) == pytest.approx(3 / 4, abs=0.01)
    assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in places)
    (line,) = chart.all("polyline")
    assert line.attributes["points"] == f"{x1},{y1} {x2},{y2} {x3},{y3}"


def test_lines_of_the_grid_are_at_their_numbers() -> None:
    chart = parse(line_chart([Series("one", "one", [(0.0, 0.0), (8.0, 100.0)])], ("x", "y"), (8.0, 100.0), "title"))
    top = float(chart.all("circle")[1].attributes["cy"])
    labels = {text.text: float(text.attributes["y"]) - 4 for text in chart.all("text") if text.text == "100"}
    assert labels["100"] == pytest.approx(top, abs=0.2)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 8, [0, 2, 4, 6, 8]),
        (71.3, 98.7, [75, 80, 85, 90, 95]),
        (0, 0.05, [0, 0.01, 0.02, 0.03, 0.04, 0.05]),
        (-3, 3, [-3, -2, -1, 0, 1, 2, 3]),
    ],
)
def test_ticks_are_round_and_within(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize("value", [0.0, 100.0, -2.0])
def test_a_single_point_has_a_picture(value: float) -> None:
    chart = parse(line_chart([Series("one", "one", [(2.0, value)])], ("x", "y"), (2.0, value), "title"))
    assert len(chart.all("circle")) == 2


def test_bars_are_square_roots_and_ends_are_lines() -> None:
    bars = {"low": -1.0, "high": 3.0, "counts": [4, 0, 100, 25]}
    chart = parse(histogram(bars, None, (0.0, 2.0, 7.0), "title"))
    (path,) = chart.all("path")
    heights = [float(part.split("v-")[1].split("h")[0]) for part in path.attributes["d"].split("z") if part]
    assert [height / heights[1] for height in heights] == pytest.approx([0.2, 1, 0.5], abs=0.01)
    ends = [float(line.attributes["x1"]) / 240 for line in chart.all("line")]
    assert ends == pytest.approx([0.25, 0.75], abs=0.001), "an end beyond the picture is not drawn"


def test_text_and_attributes_are_escaped() -> None:
    found = parse(tag("a", "<b>&", title='"><script>', gone=None, data_x=1)).all("a")[0]
    assert found.text == "<b>&"
    assert found.attributes == {"title": '"><script>', "data-x": "1"}


def test_numbers_are_shown_as_people_read_them() -> None:
    assert [size(count) for count in (0, 999, 1000, 410_000, 1_234_567, 5e9)] == [
        *("0 bytes", "999 bytes", "1 kB", "410 kB", "1.23 MB", "5 GB"),
    ]
    assert [loss(value) for value in (None, 0, 0.0123, 3e-7)] == ["-", "0", "0.012", "3e-07"]
    assert (points(None), points(-0.5), percent(None), number(None), number(2.25)) == ("-", "-0.50", "-", "-", "2.2")
    assert letters(28)[25:] == ["Z", "A1", "B1"]
    assert (short("abcdef", 6), short("abcdefg", 6)) == ("abcdef", "abc...")
