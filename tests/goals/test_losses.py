"""What a solution loses is measured on samples that nothing else has seen, as the model that it is written as."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnx_cbq import QuantizeConfig
from onnx_cbq.calibration.draw import Draw
from onnx_cbq.evidence.workload import Workload, prepare
from onnx_cbq.goals import Accuracy, losses
from onnx_cbq.goals.losses import LimitCheck, limit_samples
from onnx_cbq.stages.solution import emit_solution
from tests.conftest import DIGITS_CARD, DIGITS_MODEL
from tests.goals.hits import hits
from tests.scenes import scene_of, solved

CLASSES = 10
QUICK = QuantizeConfig(bits=2.0, method="uniform", samples=60, rounding="nearest", activation_bits=0)


@pytest.fixture(scope="module")
def digits() -> Workload:
    return prepare(DIGITS_MODEL, DIGITS_CARD)


@pytest.mark.parametrize("most", [2000, 50, 3])
@pytest.mark.parametrize("classes", [None, ("3", "8")], ids=["all", "two"])
def test_limits_are_checked_on_samples_that_nothing_else_has_seen(
    digits: Workload, monkeypatch: pytest.MonkeyPatch, classes: tuple[str, ...] | None, most: int
) -> None:
    monkeypatch.setattr(losses, "LIMIT_SAMPLES", most)
    scene = scene_of(digits, replace(QUICK, classes=classes))
    chosen, _, notes = limit_samples(scene)
    assert notes == ()
    assert not set(chosen.indices.tolist()) & set(scene.drawn.indices.tolist())
    counted = [3, 8] if classes else list(range(CLASSES))
    counts = np.bincount(digits.samples.labels[chosen.indices], minlength=CLASSES)
    left = 50 - 60 // len(counted)  # of the 50 digits of each class
    assert counts[counted].tolist() == [max(min(most // len(counted), left), 1)] * len(counted)
    assert counts.sum() == counts[counted].sum()


def test_without_other_samples_the_limits_are_checked_on_the_calibration_samples(
    digits: Workload,
) -> None:
    """Which is said, and never called samples that nothing else used."""
    config = replace(QUICK, samples=None)
    scene = scene_of(digits, config)
    chosen, _, _ = limit_samples(scene)
    np.testing.assert_array_equal(chosen.indices, scene.drawn.indices)
    notes = Accuracy(max_class_drop=100.0).meet(scene, config.choice.method).notes
    assert notes[0].startswith("the limits are checked on the calibration samples themselves")
    assert notes[1].endswith("on 500 calibration samples")


def test_a_class_without_other_samples_is_checked_on_its_calibration_samples_alone(digits: Workload) -> None:
    """One small class of many must not take the other samples of all the others away."""
    scene = scene_of(digits, QUICK)
    drawn = list(scene.drawn.by_class)
    drawn[4] = np.flatnonzero(digits.samples.labels == 4)
    chosen, name, notes = limit_samples(replace(scene, drawn=Draw(tuple(drawn))))
    np.testing.assert_array_equal(np.sort(chosen.by_class[4]), drawn[4])
    for m in set(range(CLASSES)) - {4}:
        assert len(chosen.by_class[m])
        assert not set(chosen.by_class[m].tolist()) & set(drawn[m].tolist())
    assert name == "samples"
    assert notes[0].startswith("the limits are checked on calibration samples of 1 classes, the first of them '4'")


@pytest.mark.parametrize("activation_bits", [0, 2])
def test_losses_are_those_of_the_whole_quantized_model_against_the_float_one(
    digits: Workload, activation_bits: int
) -> None:
    """What quantized activations cost was once left out, and so was that biases are quantized with them."""
    config = replace(QUICK, activation_bits=activation_bits, class_weights=(("3", 3.0),))
    scene = scene_of(digits, config)
    solution = solved(scene, config)
    found = LimitCheck(scene)(scene, solution)
    indices = limit_samples(scene)[0].indices
    labels = digits.samples.labels[indices]
    lost = 100.0 * (
        hits(digits.source, digits, indices).astype(int) - hits(emit_solution(scene, solution), digits, indices)
    )
    weights = np.where(labels == 3, 3.0, 1.0)
    assert found.overall == pytest.approx((weights * lost).sum() / weights.sum(), abs=1e-9)
    for m in range(CLASSES):
        assert found.per_class[m] == pytest.approx(lost[labels == m].mean())
        assert found.samples[m] == np.sum(labels == m)
    if activation_bits:
        assert found.overall > 2
