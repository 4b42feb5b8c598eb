"""Solutions from one setting: what classes count, which samples are drawn, what is kept, and whole curves."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnx_cbq import (
    ConfigError,
    QuantizeConfig,
    RateDistortionConfig,
    Result,
    RoundingConfig,
    quantize,
)
from onnx_cbq.config import CURVE
from onnx_cbq.planning import gather_evidence
from onnx_cbq.progress import Clock, silent
from onnx_cbq.quantize.grid import quantize_rows
from onnx_cbq.solving import class_weights, make_setting, solve, with_bits
from onnx_cbq.workload import prepare
from tests.command import Command
from tests.conftest import DIGITS_CARD, DIGITS_MODEL

NAMES = ("ant", "bee", "cat", "dog")
QUICK = QuantizeConfig(
    bits=0.5,
    samples=60,
    search=RateDistortionConfig(exchanges=4),
    compensation=RoundingConfig(refits=0, sweeps=0, rows=2000),
)


def digits(**changes: Any) -> Result:
    return quantize(DIGITS_MODEL, DIGITS_CARD, replace(QUICK, **changes))


@pytest.mark.parametrize(
    ("classes", "weights", "expected"),
    [
        (None, (), [1, 1, 1, 1]),
        (("dog", "bee"), (), [0, 1, 0, 1]),
        (("bee", "bee"), (), [0, 1, 0, 0]),
        (None, (("cat", 2.5), ("ant", 0)), [0, 1, 2.5, 1]),
        (None, (("cat", 2), ("cat", 3)), [1, 1, 6, 1]),
        (("dog", "bee"), (("dog", 3), ("cat", 5)), [0, 1, 0, 3]),
    ],
)
def test_what_a_sample_of_each_class_counts(
    classes: tuple[str, ...] | None, weights: tuple[tuple[str, float], ...], expected: list[float]
) -> None:
    """A weight does not bring back a class that was left out."""
    found = class_weights(NAMES, QuantizeConfig(classes=classes, class_weights=weights))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("settings", [{"classes": ("cat", "bee")}, {"class_weights": (("bee", 5.0),)}])
def test_a_class_without_samples_cannot_be_asked_for(settings: dict[str, Any]) -> None:
    """Nothing is known of it: a weight would change nothing, without a word."""
    with pytest.raises(ConfigError, match="'bee': there are no samples of this class"):
        class_weights(NAMES, QuantizeConfig(**settings), [1, 3])
    np.testing.assert_array_equal(class_weights(NAMES, QuantizeConfig(), [1, 3]), [1, 0, 1, 0])


def test_one_class_must_count() -> None:
    for classes, weights in ((("ant",), (("ant", 0.0),)), (None, tuple((name, 0.0) for name in NAMES))):
        with pytest.raises(ConfigError, match="every class that counts has weight 0; give one a weight above 0"):
            class_weights(NAMES, QuantizeConfig(classes=classes, class_weights=weights))


@pytest.mark.parametrize(("classes", "each"), [(None, 4), (("3", "8"), 20), (("5",), 40)])
def test_samples_are_drawn_from_the_classes_that_matter(classes: tuple[str, ...] | None, each: int) -> None:
    """All of them: those of other classes would be wasted."""
    config = QuantizeConfig(samples=40, method="uniform", classes=classes, activation_bits=0)
    setting = make_setting(prepare(DIGITS_MODEL, DIGITS_CARD), config, Clock(), silent)
    labels = setting.work.samples.labels[setting.drawn.indices]
    expected = np.zeros(10, int)
    expected[[int(name) for name in classes or map(str, range(10))]] = each
    np.testing.assert_array_equal(np.bincount(labels, minlength=10), expected)


@pytest.mark.parametrize(
    "changes", [{"classes": ("3", "8")}, {"class_weights": (("3", 20.0), ("8", 20.0))}], ids=["classes", "weights"]
)
def test_classes_that_matter_keep_their_accuracy_at_the_same_bits(changes: dict[str, Any]) -> None:
    """At half a bit per weight not all can."""
    plain, chosen = digits(), digits(**changes)
    accuracies = [np.mean([r.quantized.per_class[m] or 0 for m in (3, 8)]) for r in (plain, chosen)]
    assert accuracies[1] >= accuracies[0] + 2
    assert chosen.quantized.top1 < plain.quantized.top1
    assert chosen.average_bits <= 0.5


@pytest.mark.parametrize("method", ["rate-distortion", "cbq", "uniform"])
def test_layers_that_are_kept_have_the_bits_that_were_asked_for(method: str) -> None:
    """By name or pattern, the last one counts; the others share what is left of the budget."""
    keep = (("/*", 5), ("/3/*", 2))
    result = digits(method=method, bits=3.0 if method == "uniform" else 4.5, keep=keep)
    assert {name: set(bits.tolist()) for name, bits in result.plan.bits.items() if name != "12"} == {
        "/0/Conv": {5},
        "/3/Conv": {2},
        "/7/Conv": {5},
    }
    assert method != "uniform" or set(result.plan.bits["12"].tolist()) == {3}
    assert method == "uniform" or result.average_bits <= 4.5


def test_rounding_to_nearest_is_that_of_each_row_alone() -> None:
    """And leaves the biases alone; compensation does neither."""
    work = prepare(DIGITS_MODEL, DIGITS_CARD)
    for rounding in ("nearest", "compensate"):
        config = replace(QUICK, method="uniform", bits=3.0, rounding=rounding, activation_bits=0)
        setting = make_setting(work, config, Clock(), silent)
        rounded = solve(setting, Clock(), silent).rounded
        equal: list[bool] = []
        for layer in work.layers:
            nearest = quantize_rows(layer.rows(work.model.weight(layer.weight)), np.full(layer.channels, 3))
            equal.append(np.array_equal(layer.rows(rounded.weights[layer.name].codes), nearest.codes))
        assert equal == [rounding == "nearest"] * 4
        assert bool(rounded.biases) == (rounding == "compensate")


def test_a_setting_with_other_bits_shares_all_that_was_gathered() -> None:
    config = replace(QUICK, rounding="nearest")
    setting = make_setting(prepare(DIGITS_MODEL, DIGITS_CARD), config, Clock(), silent)
    weights = np.arange(10.0)
    other = with_bits(setting, 3.5, weights, trade=False)
    assert (other.config.bits, other.config.search.exchanges) == (3.5, 0)
    assert (setting.config.bits, setting.config.search.exchanges) == (0.5, 4)
    assert other.class_weights is weights
    assert other.evidence is setting.evidence
    assert other.measure is setting.measure
    assert with_bits(setting, 3.5, weights).config.search == setting.config.search
    averages = [solve(s, Clock(), silent).plan.average_bits(setting.work.layers) for s in (setting, other)]
    assert [average - 1e-9 <= bits for average, bits in zip(averages, (0.5, 3.5), strict=True)] == [True, True]
    assert averages[1] > 3.4


def test_points_of_a_curve_are_what_a_run_at_their_bits_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """From one set of statistics: gathered once, whatever the number of points."""
    gathered: list[float] = []

    def counted(*arguments: Any) -> Any:
        gathered.append(1)
        return gather_evidence(*arguments)

    monkeypatch.setattr("onnx_cbq.solving.gather_evidence", counted)
    result = digits(bits=3.0, curve=(0.5, 2.0))
    assert len(gathered) == 1
    assert [point.bits for point in result.curve] == [0.5, 2.0]
    assert result.seconds["curve"] > 0
    for point in result.curve:
        alone = digits(bits=point.bits)
        assert point.average_bits == alone.average_bits <= point.bits
        assert point.ideal_bytes == math.ceil(alone.average_bits * 12640 / 8)
        np.testing.assert_array_equal(point.evaluation.confusion, alone.quantized.confusion)
        assert point.evaluation.bytes == alone.quantized.bytes
    assert result.curve[0].evaluation.top1 < result.curve[1].evaluation.top1


@pytest.mark.parametrize("method", ["rate-distortion", "uniform"])
def test_the_command_shows_the_whole_curve(tmp_path: Path, command: Command, method: str) -> None:
    """As a table with the float model at its end, and as JSON; a uniform plan has whole bits only."""
    options = ("--curve", "--method", method, "--rounding", "nearest", "--samples", "40", "--bits", "4")
    target = ("--output", tmp_path / "q.onnx", "--json", tmp_path / "q.json")
    finished = command("quantize", DIGITS_MODEL, "--data", DIGITS_CARD, *target, *options)
    assert (finished.code, finished.err) == (0, "")
    found = json.loads((tmp_path / "q.json").read_text())
    points = [bits for bits in CURVE if method != "uniform" or bits == int(bits)]
    assert len(found["curve"]) == len(points)
    rows = [line.split() for line in finished.out.splitlines()]
    for bits, point in zip(points, found["curve"], strict=True):
        assert bits - 0.1 < point["average_bits"] <= bits
        worst = point["worst_class"]
        assert [
            f"{point['average_bits']:.3f}",
            f"{point['top1']:.2f}",
            f"{point['per_class'][worst]:.2f}",
            f"({worst})",
            f"{point['bytes']:,}",
            f"{point['ideal_bytes']:,}",
        ] in rows
        assert point["ideal_bytes"] < point["bytes"]
    assert [row[:2] for row in rows if row and row[0] == "float"][-1] == ["float", f"{found['float']['top1']:.2f}"]
    same = [point for bits, point in zip(points, found["curve"], strict=True) if bits == 4]
    assert same[0]["top1"] == found["quantized"]["top1"]
