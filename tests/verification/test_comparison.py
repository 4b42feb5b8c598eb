"""Evaluations are counted right: every number by numpy, from all scores at once."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_cbq.calibration import CalibrationSet
from onnx_cbq.errors import VerificationError
from onnx_cbq.graph.load import load
from onnx_cbq.graph.logits import Logits
from onnx_cbq.model import Array, Model
from onnx_cbq.records import Evaluation
from onnx_cbq.records.answers import Kind
from onnx_cbq.runtime import median_latency
from onnx_cbq.verification import comparison, counts
from onnx_cbq.verification.comparison import Comparison, compare
from onnx_cbq.verification.counts import batch_size
from tests.graphs import make_model, node


@pytest.fixture(autouse=True)
def _no_time_for_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "median_latency", lambda sessions, feeds: median_latency(sessions, feeds, 0.01))


CLASSES = 12


def scores_model(offset: float = 0.0) -> Model:
    """Gives its input as class scores, class 3 more often than it should for an offset."""
    bias = np.zeros(CLASSES, np.float32)
    bias[3] = offset
    return load(make_model([node("Add", "x b")], {"x": ["N", CLASSES]}, ["y"], {"b": bias}))


def compared(models: list[Model], x: Array, y: Array, sizes: list[int] | None = None) -> Comparison:
    samples = CalibrationSet.from_arrays(x, y).for_model(models[0].inputs)
    count = len(y)
    return compare(models, sizes or [1] * len(models), (Logits("y", "y", Kind(CLASSES)), samples, np.arange(count)))


def assert_evaluation(found: Evaluation, scores: Array, y: Array) -> None:
    """Every number by numpy, from all scores at once."""
    predicted = scores.argmax(axis=1)
    assert found.top1 == pytest.approx(100 * np.mean(predicted == y))
    order = np.argsort(-scores, axis=1)[:, :5]
    assert found.top5 == pytest.approx(100 * np.mean([label in row for label, row in zip(y, order, strict=True)]))
    for m, accuracy in enumerate(found.per_class):
        assert accuracy == (pytest.approx(100 * np.mean(predicted[y == m] == m)) if (y == m).any() else None)
    expected = [[np.sum((y == a) & (predicted == b)) for b in range(CLASSES)] for a in range(CLASSES)]
    np.testing.assert_array_equal(found.confusion, expected)
    assert found.samples == len(y)
    assert found.latency_ms > 0


@pytest.mark.parametrize("batch_bytes", [1, 1000, 1 << 20])
def test_accuracies_are_those_of_numpy(batch_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At any batch size; one class has no samples, and one no hits."""
    monkeypatch.setattr(counts, "BATCH_BYTES", batch_bytes)
    random = np.random.default_rng(0)
    y = random.integers(0, CLASSES - 1, 70)
    x = random.standard_normal((70, CLASSES)).astype(np.float32)
    x[np.arange(70), y] += 2.5
    x[y == 5, 5] -= 9
    found = compared([scores_model(), scores_model(0.8)], x, y, [10, 20])
    shifted = x.copy()
    shifted[:, 3] += 0.8
    assert_evaluation(found.evaluations[0], x, y)
    assert_evaluation(found.evaluations[1], shifted, y)
    agreement = 100 * np.mean(x.argmax(axis=1) == shifted.argmax(axis=1))
    assert found.agreements == pytest.approx((100.0, agreement))
    assert 0 < agreement < 100
    assert [e.bytes for e in found.evaluations] == [10, 20]
    assert found.evaluations[0].worst_class == 5


def test_with_ten_classes_or_fewer_there_is_no_top_5() -> None:
    model = load(make_model([node("Identity", "x")], {"x": ["N", 10]}, ["y"]))
    samples = CalibrationSet.from_arrays(np.eye(10, dtype=np.float32), np.arange(10)).for_model(model.inputs)
    found = compare([model], [1], (Logits("y", "y", Kind(10)), samples, np.arange(10))).evaluations[0]
    assert (found.top1, found.top5) == (100.0, None)


@pytest.mark.parametrize("batch", [1, 4])
def test_samples_that_fill_up_a_fixed_batch_do_not_count(batch: int) -> None:
    model = load(make_model([node("Identity", "x")], {"x": [batch, CLASSES]}, ["y"]))
    x = np.eye(CLASSES, dtype=np.float32)[[0, 1, 2, 3, 4, 0]]
    found = compared([model], x, np.array([0, 1, 2, 3, 4, 5]))
    assert_evaluation(found.evaluations[0], x, np.array([0, 1, 2, 3, 4, 5]))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_an_error(value: float) -> None:
    """argmax of NaN is a prediction like any other."""
    with pytest.raises(VerificationError, match="output 'y' holds NaN or infinity"):
        compared([scores_model(value)], np.eye(CLASSES, dtype=np.float32), np.arange(CLASSES))


def test_the_batch_depends_on_the_samples_alone() -> None:
    """Else two commands would sum in another order, and the last digits of their accuracies could differ."""
    samples = CalibrationSet.from_arrays(np.zeros((3, CLASSES), np.float32), [0, 1, 2]).for_model(scores_model().inputs)
    assert batch_size(samples) == 100
    large = load(make_model([node("Identity", "x")], {"x": ["N", 1 << 20]}, ["y"]))
    samples = CalibrationSet.from_arrays(np.zeros((1, 1 << 20), np.float32), [0]).for_model(large.inputs)
    assert batch_size(samples) == 4
