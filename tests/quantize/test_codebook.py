"""Shared values against brute force, and their objectives, which no round may raise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from onnx_cbq.model import Array
from onnx_cbq.quantize.codebook import (
    LARGEST,
    MOST_VALUES,
    code_lengths,
    ecsq,
    ecsq_round,
    ecsq_start,
    kmeans,
    kmeans_error,
    make_codebook,
    with_counts,
)


def least_error(values: Array, weights: Array, count: int) -> float:
    """The least error of all ways to cut the sorted values into `count` runs: clusters on a line are runs."""
    order = np.argsort(values)
    v, h = values[order], weights[order]
    best = np.inf
    for cuts in itertools.combinations(range(1, len(v)), count - 1):
        error = 0.0
        for run in np.split(np.arange(len(v)), cuts):
            centre = np.average(v[run], weights=h[run])
            error += float((h[run] * (v[run] - centre) ** 2).sum())
        best = min(best, error)
    return best


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_kmeans_comes_near_the_best_partition(count: int, weighted: bool) -> None:
    """Guards against a wrong prefix sum or centre: on 40 small cases most are solved, and none is far off."""
    random = np.random.default_rng(0)
    ratios = []
    for _ in range(40):
        values = random.laplace(size=13)
        weights = random.exponential(size=13) if weighted else np.ones(13)
        centres = kmeans(values, weights, count)
        assert len(centres) <= count
        nearest = np.abs(values[:, None] - centres).argmin(axis=1)
        error = float((weights * (values - centres[nearest]) ** 2).sum())
        assert kmeans_error(values, weights, centres) == pytest.approx(error)
        ratios.append(error / least_error(values, weights, count))
    assert min(ratios) > 1 - 1e-9
    assert np.median(ratios) < 1 + 1e-9 if count < 4 else np.median(ratios) < 1.2


def test_kmeans_without_choice() -> None:
    """Equal values, fewer values than centres, and weights of 0 (dead inputs) must not divide by zero."""
    assert kmeans(np.full(5, 0.25), np.ones(5), 4).tolist() == [0.25]
    assert kmeans(np.array([1.0, 2.0]), np.ones(2), 16).tolist() == [1.0, 2.0]
    assert np.isfinite(kmeans(np.array([1.0, 2.0, 4.0]), np.zeros(3), 2)).all()
    np.testing.assert_allclose(kmeans(np.array([0.0, 1.0, 9.0]), np.array([1.0, 1.0, 0.0]), 1), [0.5])


def cost(values: Array, weights: Array, price: float, centres: Array, counts: Array) -> float:
    """The paper's objective, written out."""
    total = 0.0
    for value, weight in zip(values, weights, strict=True):
        bits = -np.log2(counts / counts.sum())
        total += float(min(weight * (value - c) ** 2 + price * b for c, b in zip(centres, bits, strict=True)))
    return total / len(values)


def test_ecsq_is_the_iteration_of_the_paper_and_never_raises_its_cost() -> None:
    random = np.random.default_rng(0)
    values, weights = random.laplace(size=400), random.exponential(size=400)
    state = ecsq_start(values, weights, 0.1)
    costs = []
    for _ in range(12):
        better = ecsq_round(values, weights, 0.1, state)
        # Lengths are float32.
        assert better.cost == pytest.approx(cost(values, weights, 0.1, state.centres, state.counts), rel=1e-6)
        state = better
        costs.append(better.cost)
    assert (np.diff(costs) <= 1e-9).all()
    assert len(state.counts) < len(ecsq_start(values, weights, 0.1).counts)


def test_a_higher_price_lowers_the_rate_and_raises_the_error() -> None:
    """Guards against a price that acts on the wrong side."""
    random = np.random.default_rng(0)
    values, weights = random.laplace(size=4000), np.ones(4000)
    rates, errors = [], []
    for price in (0.001, 0.01, 0.1, 1.0):
        found = ecsq(values, weights, price)
        rates.append(float(found.counts @ code_lengths(found.counts) / 4000))
        errors.append(kmeans_error(values, weights, found.centres))
    assert rates == sorted(rates, reverse=True)
    assert errors == sorted(errors)
    assert rates[-1] < 1
    assert rates[0] > 3


def test_ecsq_needs_less_than_kmeans_at_the_same_entropy() -> None:
    """What the paper derives it for: at a given entropy its error is smaller than that of k-means."""
    random = np.random.default_rng(0)
    values, weights = random.laplace(size=20_000), np.ones(20_000)
    centres = kmeans(values, weights, 8)
    counts = np.bincount(np.abs(values[:, None] - centres).argmin(axis=1))
    entropy = float(counts @ code_lengths(counts) / len(values))
    prices = np.geomspace(0.01, 1, 25)
    found = [ecsq(values, weights, price) for price in prices]
    under = [f for f in found if f.counts @ code_lengths(f.counts) / len(values) <= entropy]
    assert kmeans_error(values, weights, under[0].centres) < kmeans_error(values, weights, centres)


def test_values_are_int8_times_one_scale() -> None:
    book = make_codebook(np.array([0.5, -1.0, 0.001, 0.0]), np.array([1.0, 1.0, 1.0, 5.0]))
    assert book.table.tolist() == [-127, 0, 64]
    assert book.levels == pytest.approx([-1, 0, 0.5], abs=0.5 / LARGEST)
    assert book.lengths.tolist() == pytest.approx([3, np.log2(8 / 6), 3])
    assert make_codebook(np.zeros(1)).levels.tolist() == [0]
    assert len(make_codebook(np.linspace(-1, 1, 1000)).table) == MOST_VALUES


def test_lengths_follow_how_often_values_occur() -> None:
    book = with_counts(make_codebook(np.array([-1.0, 0.0, 1.0])), np.array([[0, 0], [127, 0]], np.int8))
    assert book.lengths[1] < book.lengths[2] < book.lengths[0]
