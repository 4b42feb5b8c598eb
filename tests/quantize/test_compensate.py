"""Compensated rounding against the textbook in float64, and what must hold for any metric."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_cbq.model import Array
from onnx_cbq.quantize import compensate as module
from onnx_cbq.quantize.compensate import (
    Metric,
    best_aim,
    best_factor,
    compensate,
    descend,
    make_metric,
    squared_error,
)
from onnx_cbq.quantize.grid import Grid

ROWS = 6
DAMPING = 0.01


def moments(size: int, *, groups: int = 1, rank: int | None = None, seed: int = 0) -> Array:
    """Second moments [groups, n, n] of correlated inputs, some much larger than others."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((groups, rank or 4 * size, size)) @ random.standard_normal((groups, size, size))
    x = x * random.uniform(0.2, 3, size)
    return np.asarray(x.swapaxes(1, 2) @ x / x.shape[1])


def aims(size: int, *, groups: int = 1, rows: int = ROWS, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal((groups, rows, size)).astype(np.float32)


def grid(groups: int = 1, rows: int = ROWS) -> Grid:
    """Grids of 1 to 4 bits in turn, as wide as the aims."""
    bits = np.broadcast_to(1 + np.arange(rows) % 4, (groups, rows))
    rise = (bits == 1) | (np.arange(rows) % 3 == 0)
    scale = (2.0 / np.where(rise, 2**bits, np.maximum(2 ** (bits - 1), 1))).astype(np.float32)
    return Grid.of(scale, bits, rise)


def textbook(a: Array, h: Array, nearest: Callable[[Array], Array], order: Array) -> Array:
    """OPTQ as its authors write it, in float64: each column that is done leaves the inverse of H (their equation 3)."""
    a, inverse = a.astype(np.float64)[:, order], np.linalg.inv(h[np.ix_(order, order)])
    q = np.zeros_like(a)
    for j in range(a.shape[1]):
        q[:, j] = nearest(a[:, j])
        a -= np.outer((a[:, j] - q[:, j]) / inverse[j, j], inverse[j])
        inverse -= np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    result = np.zeros_like(q)
    result[:, order] = q
    return result


def damped(h: Array, damping: float = DAMPING) -> Array:
    return np.asarray(h + damping * np.diag(h).mean() * np.eye(len(h)))


def error_of(a: Array, q: Array, h: Array) -> Array:
    """(a - q) H (a - q)^T, [rows], by the definition."""
    difference = a.astype(np.float64) - q
    return np.asarray(np.einsum("rn,nm,rm->r", difference, h, difference))


# The solver works in blocks of 64 columns.
@pytest.mark.parametrize("size", [1, 5, 63, 64, 65, 150])
@pytest.mark.parametrize("sort", [True, False])
def test_compensation_is_that_of_the_textbook(size: int, sort: bool) -> None:
    h, a, levels = moments(size), aims(size), grid()
    found, error = compensate(a, make_metric(h, DAMPING, sort=sort), levels.nearest)
    order = np.argsort(-np.diag(h[0]), kind="stable") if sort else np.arange(size)
    expected = textbook(a[0], damped(h[0]), lambda column: levels.nearest(column[None])[0], order)
    # Where float32 falls on the other side of the middle between two levels, that row goes on differently.
    same = np.isclose(found[0], expected, atol=1e-5).all(axis=1)
    assert same.mean() >= (1 if size < 64 else 0.5)
    np.testing.assert_allclose(error[0], error_of(a[0], found[0], damped(h[0])), rtol=2e-3)
    np.testing.assert_allclose(error[0].sum(), error_of(a[0], expected, damped(h[0])).sum(), rtol=0.1)


def test_the_reported_error_is_that_of_the_levels() -> None:
    h, a, levels = moments(40), aims(40), grid()
    metric = make_metric(h, DAMPING)
    found, error = compensate(a, metric, levels.nearest)
    np.testing.assert_allclose(squared_error(a, found, metric), error, rtol=1e-3)
    np.testing.assert_allclose(squared_error(a, a, metric), 0, atol=1e-12)


def test_compensation_is_better_than_rounding_each_weight_alone() -> None:
    h, a, levels = moments(50), aims(50, rows=40), grid(rows=40)
    metric = make_metric(h, DAMPING)
    nearest = np.stack([levels.nearest(a[:, :, j]) for j in range(50)], axis=2)
    assert compensate(a, metric, levels.nearest)[1].sum() < 0.7 * squared_error(a, nearest, metric).sum()


def test_without_correlation_it_is_rounding_to_nearest() -> None:
    a, levels = aims(30), grid()
    found, _ = compensate(a, make_metric(np.eye(30)[None], DAMPING), levels.nearest)
    for j in range(30):
        np.testing.assert_allclose(found[:, :, j], levels.nearest(a[:, :, j]))


def test_groups_together_are_what_each_is_alone() -> None:
    """A grouped Conv; groups differ in their moments and so in the order of their columns."""
    h, a, levels = moments(20, groups=3), aims(20, groups=3), grid(groups=3)
    metric = make_metric(h, DAMPING)
    found, error = compensate(a, metric, levels.nearest)
    better = descend(a, found, metric, levels.nearest, 3)
    for g in range(3):
        one = slice(g, g + 1)
        alone = make_metric(h[one], DAMPING)
        np.testing.assert_array_equal(alone.order[0], metric.order[g])
        levels_alone, error_alone = compensate(a[one], alone, grid().nearest)
        np.testing.assert_allclose(levels_alone[0], found[g], atol=1e-6)
        np.testing.assert_allclose(error_alone[0], error[g], rtol=1e-3)
        np.testing.assert_allclose(descend(a[one], found[one], alone, grid().nearest, 3)[0], better[g], atol=1e-6)
    assert any(not np.array_equal(metric.order[0], metric.order[g]) for g in (1, 2))


def one_step_errors(a: Array, q: Array, h: Array, levels: Grid) -> float:
    """The most that the error of a row falls, as a share of it, when a single weight moves to any of its levels."""
    best = 0.0
    for r in range(a.shape[0]):
        top, stride, scale = (float(part[0, r]) for part in (levels.top, levels.stride, levels.scale))
        offset = float(levels.offset[0, r])
        allowed = np.arange(-top, top + 1)
        allowed = allowed[(allowed - offset) % stride == 0] * scale
        start = error_of(a[r : r + 1], q[r : r + 1], h)[0]
        for j in range(a.shape[1]):
            tried = np.repeat(q[r : r + 1], len(allowed), axis=0)
            tried[:, j] = allowed
            best = max(best, float((start - error_of(a[r : r + 1], tried, h)).max() / start))
    return best


@pytest.mark.parametrize("size", [5, 64, 100])
def test_descent_ends_where_no_single_weight_can_do_better(size: int) -> None:
    h, a, levels = moments(size), aims(size), grid()
    metric = make_metric(h, DAMPING)
    start = np.stack([levels.nearest(a[:, :, j]) for j in range(size)], axis=2)
    end = descend(a, start, metric, levels.nearest, 200)
    assert (squared_error(a, end, metric) <= squared_error(a, start, metric) * (1 + 1e-5)).all()
    assert one_step_errors(a[0], start[0], damped(h[0]), levels) > 0.01
    assert one_step_errors(a[0], end[0], damped(h[0]), levels) < 1e-4
    np.testing.assert_array_equal(descend(a, end, metric, levels.nearest, 5), end)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 80), st.integers(1, 100), st.integers(0, 10**6))
def test_no_sweep_makes_it_worse(size: int, rank: int, seed: int) -> None:
    """Also for inputs that say nothing about most directions."""
    h, a, levels = moments(size, rank=rank, seed=seed), aims(size, seed=seed + 1), grid()
    metric = make_metric(h, DAMPING)
    levels_now, reported = compensate(a, metric, levels.nearest)
    error = squared_error(a, levels_now, metric)
    np.testing.assert_allclose(error, reported, rtol=0.02)
    for _ in range(3):
        levels_now = descend(a, levels_now, metric, levels.nearest, 1)
        lower = squared_error(a, levels_now, metric)
        assert (lower <= error * (1 + 1e-4)).all()
        error = lower


def test_arguments_are_not_written_to() -> None:
    h, a, levels = moments(70), aims(70), grid()
    kept_h, kept_a = h.copy(), a.copy()
    metric = make_metric(h, DAMPING)
    kept = metric.matrix.copy(), metric.factor.copy()
    found, _ = compensate(a, metric, levels.nearest)
    kept_found = found.copy()
    descend(a, found, metric, levels.nearest, 2)
    for now, before in ((h, kept_h), (a, kept_a), (metric.matrix, kept[0]), (metric.factor, kept[1])):
        np.testing.assert_array_equal(now, before)
    np.testing.assert_array_equal(found, kept_found)


def test_the_factor_is_the_lower_cholesky_factor() -> None:
    """H = L L^T with L lower triangular, in the order of rising diagonals."""
    h = moments(12, groups=2)
    metric = make_metric(h, DAMPING)
    for g in range(2):
        order = metric.order[g]
        sorted_ = damped(h[g])[np.ix_(order, order)]
        assert (np.diff(np.diag(h[g])[order]) >= 0).all()
        np.testing.assert_allclose(metric.matrix[g], sorted_, rtol=1e-5)
        lower = metric.factor[g].astype(np.float64)
        assert not np.triu(lower, 1).any()
        np.testing.assert_allclose(lower @ lower.T, sorted_, rtol=1e-4, atol=1e-5)


def test_inputs_that_always_agree_need_no_more_damping() -> None:
    """Two equal inputs make H singular; the damping asked for mends that."""
    h = moments(10)
    h[0, 3], h[0, :, 3] = h[0, 4], h[0, :, 4]
    h[0, 3, 3] = h[0, 4, 4]
    assert make_metric(h, DAMPING).damping == DAMPING


def test_where_the_factor_fails_the_damping_grows() -> None:
    """Centred moments can have eigenvalues below 0 by rounding; ten times the damping, until it works, is reported."""
    h = moments(10)
    values, vectors = np.linalg.eigh(h[0])
    values[0] = -0.05 * np.diag(h[0]).mean()
    metric = make_metric(np.asarray(vectors * values @ vectors.T)[None], 0.001)
    assert metric.damping == pytest.approx(0.1)
    assert np.isfinite(metric.factor).all()


@pytest.mark.parametrize("h", [np.zeros((1, 6, 6)), np.zeros((1, 1, 1))], ids=["six", "one"])
def test_inputs_that_are_always_0_are_no_error(h: Array) -> None:
    """A dead map in front; nothing can be said about its weights, and any levels do."""
    metric = make_metric(h, DAMPING)
    a, levels = aims(len(h[0])), grid()
    found, error = compensate(a, metric, levels.nearest)
    assert np.isfinite(found).all()
    assert np.isfinite(error).all()
    assert np.isfinite(descend(a, found, metric, levels.nearest, 2)).all()


def test_some_dead_inputs_do_not_disturb_the_others() -> None:
    h, a, levels = moments(10), aims(10), grid()
    h[0, 6:], h[0, :, 6:] = 0, 0
    found, _ = compensate(a, make_metric(h, DAMPING), levels.nearest)
    live, _ = compensate(a[:, :, :6], make_metric(h[:, :6, :6], DAMPING * 0.6), levels.nearest)
    np.testing.assert_allclose(found[:, :, :6], live, atol=1e-6)
    for j in range(6, 10):
        np.testing.assert_allclose(found[:, :, j], levels.nearest(a[:, :, j]))


@pytest.mark.parametrize("seed", range(5))
def test_inputs_that_never_vary_are_no_error(seed: int) -> None:
    """Behind a layer that is pruned away, centred moments are nothing but rounding errors, below 0 as well as above."""
    noise = np.random.default_rng(seed).standard_normal((2, 12, 12)) * 1e-9
    h, a, levels = noise + noise.swapaxes(1, 2), aims(12, groups=2), grid(groups=2)
    metric = make_metric(h, DAMPING)
    found, error = compensate(a, metric, levels.nearest)
    assert np.isfinite(found).all()
    assert np.isfinite(error).all()
    assert (error < 1e-6).all()
    assert np.abs(best_aim(a, h, a @ noise, metric.damping)).max() < 100


def test_a_matrix_that_is_no_moment_is_no_endless_loop() -> None:
    assert make_metric(-np.eye(3)[None], DAMPING).damping == pytest.approx(10)


def test_the_best_aim_is_the_least_squares_solution() -> None:
    """Weights that give on x~ what w gives on x, [rows of inputs] x [weights]."""
    random = np.random.default_rng(0)
    x = random.standard_normal((2, 300, 8))
    seen = x + 0.3 * random.standard_normal(x.shape)
    w = aims(8, groups=2).astype(np.float64)
    second, cross = (np.einsum("grn,grm->gnm", left, seen) / 300 for left in (seen, x))
    found = best_aim(w, second, w @ cross, 0.0)
    for g in range(2):
        solution = np.linalg.lstsq(seen[g], x[g] @ w[g].T, rcond=None)[0].T
        np.testing.assert_allclose(found[g], solution, atol=1e-9)
    np.testing.assert_allclose(best_aim(w, second, w @ second, DAMPING), w, atol=1e-9)
    # Ever more damping leaves ever more of w as it is.
    np.testing.assert_allclose(best_aim(w, second, w @ cross, 1e9), w, atol=1e-6)


def test_the_best_factor_is_the_least_squares_one() -> None:
    h, a, levels = moments(20, groups=2), aims(20, groups=2), grid(groups=2)
    metric = make_metric(h, DAMPING)
    found = compensate(a, metric, levels.nearest)[0] * np.float32(1.3)
    above, below = best_factor(a, found, metric)
    best = 1 + above / below
    error = squared_error(a, found * best[:, :, None], metric)
    for other in (0.99, 1.01):
        assert (squared_error(a, found * (best * other)[:, :, None], metric) > error).all()


def test_blocks_are_only_a_matter_of_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    h, a, levels = moments(30), aims(30), grid()
    metric = make_metric(h, DAMPING)

    def run(metric: Metric) -> tuple[Array, Array]:
        start = compensate(a, metric, levels.nearest)[0]
        return start, descend(a, start, metric, levels.nearest, 2)

    whole = run(metric)
    monkeypatch.setattr(module, "_BLOCK", 7)
    for one, other in zip(whole, run(metric), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
