"""Who paid: classes, what they are taken for, and the channels that they need, as the JSON has them."""

from __future__ import annotations

import json
import math

import pytest

from onnx_cbq.pages import make_page
from onnx_cbq.pages.figures import standard_error
from tests.pages.made import Found, quantize_result
from tests.pages.parsed import Element, parse


def classes_of(found: Found) -> Element:
    return parse(make_page(json.loads(json.dumps(found)))).part("classes")


def test_classes_are_listed_from_the_one_that_lost_most() -> None:
    part = classes_of(quantize_result())
    assert part.all("p")[0].text == "1 of 3 classes lost accuracy, 1 of them by more than two standard errors."
    # 36 right of 40 before and 26 after, with two right and two wrong answers added.
    error = 100 * math.hypot(math.sqrt(38 / 44 * 6 / 44 / 44), math.sqrt(28 / 44 * 16 / 44 / 44))
    rows = part.part("class-table").rows()
    assert rows[0] == ["cat", "40", "90.00", "65.00", "-25.00", f"{error:.2f}"]
    assert [row[0] for row in rows] == ["cat", "dog", "eel"]
    assert [row[4] for row in rows] == ["-25.00", "+0.00", "+5.00"]
    (lost,) = part.part("class-table").all("td", "bad")
    assert (lost.text, lost.attributes["data-value"]) == ("-25.00", "-25.0")


def test_bars_are_in_proportion(  # a bar that is drawn too short hides what a class lost
) -> None:
    bars = classes_of(quantize_result()).all("div", "change")
    places = [dict(part.strip().split(": ") for part in bar.attributes["style"].split(";")) for bar in bars]
    change = [float(place["--v"]) for place in places]
    assert change[2] / change[0] == pytest.approx(5 / -25, abs=0.01)
    assert abs(change[0]) + float(places[0]["--e"]) == pytest.approx(100, abs=0.1)
    assert [bool(bar.all("i", "lost")) for bar in bars] == [True, False, False]


def test_classes_without_samples_are_counted_and_left_out() -> None:
    found = quantize_result()
    for model in ("float", "quantized"):
        found[model]["per_class"]["dog"] = None
        found[model]["class_samples"][1] = 0
    part = classes_of(found)
    assert "1 of 2 classes lost accuracy" in part.text
    assert "1 have no samples" in part.text
    assert [row[0] for row in part.part("class-table").rows()] == ["cat", "eel"]
    needs = part.all("table", "matrix")[-1]
    assert [head.text for head in needs.all("thead")[0].all("th")] == ["", "cat", "eel"]


def test_confusions_that_grew_make_a_matrix() -> None:
    """cat for dog: 1 before and 10 after; cat for eel: 4 and 5; dog for cat fell."""
    matrix = classes_of(quantize_result()).all("table", "matrix")[0]
    assert [head.text for head in matrix.all("thead")[0].all("th")] == ["", "dog", "eel"]
    assert matrix.rows() == [["cat", "+9", "+1"]]
    shades = [cell.attributes["style"] for cell in matrix.all("td")]
    assert shades == ["--v: 70", f"--v: {round(70 / 9)}"]


@pytest.mark.parametrize("pairs", [None, {"class": [], "taken_for": [], "float": [], "quantized": []}, "fell"])
def test_without_confusions_that_grew_there_is_no_matrix(pairs: object) -> None:
    """Samples of several labels have no confusions, and some results have none that grew."""
    fell = {"class": [0], "taken_for": [1], "float": [3], "quantized": [3]}
    part = classes_of({**quantize_result(), "confusions": fell if pairs == "fell" else pairs})
    assert "something else" not in part.text
    assert len(part.all("table", "matrix")) == 1


def test_needs_are_shares_of_the_channels_of_a_layer() -> None:
    """Classes 0, 1 and 2 need 0.5, 1.5 and 2.5 of 4 channels, and of 2."""
    needs = classes_of(quantize_result()).all("table", "matrix")[1]
    assert needs.rows() == [["first", "12", "38", "62"], ["second", "25", "75", "125"]]


@pytest.mark.parametrize("scores", [[], [1.0]], ids=["no-scores", "classes-taken-together"])
def test_without_scores_of_each_class_there_are_no_needs(scores: list[float]) -> None:
    found = quantize_result()
    for layer in found["layers"]:
        layer["classes"] = scores
    assert "How many channels each class needs" not in classes_of(found).text


def test_standard_errors_do_not_vanish_where_all_is_right() -> None:
    assert standard_error(100.0, 40) == pytest.approx(100 * math.sqrt(42 / 44 * 2 / 44 / 44))
    assert standard_error(0.0, 40) == pytest.approx(standard_error(100.0, 40))
    assert standard_error(50.0, 10_000) == pytest.approx(0.5, rel=0.001)
