"""One wild sample of many: the result is that of the others, and a note names the sample."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto
from PIL import Image

from onnx_cbq import CalibrationSet, QuantizeConfig, evaluate, quantize, score
from onnx_cbq.calibration.draw import draw, everything
from onnx_cbq.evidence.workload import prepare
from onnx_cbq.model import Array
from onnx_cbq.stages import wild as wild_stage
from onnx_cbq.stages.wild import without_wild
from tests.graphs import make_model, node

RANDOM = np.random.default_rng(0)
LABELS = np.arange(200) % 4
CENTRES = RANDOM.normal(size=(4, 12))
X = (CENTRES[LABELS] + 0.5 * RANDOM.normal(size=(200, 12))).astype(np.float32)
CONFIG = QuantizeConfig(bits=4.0)


def net() -> ModelProto:
    """A hidden layer of random features, and class scores by nearest mean of these."""
    hidden = np.random.default_rng(3).normal(0, 0.4, (12, 24)).astype(np.float32)
    features = np.maximum(CENTRES @ hidden, 0).astype(np.float32)
    nodes = [node("MatMul", "x w", "h"), node("Relu", "h", "f"), node("MatMul", "f v", "s"), node("Add", "s b")]
    bias = -np.square(features).sum(axis=1) / 2
    return make_model(nodes, {"x": ["N", 12]}, ["y"], {"w": hidden, "v": features.T.copy(), "b": bias})


def with_value(value: float) -> Array:
    x = X.copy()
    x[7, 3] = value
    return x


@pytest.mark.parametrize("value", [400.0, -1e4, 1e8])
@pytest.mark.parametrize(
    "settings",
    [{}, {"activation_range": "percentile"}, {"activation_range": "minmax", "method": "uniform"}, {"method": "cbq"}],
)
def test_others_keep_their_accuracy(value: float, settings: dict[str, Any]) -> None:
    """Ranges and moments were once those of the one sample, and all others lost, with exit code 0."""
    model, config = net(), replace(CONFIG, **settings)
    result = quantize(model, CalibrationSet.from_arrays(with_value(value), LABELS), config)
    others = evaluate(result.proto, CalibrationSet.from_arrays(np.delete(X, 7, 0), np.delete(LABELS, 7)))
    assert others.model.top1 >= 95  # three quarters of it were lost
    assert result.quantized.samples == 200
    assert result.calibration_samples == 199
    note = next(note for note in result.notes if note.startswith("left out of the calibration"))
    assert "sample 7 (" in note
    assert "in 'x'" in note


def test_usual_samples_change_nothing() -> None:
    """The samples that are drawn, and so every number of a result, are those that a rule for accidents never saw."""
    work = prepare(net(), CalibrationSet.from_arrays(X, LABELS))
    assert without_wild(work, np.arange(200)) is work


def test_wild_samples_are_found_among_blocks_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """What every sample is in every tensor was once held for all of them: a gigabyte for a million images."""
    alone = prepare(net(), CalibrationSet.from_arrays(with_value(1e6), LABELS))
    whole, seen = without_wild(alone, np.arange(3, 200)), list[tuple[int, int]]()
    monkeypatch.setattr(wild_stage, "_TOGETHER", 60)
    blocks = without_wild(alone, np.arange(3, 200), lambda _, done, total: seen.append((done, total)))
    assert blocks.samples.set_aside == whole.samples.set_aside == {7}
    assert blocks.notes[-1].startswith("left out of the calibration")
    assert seen[-1] == (197, 197)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_wild_samples_are_not_drawn_but_evaluated_on() -> None:
    work = without_wild(prepare(net(), CalibrationSet.from_arrays(with_value(1e6), LABELS)), np.arange(200))
    assert work.samples.set_aside == {7}
    drawn = draw(work.samples, work.class_names, None, 0)
    np.testing.assert_array_equal(drawn.indices, np.delete(np.arange(200), 7))
    np.testing.assert_array_equal(everything(work.samples, work.class_names), np.arange(200))


def test_scores_are_without_the_wild_sample() -> None:
    _, scores = score(net(), CalibrationSet.from_arrays(with_value(1e6), LABELS))
    assert scores.samples == (50, 50, 50, 49)
    assert any("sample 7 (" in note for note in scores.notes)


def test_a_sample_that_is_wild_inside_the_net_only_is_found() -> None:
    """exp(20) in the third layer's input, from a sample of usual size."""
    x = X.copy()
    x[:, 0] = 0
    x[11, 0] = 20
    nodes = [node("Exp", "x", "e"), node("MatMul", "e w")]
    model = make_model(nodes, {"x": ["N", 12]}, ["y"], {"w": RANDOM.normal(size=(12, 4)).astype(np.float32)})
    work = without_wild(prepare(model, CalibrationSet.from_arrays(x, LABELS)), np.arange(200))
    assert work.samples.set_aside == {11}


def test_an_image_is_named_by_its_file(tmp_path: Path) -> None:
    """A white image among black ones."""
    for i in range(40):
        pixels = np.full((4, 4), 255 if i == 13 else 1 + i % 3, np.uint8)
        (tmp_path / str(i % 2)).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / str(i % 2) / f"{i:02}.png")
    (tmp_path / "card.toml").write_text('source = "."')
    weight = RANDOM.normal(size=(16, 2)).astype(np.float32)
    model = make_model([node("Flatten", "x", "f"), node("MatMul", "f w")], {"x": ["N", 1, 4, 4]}, ["y"], {"w": weight})
    work = prepare(model, CalibrationSet.from_card(tmp_path / "card.toml"))
    found = without_wild(work, np.arange(40))
    assert f"{tmp_path / '1' / '13.png'} (" in found.notes[-1]
