"""The whole trade-off: points from one set of statistics, each what a run at its bits gives."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnx_cbq import QuantizeConfig, RateDistortionConfig, RefineConfig, Result, RoundingConfig, quantize
from onnx_cbq.evidence import pieces
from onnx_cbq.jobs.settings import CURVE
from tests.command import Command
from tests.conftest import DIGITS_CARD, DIGITS_MODEL

QUICK = QuantizeConfig(
    samples=60,
    search=RateDistortionConfig(exchanges=4),
    compensation=RoundingConfig(refits=0, sweeps=0, rows=2000),
)


def digits(**changes: Any) -> Result:
    return quantize(DIGITS_MODEL, DIGITS_CARD, replace(QUICK, **changes))


def test_points_of_a_curve_are_what_a_run_at_their_bits_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """From one set of statistics: gathered once, whatever the number of points."""
    gathered = Counter[str]()

    def counted(name: str, gather: Any, *arguments: Any) -> Any:
        gathered[name] += 1
        return gather(*arguments)

    for name in ("score_channels", "fisher_squares", "make_tables"):
        monkeypatch.setattr(pieces, name, partial(counted, name, getattr(pieces, name)))
    result = digits(bits=3.0, curve=(0.5, 2.0))
    assert gathered == {"score_channels": 1, "fisher_squares": 1, "make_tables": 1}
    assert [point.bits for point in result.curve] == [0.5, 2.0]
    assert result.seconds["curve"] > 0
    for point in result.curve:
        alone = digits(bits=point.bits)
        assert point.average_bits == alone.average_bits <= point.bits
        assert point.ideal_bytes == math.ceil(alone.average_bits * 12640 / 8)
        np.testing.assert_array_equal(point.evaluation.confusion, alone.quantized.confusion)
        assert point.evaluation.bytes == alone.quantized.bytes
    assert result.curve[0].evaluation.top1 < result.curve[1].evaluation.top1


def test_training_leaves_the_points_of_a_curve_alone() -> None:
    """They once took the grids of activations that were trained for another plan."""
    pytest.importorskip("torch")
    config = replace(QUICK, method="uniform", bits=2, activation_bits=2, curve=(2.0, 4.0))
    trained = quantize(DIGITS_MODEL, DIGITS_CARD, replace(config, refine=RefineConfig(updates=20, check_every=5)))
    for point, plain in zip(trained.curve, quantize(DIGITS_MODEL, DIGITS_CARD, config).curve, strict=True):
        np.testing.assert_array_equal(point.evaluation.confusion, plain.evaluation.confusion)


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
