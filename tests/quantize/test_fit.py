"""Fitted channels: grids of every width, never worse than rounding to nearest, near the best there is."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_cbq.model import Array
from onnx_cbq.quantize import fit as module
from onnx_cbq.quantize import moments
from onnx_cbq.quantize.compensate import Box, Rounding, squared_error
from onnx_cbq.quantize.fit import fit
from onnx_cbq.quantize.grid import quantize_rows
from onnx_cbq.quantize.moments import Moments
from onnx_cbq.quantize.problem import Problem, make_problem
from onnx_cbq.quantize.settings import RoundingConfig
from onnx_cbq.records import Layer, WeightRules
from onnx_cbq.records.grids import fits_bits, largest_code

CONFIG = RoundingConfig()
SIZE = 24


def inputs(size: int = SIZE, *, groups: int = 1, seed: int = 0, noise: float = 0.0) -> Moments:
    """Moments of correlated rows; with `noise`, x~ differs from x."""
    random = np.random.default_rng(seed)
    mixed = random.standard_normal((groups, 6 * size, size)) @ random.standard_normal((groups, size, size))
    seen = mixed + noise * random.standard_normal(mixed.shape)
    second = seen.swapaxes(1, 2) @ seen / mixed.shape[1]
    cross = mixed.swapaxes(1, 2) @ seen / mixed.shape[1] if noise else second
    return Moments((second,), (cross if noise else second,), (), mixed.shape[1])


def weights(rows: int, size: int = SIZE, seed: int = 1) -> Array:
    random = np.random.default_rng(seed)
    return (random.standard_normal((rows, size)) * random.uniform(0.01, 10, (rows, 1))).astype(np.float32)


def error_of(problem: Problem, values: Array) -> Array:
    """The error of quantized rows [channels, n] in a metric of one part, [channels]."""
    return np.asarray(squared_error(problem.aim, values.reshape(problem.aim.shape), problem.metrics[0])).reshape(-1)


@pytest.mark.parametrize("bits", range(9))
def test_codes_of_every_width_fit_it(bits: int) -> None:
    problem = make_problem(weights(20), inputs(), CONFIG)
    found = fit(problem, np.full(20, bits, np.int8), CONFIG).channels
    assert [part.dtype.name for part in (found.codes, found.scale, found.bits)] == ["int8", "float32", "int8"]
    assert all(fits_bits(codes, bits) for codes in found.codes)
    assert (found.scale > 0).all()
    np.testing.assert_array_equal(found.bits, bits)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=12), st.integers(0, 10**6), st.sampled_from([0.0, 0.5]))
def test_codes_of_any_mix_of_widths_fit_them(bits: list[int], seed: int, noise: float) -> None:
    rows = weights(len(bits), 9, seed)
    problem = make_problem(rows, inputs(9, seed=seed, noise=noise), CONFIG)
    found = fit(problem, np.array(bits, np.int8), CONFIG)
    for codes, width in zip(found.channels.codes, found.channels.bits, strict=True):
        assert fits_bits(codes, int(width))
    np.testing.assert_array_equal(found.channels.bits, bits)
    np.testing.assert_allclose(found.error, error_of(problem, found.channels.values), rtol=1e-2, atol=1e-9)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [24, 288])
def test_choices_that_did_best_on_some_channels_do_for_all_long_ones(
    monkeypatch: pytest.MonkeyPatch, size: int, bits: int
) -> None:
    """Tables of wide layers would take minutes if every channel tried all grids and scales."""
    rows = weights(100, size)
    problem, widths = make_problem(rows, inputs(size), CONFIG), np.full(100, bits, np.int8)
    best = fit(problem, widths, replace(CONFIG, refits=0)).error
    tried: list[int] = []
    compensate = Problem.compensate

    def counted(self: Problem, rounding: Rounding, box: Box | None = None) -> tuple[Array, Array]:
        tried.append(self.aim.shape[1])
        return compensate(self, rounding, box)

    monkeypatch.setattr(Problem, "compensate", counted)
    found = fit(problem, widths, replace(CONFIG, refits=0, candidates=3)).error
    if size < module._LONG:
        np.testing.assert_array_equal(found, best)
    else:
        assert tried[-1] == 3 * 100
        assert (found >= best * (1 - 1e-6)).all()
        assert found.sum() < 1.02 * best.sum()


def test_a_mix_of_widths_is_no_worse_than_each_alone() -> None:
    """Few widths try many scales; rows of other widths in the same layer must not take that from them."""
    rows = weights(9)
    problem = make_problem(rows, inputs(), CONFIG)
    mixed = fit(problem, np.arange(9, dtype=np.int8), CONFIG).error
    for width in range(9):
        alone = fit(problem, np.full(9, width, np.int8), CONFIG).error
        assert mixed[width] <= alone[width] * 1.001


@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("bits", range(9))
def test_never_worse_than_rounding_to_nearest(bits: int, noise: float) -> None:
    problem = make_problem(weights(30), inputs(noise=noise), CONFIG)
    widths = np.full(30, bits, np.int8)
    nearest = quantize_rows(problem.aim[0], widths).values
    found = fit(problem, widths, CONFIG).error
    assert (found <= error_of(problem, nearest) * (1 + 1e-4)).all()
    if 0 < bits < 8:
        assert found.sum() < 0.6 * error_of(problem, nearest).sum()


def best_error(aim: Array, h: Array, bits: int) -> float:
    """The least error of any codes on either grid with the scale that is best for them."""
    grids = [range(-largest_code(bits, mid_rise=False), largest_code(bits, mid_rise=False) + 1)] if bits > 1 else []
    if bits < 8:
        grids.append(range(-largest_code(bits, mid_rise=True), largest_code(bits, mid_rise=True) + 1, 2))
    least = float(aim @ h @ aim)
    for levels in grids:
        codes = np.array(list(itertools.product(levels, repeat=len(aim))), np.float64)
        weighted = codes @ h
        above, below = weighted @ aim, (weighted * codes).sum(axis=1)
        useful = (above > 0) & (below > 0)
        least = min(least, float(aim @ h @ aim - (above[useful] ** 2 / below[useful]).max(initial=0.0)))
    return least


@pytest.mark.parametrize(("bits", "size"), [(1, 8), (2, 6), (3, 4)])
def test_tiny_rows_come_near_the_best_of_all(bits: int, size: int) -> None:
    rows = weights(40, size)
    given_moments = inputs(size)
    problem = make_problem(rows, given_moments, CONFIG)
    h = given_moments.second[0][0]
    h = h + CONFIG.damping * np.diag(h).mean() * np.eye(size)
    least = np.array([best_error(row.astype(np.float64), h, bits) for row in rows])
    ratios = fit(problem, np.full(40, bits, np.int8), CONFIG).error / least
    assert ratios.min() > 1 - 1e-3
    assert np.median(ratios) < 1.15
    nearest = error_of(problem, quantize_rows(rows, np.full(40, bits, np.int8)).values)
    assert np.median(nearest / least) > np.median(ratios) + 0.3


@pytest.mark.parametrize("bits", range(9))
def test_a_row_of_zeros_stays_zero(bits: int) -> None:
    """A dead filter. One bit has no level at 0, so it then takes none, as rounding to nearest does."""
    rows = weights(3)
    rows[1] = 0
    found = fit(make_problem(rows, inputs(), CONFIG), np.full(3, bits, np.int8), CONFIG).channels
    assert not found.values[1].any()
    assert found.bits.tolist() == [bits, 0 if bits == 1 else bits, bits]
    assert all(fits_bits(codes, int(width)) for codes, width in zip(found.codes, found.bits, strict=True))


@pytest.mark.parametrize("factor", [1e-36, 1e-28, 1e-10, 1e10])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_tiny_and_huge_weights_give_finite_values(bits: int, factor: float) -> None:
    """Folded batch norms leave such filters beside ordinary ones."""
    rows = weights(4)
    rows[2] *= factor
    with np.errstate(under="ignore"):
        found = fit(make_problem(rows, inputs(), CONFIG), np.full(4, bits, np.int8), CONFIG).channels
    assert np.isfinite(found.values).all()
    assert (found.scale > 0).all()
    assert all(fits_bits(codes, int(width)) for codes, width in zip(found.codes, found.bits, strict=True))


def test_groups_are_fitted_one_by_one() -> None:
    rows, given_moments = weights(12), inputs(groups=3)
    bits = (1 + np.arange(12) % 4).astype(np.int8)
    found = fit(make_problem(rows, given_moments, CONFIG), bits, CONFIG)
    for g in range(3):
        part = slice(4 * g, 4 * g + 4)
        second = (given_moments.second[0][g : g + 1],)
        alone = fit(make_problem(rows[part], Moments(second, second, (), 9), CONFIG), bits[part], CONFIG)
        np.testing.assert_allclose(alone.error, found.error[part], rtol=1e-3)
        np.testing.assert_array_equal(alone.channels.codes, found.channels.codes[part])


@pytest.mark.parametrize("groups", [1, 2])
def test_rows_in_several_chunks_are_the_same(monkeypatch: pytest.MonkeyPatch, groups: int) -> None:
    """Rows are independent; memory decides how many are rounded at once."""
    problem = make_problem(weights(12), inputs(groups=groups), CONFIG)
    bits = np.full(12, 3, np.int8)
    whole = fit(problem, bits, CONFIG)
    monkeypatch.setattr(module, "_CHUNK_BYTES", 4 * groups * SIZE * 2 * 5 * 2)
    chunked = fit(problem, bits, CONFIG)
    np.testing.assert_array_equal(chunked.channels.codes, whole.channels.codes)
    np.testing.assert_allclose(chunked.error, whole.error, rtol=1e-5)


def test_a_layer_in_parts_adds_the_errors_of_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "WIDEST", 10)
    rows, whole = weights(8), inputs().second[0]
    slices = moments.part_slices(SIZE)
    assert len(slices) == 3
    second = tuple(whole[:, s, s] for s in slices)
    problem = make_problem(rows, Moments(second, second, (), 9), CONFIG)
    bits = np.full(8, 3, np.int8)
    found = fit(problem, bits, CONFIG)
    assert all(fits_bits(codes, 3) for codes in found.channels.codes)
    total = np.zeros(8)
    for s, h in zip(slices, second, strict=True):
        difference = rows[:, s].astype(np.float64) - found.channels.values[:, s]
        matrix = h[0] + CONFIG.damping * np.diag(h[0]).mean() * np.eye(len(h[0]))
        total += np.einsum("rn,nm,rm->r", difference, matrix, difference)
    np.testing.assert_allclose(found.error, total, rtol=1e-3)


def test_the_aim_repairs_what_the_inputs_have_lost() -> None:
    """Inputs of another size: weights of twice the size, whatever the width."""
    same = inputs()
    halved = Moments((same.second[0] / 4,), (same.second[0] / 2,), (), 9)
    rows = weights(5)
    aim = make_problem(rows, halved, RoundingConfig(damping=1e-9)).aim[0]
    np.testing.assert_allclose(aim, 2 * rows, rtol=1e-3, atol=1e-3)


def test_the_order_of_the_file_can_be_kept() -> None:
    rows = weights(5)
    problem = make_problem(rows, inputs(), RoundingConfig(order="file"))
    np.testing.assert_array_equal(problem.metrics[0].order[0][::-1], np.arange(SIZE))
    sorted_ = make_problem(rows, inputs(), CONFIG).metrics[0].order[0]
    assert not np.array_equal(sorted_[::-1], np.arange(SIZE))


def test_arguments_are_not_written_to() -> None:
    rows, given_moments, bits = weights(6), inputs(noise=0.5), np.array([0, 1, 2, 3, 4, 8], np.int8)
    kept = rows.copy(), given_moments.second[0].copy(), given_moments.cross[0].copy(), bits.copy()
    problem = make_problem(rows, given_moments, CONFIG)
    aim = problem.aim.copy()
    fit(problem, bits, CONFIG)
    for now, before in zip((rows, given_moments.second[0], given_moments.cross[0], bits), kept, strict=True):
        np.testing.assert_array_equal(now, before)
    np.testing.assert_array_equal(problem.aim, aim)


@pytest.mark.parametrize("bits", range(9))
@pytest.mark.parametrize("top", [0, 255], ids=["free", "lanes"])
def test_positive_weights_get_no_code_below_zero(bits: int, top: int) -> None:
    """Weights that make up for others' errors would, and a logarithm of their sum is no number."""
    rows = np.maximum(weights(20), 0)
    layer = Layer("l", "Gemm", "w", (20, SIZE), 0, 1, (), 1, rules=WeightRules(top=top))
    free = fit(make_problem(rows, inputs(noise=0.5), CONFIG, layer), np.full(20, bits, np.int8), CONFIG)
    problem = make_problem(rows, inputs(noise=0.5), CONFIG, replace(layer, positive=True))
    found = fit(problem, np.full(20, bits, np.int8), CONFIG)
    assert found.channels.codes.min() >= 0
    assert (free.channels.codes.min() < 0) == (bits > 0)
    assert all(fits_bits(codes, bits) for codes in found.channels.codes)
    nearest = quantize_rows(problem.aim[0], np.full(20, bits, np.int8), problem.rules, problem.lanes)
    assert (found.error <= error_of(problem, nearest.values) * 1.01 + 1e-9).all()
