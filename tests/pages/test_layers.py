"""Which layer hurts: shares, predictions and measured losses are those of the JSON, and what is not known is said."""

from __future__ import annotations

import json

import pytest

from onnx_cbq.pages import make_page
from tests.pages.made import Found, quantize_result
from tests.pages.parsed import Element, parse


def layers_of(found: Found) -> Element:
    return parse(make_page(json.loads(json.dumps(found)))).part("layers")


def widths(part: Element) -> list[float]:
    return [float(bar.attributes["style"].removeprefix("--v: ")) for bar in part.all("span", "bar")]


def test_predictions_rank_the_layers() -> None:
    part = layers_of(quantize_result())
    assert part.all("p")[0].text == ("first costs most, 75 % of the loss (predicted); first alone makes half of it.")
    # 36 weights of 4.75 bits and 18 of 3, each to 8.
    assert part.table("predicted, nats") == [
        ["first", "75.0", "31.2", "0.06", "0.5", "0.25", "+15 bytes", "0.056"],
        ["second", "25.0", "17.5", "0.02", "0.5", "0.25", "+11 bytes", "0.016"],
    ]
    assert widths(part) == pytest.approx([100, 100 / 3], abs=0.01)
    assert "--report-full measures every layer of the file alone" in part.text


def test_measured_losses_win_over_predictions() -> None:
    part = layers_of(quantize_result(full=True))
    assert part.all("p")[0].text.startswith("second costs most, 75 % of the loss (measured with each layer alone)")
    rows = part.table("measured, nats")
    # What it loses, its signal over noise of the file, the cause; the prediction behind.
    assert rows[0][:6] == ["second", "75.0", "0.03", "32.0", "weights", "0.02"]
    assert rows[1][:6] == ["first", "25.0", "0.01", "27.0", "input", "0.06"]
    assert widths(part) == pytest.approx([50, 100 / 3, 100 / 6, 100], abs=0.01)
    assert "on 64 samples" in part.text
    assert "--report-full" not in part.text


def test_a_layer_that_could_not_be_measured_keeps_its_prediction() -> None:
    found = quantize_result(full=True)
    found["alone"]["layers"][1]["divergence"] = None
    rows = layers_of(found).table("measured, nats")
    assert rows[0][:3] == ["second", "66.7", "-"]


@pytest.mark.parametrize("method", [{"name": "uniform"}, {"name": "differentiable", "layers": {"first": {}}}])
def test_without_losses_layers_are_ranked_by_signal_over_noise(method: Found) -> None:
    """A method that learns widths has layers of another kind in its report."""
    part = layers_of({**quantize_result(), "method": method})
    assert "did not estimate what layers lose" in part.all("p")[0].text
    assert part.table("signal over noise, dB") == [["second", "17.5", "+11 bytes"], ["first", "31.2", "+15 bytes"]]
    assert not part.all("span", "bar")


def test_a_gain_below_nothing_is_none() -> None:
    found = quantize_result()
    found["method"]["layers"]["second"] = {"plan": -0.01, "finest": 0.02, "coarse": 0.0, "coarse_predicted": 0.0}
    assert layers_of(found).table("predicted, nats")[1][1:] == ["0.0", "17.5", "-0.01", "0", "0", "+11 bytes", "0"]
