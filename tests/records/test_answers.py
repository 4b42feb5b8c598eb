"""What scores and labels of each kind mean, against the definitions written out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from onnx_cbq.model import Array
from onnx_cbq.records import Grouping
from onnx_cbq.records.answers import IGNORED, Kind, Reading
from onnx_cbq.records.spread import Spread, squared_distances

RANDOM = np.random.default_rng(0)
SAMPLES, POSITIONS, CLASSES = 5, 3, 4
ALONE = Grouping.single(["a", "b", "c", "d"])
PAIRS = Grouping.of(["a", "b", "c", "d"], np.array([0, 1, 0, 1]))


class GivenSigns:
    """A generator that always draws the same signs."""

    def __init__(self, signs: Array) -> None:
        self.signs = signs

    def choice(self, values: Array, shape: tuple[int, ...]) -> Array:
        assert sorted(values.tolist()) == [-1, 1]
        return self.signs.reshape(shape)


READINGS = [
    (Reading(), (SAMPLES, CLASSES)),
    (Reading(1, 0), (CLASSES, SAMPLES)),
    (Reading(0, 2), (SAMPLES, POSITIONS, CLASSES)),
    (Reading(0, 1), (SAMPLES, CLASSES, POSITIONS, 2)),
    (Reading(2, 0), (CLASSES, POSITIONS, SAMPLES)),
    (Reading(0, None), (SAMPLES,)),
    (Reading(1, None, 0.5), (POSITIONS, SAMPLES, 1)),
]


@pytest.mark.parametrize(("reading", "shape"), READINGS)
def test_gradients_go_back_to_where_scores_were_read(reading: Reading, shape: tuple[int, ...]) -> None:
    """rows is affine, so <gradient(r), x> = <r, rows(x) - rows(0)> for every x and r: a confused axis shows at once."""
    x = RANDOM.standard_normal(shape)
    rows = reading.rows(x) - reading.rows(np.zeros(shape))
    assert rows.shape[0] == SAMPLES
    assert rows.shape[2] == (2 if reading.classes is None else CLASSES)
    seed = RANDOM.standard_normal(rows.shape)
    found = reading.gradient(seed, shape)
    assert found.shape == shape
    assert (found * x).sum() == pytest.approx((seed * rows).sum(), rel=1e-5)


def test_a_single_number_has_the_probability_of_its_sigmoid() -> None:
    z = RANDOM.standard_normal(SAMPLES)
    found = np.exp(Kind(2).log_shares(Reading(0, None).rows(z), Grouping.single(["no", "yes"])))
    np.testing.assert_allclose(found[:, 0, 1], 1 / (1 + np.exp(-z)))


def test_dictionaries_are_read_in_the_order_of_their_keys() -> None:
    rows = Reading(keys=("b", "a")).rows([{"a": 1.0, "b": 2.0}, {"b": 3.0, "a": 4.0}])
    np.testing.assert_array_equal(rows[:, 0], [[2, 1], [3, 4]])


def divergence_by_hand(kind: Kind, p: Array, q: Array, groups: Grouping) -> float:
    """Of one position, from probabilities [classes]."""
    if kind.independent:
        return float(np.sum(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))))
    p, q = groups.sums(p), groups.sums(q)
    return float(np.sum(p * np.log(p / q)))


def probabilities(kind: Kind, logits: Array) -> Array:
    if kind.independent:
        return np.asarray(1 / (1 + np.exp(-logits)))
    return np.asarray(np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("groups", [ALONE, PAIRS], ids=["classes", "groups"])
@pytest.mark.parametrize("kind", [Kind(CLASSES), Kind(CLASSES, independent=True)], ids=["exclusive", "independent"])
def test_the_divergence_of_labelled_positions_is_that_of_the_definition(kind: Kind, groups: Grouping) -> None:
    before, after = RANDOM.standard_normal((2, SAMPLES, POSITIONS, CLASSES))
    labels = RANDOM.integers(0, CLASSES, (SAMPLES, POSITIONS))
    labels[0, 1] = labels[3, 2] = IGNORED
    found = kind.divergences(kind.log_shares(before, groups), kind.log_shares(after, groups), labels)
    expected, counts = np.zeros((2, SAMPLES, CLASSES))
    p, q = probabilities(kind, before), probabilities(kind, after)
    for i, j in np.argwhere(labels >= 0):
        expected[i, labels[i, j]] += divergence_by_hand(kind, p[i, j], q[i, j], groups)
        counts[i, labels[i, j]] += 1
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_array_equal(kind.counts(labels), counts)


def test_several_classes_diverge_each_by_itself() -> None:
    kind = Kind(CLASSES, independent=True, several=True)
    before, after = RANDOM.standard_normal((2, SAMPLES, 1, CLASSES))
    labels = RANDOM.integers(0, 2, (SAMPLES, CLASSES))
    found = kind.divergences(kind.log_shares(before, ALONE), kind.log_shares(after, ALONE), labels)
    p, q = probabilities(kind, before)[:, 0], probabilities(kind, after)[:, 0]
    np.testing.assert_allclose(found, p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)), rtol=1e-12)
    # With equal weights the loss is the mean over samples of the sum over classes.
    assert found.sum() / kind.counts(labels).sum() == pytest.approx(found.sum(axis=1).mean())
    given, right = kind.hits(after, labels)
    np.testing.assert_array_equal(given, [SAMPLES] * CLASSES)
    np.testing.assert_array_equal(right, ((after[:, 0] > 0) == labels).sum(axis=0))


def test_a_masked_class_adds_nothing() -> None:
    """0 (-inf - -inf) is NaN, which would decide every comparison of plans."""
    logits = RANDOM.standard_normal((SAMPLES, 1, CLASSES))
    masked = logits.copy()
    masked[..., 1] = -np.inf
    kind, labels = Kind(CLASSES), np.zeros(SAMPLES, np.int64)
    same = kind.divergences(kind.log_shares(masked, ALONE), kind.log_shares(masked, ALONE), labels)
    np.testing.assert_allclose(same, 0, atol=1e-12)
    rest, three = np.delete(masked, 1, axis=-1), Grouping.single(["a", "c", "d"])
    changed, fewer = masked * 1.5, Kind(3)
    found = kind.divergences(kind.log_shares(masked, ALONE), kind.log_shares(changed, ALONE), labels)[:, 0]
    expected = fewer.divergences(fewer.log_shares(rest, three), fewer.log_shares(rest * 1.5, three), labels)[:, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("kind", [Kind(3), Kind(3, independent=True)], ids=["exclusive", "independent"])
def test_random_seeds_have_the_fisher_information_as_their_mean_square(kind: Kind) -> None:
    """Over all signs: E s s^T is the second derivative of the mean divergence over two labelled positions of three."""
    logits = RANDOM.standard_normal((1, 3, 3))
    labels, groups = np.array([[0, IGNORED, 2]]), Grouping.single(["a", "b", "c"])
    signs = itertools.product((-1.0, 1.0), repeat=9)
    seeds = [kind.direction(logits, labels, groups, GivenSigns(np.array(s))).ravel() for s in signs]  # type: ignore[arg-type]
    found = np.mean([np.outer(s, s) for s in seeds], axis=0)
    p = probabilities(kind, logits)[0]
    expected = np.zeros((9, 9))
    for position in (0, 2):
        at = slice(3 * position, 3 * position + 3)
        whole = np.diag(p[position] * (1 - p[position]))
        exclusive = np.diag(p[position]) - np.outer(p[position], p[position])
        expected[at, at] = (whole if kind.independent else exclusive) / 2
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_phi_is_the_mean_logit_of_the_labelled_positions() -> None:
    labels = np.array([[0, 2, 2], [IGNORED, 1, 3], [1, 1, 1]])
    seed = Kind(CLASSES).seed(labels, PAIRS, 0)
    expected = np.zeros((3, 3, CLASSES))
    expected[0, :, [0, 2]] = 1 / 6
    np.testing.assert_allclose(seed, expected)
    several = Kind(CLASSES, independent=True, several=True)
    np.testing.assert_array_equal(several.seed(np.array([[1, 0, 1, 0]]), ALONE, 2)[0, 0], [0, 0, 1, 0])


def test_a_sample_weighs_as_its_classes_do() -> None:
    weights = np.array([1.0, 2.0, 4.0, 8.0])
    found = Kind(CLASSES).sample_weights(np.array([[0, 1], [IGNORED, 3], [IGNORED, IGNORED]]), weights)
    np.testing.assert_array_equal(found, [1.5, 8, 0])
    several = Kind(CLASSES, independent=True, several=True)
    np.testing.assert_array_equal(several.sample_weights(np.array([[1, 0, 1, 0], [0] * 4]), weights), [2.5, 3.75])


def test_a_spread_is_the_variance_over_samples() -> None:
    """A large mean costs no digits; what is not finite is left out."""
    values = 1e6 + RANDOM.standard_normal((50, 2, 3))
    spread = Spread()
    for part in np.array_split(values, 7):
        spread.add(part)
    assert spread.variance == pytest.approx(values.var(axis=0).mean(), rel=1e-9)
    holed = Spread()
    holed.add(np.array([[1.0, np.inf], [3.0, np.nan], [8.0, 5.0]]))
    assert holed.variance == pytest.approx((np.var([1, 3, 8]) + 0) / 2)


def test_equal_infinities_are_no_distance() -> None:
    before = np.array([1.0, -np.inf, np.nan, 2.0, np.inf])
    after = np.array([1.5, -np.inf, np.nan, -np.inf, np.inf])
    np.testing.assert_array_equal(squared_distances(before, after), [0.25, 0, 0, 4, 0])


def test_the_spread_of_an_output_that_is_one_number() -> None:
    """A net may give a mean over the batch beside its scores."""
    spread = Spread()
    for value in (1.0, 3.0):
        spread.add(np.array(value, np.float32))
    assert spread.variance == 1.0


def test_what_positions_count() -> None:
    """A position as the class of its label, none without one; where a sample has several classes, each as itself."""
    weights = np.array([1.0, 2.0, 3.0, 4.0])
    found = Kind(CLASSES).position_weights(np.array([[0, IGNORED], [3, 1]]), weights)
    np.testing.assert_array_equal(found, [[[1], [0]], [[4], [2]]])
    several = Kind(CLASSES, independent=True, several=True).position_weights(np.array([[1, 0, 1, 0]]), weights)
    np.testing.assert_array_equal(several, [[weights]])
