"""What a model answers under several cards: figures against formulas written down here, and races."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, softmax

from onnx_cbq.calibration import CalibrationSet, Card
from onnx_cbq.errors import ModelError
from onnx_cbq.evidence.trials import Trials, judged
from onnx_cbq.evidence.workload import judge, make_example
from onnx_cbq.graph.load import load
from onnx_cbq.model import Array
from onnx_cbq.records.answers import Kind
from tests.graphs import make_model, node

RANDOM = np.random.default_rng(0)


def test_one_answer_of_exclusive_classes() -> None:
    scores, labels = RANDOM.standard_normal((50, 1, 4)) * 3, RANDOM.integers(0, 4, 50)
    found = judged(Kind(4), scores, scores, labels)
    shares = softmax(scores[:, 0], axis=1)
    np.testing.assert_array_equal(found.right, scores[:, 0].argmax(axis=1) == labels)
    np.testing.assert_allclose(found.confidence, shares.max(axis=1))
    np.testing.assert_allclose(found.loss, -np.log(shares[np.arange(50), labels]))
    np.testing.assert_array_equal(found.predicted, scores[:, 0].argmax(axis=1))


def test_positions_that_do_not_count_are_left_out() -> None:
    scores, labels = RANDOM.standard_normal((9, 5, 3)), RANDOM.integers(0, 3, (9, 5))
    labels[:, 3:] = -100
    found = judged(Kind(3), scores, scores, labels)
    np.testing.assert_allclose(found.right, (scores.argmax(axis=2) == labels)[:, :3].mean(axis=1))
    np.testing.assert_allclose(found.confidence, softmax(scores, axis=2).max(axis=2)[:, :3].mean(axis=1))
    assert (found.predicted == -1).all()


def test_several_classes_of_a_sample() -> None:
    scores, labels = RANDOM.standard_normal((20, 1, 6)), RANDOM.integers(0, 2, (20, 6))
    found = judged(Kind(6, independent=True, several=True), scores, scores, labels)
    yes = expit(scores[:, 0])
    np.testing.assert_allclose(found.right, ((scores[:, 0] > 0) == labels).mean(axis=1))
    np.testing.assert_allclose(found.confidence, np.maximum(yes, 1 - yes).mean(axis=1))
    np.testing.assert_allclose(found.loss, -np.log(np.where(labels, yes, 1 - yes)).mean(axis=1))


def test_independent_classes_with_one_label() -> None:
    scores, labels = RANDOM.standard_normal((20, 1, 6)), RANDOM.integers(0, 6, 20)
    found = judged(Kind(6, independent=True), scores, scores, labels)
    yes = expit(scores[:, 0])
    np.testing.assert_allclose(found.confidence, yes.max(axis=1))
    np.testing.assert_allclose(found.loss, -np.log(yes[np.arange(20), labels]))


def test_a_sample_that_gives_nan_is_wrong() -> None:
    """argmax of NaN is 0, which would be right for class 0."""
    scores = RANDOM.standard_normal((4, 1, 3))
    scores[1] = np.nan
    found = judged(Kind(3), scores, scores, np.zeros(4, np.int64))
    assert (found.right[1], found.confidence[1]) == (0, 0)
    assert np.isfinite(found.loss).all()


def trials(x: Array, y: Array, **options: Any) -> tuple[Trials, Card]:
    """A net whose scores are the samples themselves, less a half of each but the first, which a mean can make good."""
    shift = np.full(x.shape[1], -0.5, np.float32)
    shift[0] = 0
    squash = [node("Add", "x b", "z"), node("Softmax", "z", "y", axis=1)]
    proto = make_model(squash, {"x": [options.get("batch", "N"), x.shape[1]]}, ["y"], {"b": shift})
    model = load(proto)
    data = CalibrationSet.from_arrays(x, y)
    samples = data.for_model(model.inputs)
    logits, known = judge(model, make_example(samples).shapes(model), samples, None)
    return Trials(model, data, logits, known), Card(Path())


def clean(count: int, classes: int = 5) -> tuple[Array, Array]:
    """Scores that are right by a small margin, if nothing is added to some of them."""
    labels = np.arange(count) % classes
    x = 0.3 * np.eye(classes)[labels] + RANDOM.uniform(0, 0.1, (count, classes))
    return x.astype(np.float32), labels


@pytest.mark.parametrize("batch", ["N", 1, 7])
def test_a_race_keeps_what_is_right_and_counts_each_sample_once(batch: int | str) -> None:
    """Behind a softmax and with a fixed batch, whose last one is filled up."""
    x, y = clean(200)
    run, plain = trials(x, y, batch=batch)
    good = Card(Path(), mean=(0.0, -0.5, -0.5, -0.5, -0.5))
    order = RANDOM.permutation(200)[:150]
    assert run.race([plain, good], order, "values") == [good]
    assert run.outcomes[good].samples == 150
    assert run.outcomes[good].accuracy == 1.0
    assert run.outcomes[plain].samples == 30
    logits = x[order[:30]] + [0, -0.5, -0.5, -0.5, -0.5]
    np.testing.assert_allclose(run.outcomes[plain].confidence, softmax(logits, axis=1).max(axis=1), rtol=1e-5)
    np.testing.assert_array_equal(run.outcomes[plain].right, logits.argmax(axis=1) == y[order[:30]])


def test_a_second_race_runs_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    run, plain = trials(*clean(100))
    run.race([plain], np.arange(100), "values")
    monkeypatch.setattr(run, "_session", None)
    assert run.race([plain], np.arange(100), "again") == [plain]


def test_what_cannot_be_run_is_told_and_the_others_go_on() -> None:
    run, plain = trials(*clean(100))
    wrong = Card(Path(), mean=(1.0, 2.0))
    assert run.race([wrong, plain], np.arange(100), "values") == [plain]
    assert "mean: 2 numbers, but the samples have 5 channels" in str(run.outcomes[wrong].failure)
    with pytest.raises(ModelError, match="2 numbers"):
        run.race([wrong], np.arange(100), "values")


def look_up() -> tuple[Trials, Card]:
    """A net that looks numbers up: the first 50 samples are not in its table."""
    table = np.eye(3, dtype=np.float32)
    proto = make_model([node("Gather", "t x", "e"), node("Flatten", "e")], {"x": ["N", 1]}, ["y"], {"t": table})
    proto.graph.input[0].type.tensor_type.elem_type = 7
    model, ids = load(proto), np.arange(300)[:, None] % 3
    data = CalibrationSet.from_arrays(np.where(np.arange(300)[:, None] < 50, ids + 90, ids), np.arange(300) % 3)
    samples = CalibrationSet.from_arrays(ids, np.arange(300) % 3).for_model(model.inputs)
    logits, known = judge(model, make_example(samples).shapes(model), samples, None)
    return Trials(model, data, logits, known), data.card


def test_a_card_that_fails_in_the_first_batch_is_a_failure_and_no_fault() -> None:
    """The batches behind it were read for nobody, and then asked for what the card gave."""
    tried, card = look_up()
    found = tried.run(card, np.arange(300))
    assert found.failure is not None
    assert "onnxruntime" in found.failure or "index" in found.failure.lower()


def test_a_card_whose_numbers_are_too_large_fails_alone() -> None:
    """All cards that read the same were given its failure."""
    x = np.abs(RANDOM.standard_normal((40, 3))).astype(np.float32) * 1e6
    tried, card = trials(x, np.arange(40) % 3)
    vast = Card(Path(), std=(1e-35,))
    tried.race([card, vast], np.arange(40), "values")
    assert tried.outcomes[card].failure is None
    assert "holds NaN or infinity" in str(tried.outcomes[vast].failure)
