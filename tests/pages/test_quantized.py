"""The page of `quantize`: every figure is the JSON's, and what the JSON does not have is said."""

from __future__ import annotations

import json
import math
import time

import pytest

from onnx_cbq.pages import make_page
from tests.pages.made import Found, quantize_result, thousand
from tests.pages.parsed import Element, parse
from tests.report.test_schema import validator


def page_of(found: Found) -> Element:
    return parse(make_page(json.loads(json.dumps(found))))


@pytest.fixture(scope="module")
def page() -> Element:
    return page_of(quantize_result())


def said(element: Element) -> str:
    return " ".join(element.text.split())


@pytest.mark.parametrize("full", [False, True])
def test_what_is_made_up_has_the_form_of_results(full: bool) -> None:
    validator("quantize").validate(quantize_result(full=full))


def test_it_leads_with_the_verdict(page: Element) -> None:
    (title,) = page.all("h1")
    assert title.text == "net.onnx at 4.12 bits"
    # 120 samples: -25 and +5 points of a third of them each.
    assert said(page.all("p", "lead")[0]) == "-6.67 points of accuracy, 33 % of the bytes, 25 % of the latency."
    cards = {
        card.all("span")[0].text: (card.all("b")[0].text, card.all("span")[1].text) for card in page.all("div", "card")
    }
    assert list(cards) == ["Accuracy", "Worst class", "Bytes", "Latency of one sample", "Same prediction"]
    assert cards["Accuracy"][0] == "78.33 %"
    error = 100 * math.sqrt(0.09 / 120)
    assert cards["Accuracy"][1] == f"float 85.00 %; the difference has a standard error of at most {error:.2f}"
    # Agresti and Coull's, of 26 right of 40.
    p = (26 + 2) / 44
    assert cards["Worst class"] == (
        "65.00 %",
        f"cat: float 90.00 %; standard error {100 * math.sqrt(p * (1 - p) / 44):.1f}",
    )
    assert cards["Bytes"] == ("410 kB", "float 1.23 MB; 4.125 bits per weight")
    assert cards["Latency of one sample"][0] == "1 ms"
    assert cards["Latency of one sample"][1].startswith("float 4 ms on avx2")
    assert "0.02 and 0.08" in cards["Latency of one sample"][1]
    assert cards["Same prediction"][0] == "91.00 %"
    verdict = said(page.part("verdict"))
    assert "Asked for: --max-drop 9: 3 bits lose 6.67 points, on 120 samples" in verdict
    assert verdict.count("--max-drop 9") == 1
    assert "slower than the float model" in verdict


def test_parts_are_in_the_order_of_the_questions(page: Element) -> None:
    parts = [section.attributes["id"] for section in page.all("section")]
    assert parts == ["verdict", "trade-off", "bits", "classes", "layers", "numbers"]
    assert [link.attributes["href"] for link in page.all("nav")[0].all("a")] == [f"#{part}" for part in parts]


def test_the_trade_off_is_that_of_the_curve(page: Element) -> None:
    part = page.part("trade-off")
    rows = part.table("average bits")
    assert [row[0] for row in rows] == ["2.000", "6.000", "float"]
    assert rows[0][1:] == ["78.33", "65.00", "cat", "50", "500"]
    assert rows[2][1:4] == ["85.00", "80.00", "eel"]
    (chart,) = part.all("svg")
    dots = [dot.text for dot in chart.all("circle")]
    assert dots == [
        *("accuracy: 78.33 at 2", "accuracy: 78.33 at 6", "worst class: 65.00 at 2", "worst class: 65.00 at 6"),
        "this file: 78.33 at 4.125",
    ]
    places = {dot.text: float(dot.attributes["cx"]) for dot in chart.all("circle")}
    share = (places[dots[4]] - places[dots[0]]) / (places[dots[1]] - places[dots[0]])
    assert share == pytest.approx((4.125 - 2) / 4, abs=0.002)


def test_without_a_curve_it_says_how_to_get_one() -> None:
    part = page_of({**quantize_result(), "curve": []}).part("trade-off")
    assert not part.all("svg")
    assert "onnx-cbq quantize net.onnx --data CARD --curve" in part.text


def test_bits_are_those_of_each_channel(page: Element) -> None:
    part = page.part("bits")
    runs = part.all("div", "runs")
    assert [run.attributes["aria-label"] for run in runs] == [
        "first: 4 channels: 2 of 8 bits, 1 of 3 bits, 1 of 0 bits",
        "second: 2 channels: 1 of 4 bits, 1 of 2 bits",
    ]
    assert [(bar.attributes["class"], bar.attributes["style"]) for bar in runs[0].all("span")] == [
        *(("b8", "flex: 2"), ("b3", "flex: 1"), ("b0", "flex: 1")),
    ]
    assert [layer.all("span")[-1].text for layer in part.all("div", "layer")] == ["4.75", "3.00"]
    # 36 weights of 4.75 bits and 18 of 3: a layer has two thirds of weights and of multiplications.
    assert part.table("% of MACs") == [
        ["first", "4", "36", "4.750", "21", "66.7", "66.7", "1", "1"],
        ["second", "2", "18", "3.000", "7", "33.3", "33.3", "0", "0"],
    ]
    stored = json.loads(part.part("channels").text)
    assert stored["classes"] == ["cat", "dog", "eel"]
    assert stored["layers"][0]["bits"] == "8830"
    assert stored["layers"][0]["gamma"] == [3.0, 2.5, 2.0, 1.5]
    assert stored["layers"][0]["needed"][2] == [2, 0]
    notes = [line.text for line in part.all("li")]
    assert notes == [
        "Channels cut out of the file: 1 of first",
        "Kept as zeros: 2 of second: an output",
        "Left float: odd (MatMul), 12 weights: computed",
    ]


def test_numbers_behind_are_all_there(page: Element) -> None:
    part = page.part("numbers")
    assert part.table("stage") == [["load", "0.2"], ["search", "61.5"]]
    settings = dict(part.table("option"))
    assert settings["bits"] == "3.5"
    assert settings["divergence on samples held back, nats"] == "0.037"
    assert settings["plan by noise"] == "0.062"
    assert settings["signal over noise of outputs, dB"] == "17.5 to 31.2"
    assert "onnx-cbq quantize net.onnx --data CARD --config RESULT.json" in part.text
    pictures = [chart.all("title")[0].text for chart in part.all("svg")]
    assert pictures == ["Weights of first", "Values of first/in", "Weights of second", "Values of second/in"]
    assert "input first/in: 8 bits from 0 to 2.25; 0.125 % beyond" in part.text
    assert said(page.all("main")[0]).endswith(
        "Measured on 120 samples, of which 30 were used to calibrate; processor avx2; target cpu; onnx-cbq 1.2.3, "
        "onnx 4.5.6."
    )


def test_an_archive_counts_as_what_it_takes() -> None:
    found = quantize_result()
    found["sizes"] |= {"archive": 123_000, "coded_bits": 2.5}
    page = page_of(found)
    assert "10 % of the bytes" in page.all("p", "lead")[0].text
    assert [card.all("b")[0].text for card in page.all("div", "card")][2] == "123 kB"


def test_a_thousand_classes_are_a_page_of_moderate_size() -> None:
    found = thousand()
    start = time.process_time()
    made = make_page(found)
    assert time.process_time() - start < 3
    assert len(made.encode()) < 1_500_000
    page = parse(made)
    assert len(page.part("class-table").rows()) == 1000
    assert len(page.part("classes").all("div", "layer")) == 12
    # Those that lost most, and no other, have columns in the tables of pairs and needs.
    matrices = page.part("classes").all("table", "matrix")
    assert all(2 <= len(matrix.all("thead")[0].all("th")) <= 21 for matrix in matrices)
