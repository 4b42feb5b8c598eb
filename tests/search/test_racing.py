"""What paired samples tell: the sign test against its formula, guessing, and classes of another order."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from onnx_cbq.search.racing import beats_guessing, chance_of_lead, moved_classes, not_behind

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(("ahead", "behind"), [(1, 0), (5, 0), (5, 1), (9, 3), (30, 20), (3, 2)])
def test_the_sign_test_is_exact(ahead: int, behind: int) -> None:
    """Sum of the binomial probabilities of so many heads, or more, of a fair coin."""
    both = np.ones(40)
    first = np.concatenate([np.ones(ahead), np.zeros(behind), both])
    second = np.concatenate([np.zeros(ahead), np.ones(behind), both])
    count = ahead + behind
    expected = sum(comb(count, heads) for heads in range(ahead, count + 1)) / 2**count
    assert chance_of_lead(first, second) == pytest.approx(expected)
    assert chance_of_lead(second, first) == 1.0


def test_who_answers_alike_is_not_behind() -> None:
    right = (RANDOM.random(300) < 0.9).astype(float)
    slightly = right.copy()
    slightly[np.flatnonzero(right)[:3]] = 0
    plainly = right.copy()
    plainly[np.flatnonzero(right)[:60]] = 0
    assert not_behind(right, [right, slightly, plainly], 0.01) == [True, True, False]


def test_the_level_is_what_is_dropped_by_chance() -> None:
    """Of ways that are alike, the share that is taken for worse is at most the level."""
    dropped = 0
    for _ in range(400):
        first, second = (RANDOM.random((2, 200)) < 0.7).astype(float)
        dropped += not not_behind(first, [second], 0.05)[0]
    assert dropped <= 400 * 0.05 * 1.5


@pytest.mark.parametrize(("hits", "expected"), [(10, False), (14, False), (30, True)])
def test_guessing_is_told_by_the_binomial(hits: int, expected: bool) -> None:
    right = np.zeros(100)
    right[:hits] = 1
    assert beats_guessing(right, 0.1, 0.001) == expected


def test_shares_of_several_answers_are_told_by_their_mean() -> None:
    assert beats_guessing(RANDOM.uniform(0.6, 1, 200), 0.75, 0.001)
    assert not beats_guessing(RANDOM.uniform(0.6, 1, 200), 0.82, 0.001)


def test_another_numbering_is_found_where_there_is_one() -> None:
    labels = np.repeat(np.arange(10), 8)
    order = RANDOM.permutation(10)
    predicted = np.where(RANDOM.random(80) < 0.9, order[labels], RANDOM.integers(0, 10, 80))
    found = moved_classes(labels, predicted)
    assert found is not None
    right, numbering = found
    assert right.mean() > 0.8
    assert numbering == {m: int(order[m]) for m in range(10)}


@pytest.mark.parametrize("seed", range(5))
def test_a_net_that_guesses_has_no_other_numbering(seed: int) -> None:
    """With one sample of a class any numbering fits it; held against the other half it is worth nothing."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(20), 4)
    for predicted in (random.integers(0, 20, 80), np.full(80, 7)):
        found = moved_classes(labels, predicted)
        assert found is not None
        assert chance_of_lead(found[0].astype(float), (predicted == labels).astype(float)) > 0.001


def test_single_samples_tell_nothing() -> None:
    labels = np.arange(50)
    found = moved_classes(labels, RANDOM.permutation(50))
    assert found is not None
    assert not found[0].any()


def test_the_own_number_is_kept_where_another_fits_as_well() -> None:
    found = moved_classes(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 0]))
    assert found is not None
    assert found[1] == {0: 0, 1: 1}
