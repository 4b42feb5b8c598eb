"""What nets learn from each other, for every kind of answer, against the definitions in numpy."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from onnx_cbq.graph.logits import Logits  # noqa: E402
from onnx_cbq.model import Array  # noqa: E402
from onnx_cbq.records import Grouping  # noqa: E402
from onnx_cbq.records.answers import IGNORED, Kind, Reading  # noqa: E402
from onnx_cbq.training.lesson import Lesson, logit_rows  # noqa: E402
from onnx_cbq.training.loop import Objective  # noqa: E402

RANDOM = np.random.default_rng(0)
SAMPLES, CLASSES = 6, 4
WEIGHTS = np.array([1.0, 0.0, 2.0, 0.5])
POSITIONS = RANDOM.integers(0, CLASSES, (SAMPLES, 3))
POSITIONS[1, 0] = POSITIONS[4, 2] = IGNORED
LABELS = RANDOM.integers(0, CLASSES, SAMPLES)
CASES = {
    "one": (Kind(CLASSES), LABELS),
    "positions": (Kind(CLASSES), POSITIONS),
    "independent": (Kind(CLASSES, independent=True), LABELS),
    "several": (Kind(CLASSES, independent=True, several=True), RANDOM.integers(0, 2, (SAMPLES, CLASSES))),
}


def objective(kind: Kind, alpha: float = 0.0) -> Objective:
    weights = torch.tensor(WEIGHTS, dtype=torch.float32)
    return Objective(alpha, weights, Grouping.single("abcd"), kind=kind)


def logits_for(kind: Kind, labels: Array) -> Array:
    positions = 1 if kind.several else labels.size // SAMPLES
    return RANDOM.standard_normal((SAMPLES, positions, CLASSES)).astype(np.float32)


def laid(rows: Array, others: Array) -> Tensor:
    found: Tensor = torch.from_numpy(np.concatenate([rows.reshape(SAMPLES, -1), others], axis=1))
    return found


@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_the_divergence_that_plans_are_measured_by(name: str) -> None:
    """And the distance of further outputs is added; another scale would trade one for the other."""
    kind, labels = CASES[name]
    groups = Grouping.single("abcd")
    before, after = logits_for(kind, labels), logits_for(kind, labels)
    others = RANDOM.standard_normal((2, SAMPLES, 5)).astype(np.float32)
    found = objective(kind).loss(laid(before, others[0]), laid(after, others[1]), torch.from_numpy(labels))
    divergences = kind.divergences(kind.log_shares(before, groups), kind.log_shares(after, groups), labels)
    expected = (divergences @ WEIGHTS).sum() / (kind.counts(labels) @ WEIGHTS).sum()
    expected += np.square(others[1] - others[0]).sum(axis=1).mean()
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_the_share_of_the_labels_is_their_log_likelihood(name: str) -> None:
    kind, labels = CASES[name]
    logits, groups = logits_for(kind, labels), Grouping.single("abcd")
    values = laid(logits, np.zeros((SAMPLES, 0), np.float32))
    found = objective(kind, 1.0).loss(values, values, torch.from_numpy(labels))
    shares, total, count = kind.log_shares(logits.astype(np.float64), groups), 0.0, 0.0
    for sample in range(SAMPLES):
        if kind.several:
            total -= sum(WEIGHTS[m] * shares[sample, 0, m, labels[sample, m]] for m in range(CLASSES))
            count += WEIGHTS.sum() / CLASSES
            continue
        for position, label in enumerate(labels.reshape(SAMPLES, -1)[sample].tolist()):
            if label == IGNORED:
                continue
            at = shares[sample, position]
            own = sum(at[m, int(m == label)] for m in range(CLASSES)) if kind.independent else at[label]
            total, count = total - WEIGHTS[label] * own, count + WEIGHTS[label]
    assert float(found) == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_right_answers_are_those_of_the_evaluation(name: str) -> None:
    kind, labels = CASES[name]
    logits = logits_for(kind, labels)
    weights, right = objective(kind).judged(laid(logits, np.ones((SAMPLES, 2), np.float32)), torch.from_numpy(labels))
    answers, hits = kind.hits(logits, labels)
    assert float(weights.sum()) == pytest.approx(answers @ WEIGHTS)
    assert float((weights * right).sum()) == pytest.approx(hits @ WEIGHTS)


@pytest.mark.parametrize(
    ("reading", "shape"),
    [
        (Reading(), (SAMPLES, CLASSES)),
        (Reading(1, 0), (CLASSES, SAMPLES)),
        (Reading(0, 1), (SAMPLES, CLASSES, 3, 2)),
        (Reading(2, 0), (CLASSES, 3, SAMPLES)),
        (Reading(0, None), (SAMPLES,)),
        (Reading(1, None), (3, SAMPLES, 1)),
    ],
)
def test_torch_reads_scores_as_numpy_does(reading: Reading, shape: tuple[int, ...]) -> None:
    values = RANDOM.standard_normal(shape).astype(np.float32)
    np.testing.assert_allclose(logit_rows(torch.from_numpy(values), reading).numpy(), reading.rows(values), rtol=1e-6)


def test_further_outputs_are_laid_behind_the_logits_at_their_scale() -> None:
    """The squared distance of two is half the mean square of the change over the variance."""
    logits, deviation = Logits("y", "y", Kind(CLASSES)), 3.0
    lesson = Lesson(logits, (("mask", 1, deviation),))
    y, (one, other) = torch.zeros(SAMPLES, CLASSES), torch.randn(2, 2, SAMPLES, 5)
    assert lesson.tensors == ["y", "mask"]
    found = [lesson({"y": y, "mask": mask}) for mask in (one, other)]
    distance = (found[0] - found[1]).square().sum(dim=1)
    expected = 0.5 * (one - other).square().mean(dim=(0, 2)) / deviation**2
    torch.testing.assert_close(distance, expected)
