"""The pages of `compare` and `debug`: every figure is the JSON's."""

from __future__ import annotations

import json

import pytest

from onnx_cbq.pages import make_page
from tests.pages.made import Found, alone, compare_result, debug_result
from tests.pages.parsed import Element, parse
from tests.report.test_schema import validator


def page_of(found: Found) -> Element:
    return parse(make_page(json.loads(json.dumps(found))))


@pytest.mark.parametrize("form", ["compare", "debug"])
def test_what_is_made_up_has_the_form_of_results(form: str) -> None:
    validator(form).validate({"compare": compare_result, "debug": debug_result}[form]())


def test_models_stand_beside_each_other() -> None:
    page = page_of(compare_result())
    assert [line.text for line in page.all("p", "lead")] == [
        "B beside A: -4.50 points (+1 -4 samples; by chance alone in 6.2 % of cases), 50 % of the bytes",
        "C beside A: -9.00 points (+2 -8 samples; by chance alone in less than 0.1 % of cases), 33 % of the bytes",
    ]
    rows = {row[0]: row[1:] for row in page.part("models").table("B")}
    assert rows == {
        "accuracy, %": ["85.00", "80.50", "76.00"],
        "standard error": ["1.50", "2.50", "3.50"],
        "gained, lost samples": ["", "+1 -4", "+2 -8"],
        "chance of that (McNemar)": ["", "0.0625", "0.0001"],
        "same answer as A, %": ["", "95.00", "90.00"],
        "worst class, %": ["80.00 (dog)", "80.00 (cat)", "70.00 (cat)"],
        "bytes": ["4,000", "2,000", "1,333"],
        "compressed (zstd)": ["1,000", "999", "998"],
        "memory of the session": ["2 MB"] * 3,
        "ms for 1, all threads": ["1.100", "2.100", "3.100"],
        "ms for 16, all threads": ["2.600", "3.600", "4.600"],
        "ms for 1, 1 thread": ["1.110", "2.110", "3.110"],
    }
    assert page.part("class-table").rows() == [
        ["cat", "90.00", "80.00", "70.00", "-20.00"],
        ["dog", "80.00", "81.00", "82.00", "+2.00"],
    ]
    assert "a note" in page.part("models").text


def test_disagreements_are_shown_as_pictures() -> None:
    part = page_of(compare_result()).part("disagreements")
    (image,) = part.all("img")
    assert image.attributes["src"] == "data:image/png;base64,iVBORw0KGgo="
    assert image.attributes["alt"] == "sample cats/7.png"
    (table,) = part.all("table")
    assert table.rows() == [["cats/7.png", "", "cat", "cat (75 %)", "dog (62 %)"]]
    assert "None: both answer every sample alike." in part.text


def test_samples_that_are_no_images_or_have_several_labels_have_their_place() -> None:
    found = compare_result()
    found["disagreements"][0] |= {"thumbnail": None, "label": None, "model": 2}
    part = page_of(found).part("disagreements")
    assert not part.all("img")
    (table,) = part.all("table")
    assert table.rows() == [["cats/7.png", "", "-", "cat (75 %)", "- (50 %)"]]


def test_layers_of_debug_are_ranked_and_in_order() -> None:
    page = page_of(debug_result())
    assert [line.text for line in page.all("p", "lead")] == [
        "Same answer 93.75 %, divergence 0.037 nats.",
        "second hurts most, 75 % of what layers cost alone: weights.",
    ]
    rows = page.part("layers").table("nats")
    assert rows[0] == [
        *("second", "0.03", "75.0", "28.0", "29.0", "0.06", "30.0", "31.0", "32.0", "33.0", "integer", "weights"),
    ]
    assert [row[0] for row in rows] == ["second", "first"]
    assert [row[0] for row in page.part("order").table("nats")] == ["first", "second"]
    bars = page.part("layers").all("span", "bar")
    assert [bar.attributes["style"] for bar in bars] == ["--v: 100.0", "--v: 33.33"]
    assert "2 of 2 layers run on integers." in page.part("kernels").text


def test_debug_says_what_runs_in_float_and_what_has_no_counterpart() -> None:
    found = debug_result()
    found["layers"][0] |= {"integer": False, "reason": "its input is float", "pair_sum": 40_000}
    found |= {
        "fallbacks": [{"name": "add", "operator": "Add", "reason": ""}],
        "deviations": [{"node": "conv", "tensor": "t", "codes": 9, "numbers": 1234}],
        "unmatched": ["head"],
        "unmatched_in_file": ["tail"],
        "notes": ["a note"],
    }
    validator("debug").validate(found)
    page = page_of(found)
    assert [line.text for line in page.part("kernels").all("li")] == [
        "1 of 2 layers run on integers.",
        "first runs in float: its input is float",
        "Add add, between codes, runs in float",
        "conv is off by up to 9 codes in 1,234 numbers here",
        "May saturate on x86 without VNNI (largest sum of two codes): first (40000)",
        "Not in the file: head",
        "Not in the float model: tail",
    ]
    assert "a note" in page.part("layers").text


def test_a_file_that_costs_nothing_is_said_to() -> None:
    layers = [{**layer, "divergence": None, "share": None} for layer in alone()["layers"]]
    page = page_of({**debug_result(), "layers": layers})
    assert page.all("p", "lead")[1].text == "No layer costs anything by itself."
    assert page.part("layers").table("nats")[0][1:3] == ["-", "-"]
