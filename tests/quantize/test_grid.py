"""Grids of every width, the codes that they allow, and the best scale by exhaustive search."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_cbq.model import Array
from onnx_cbq.quantize.grid import quantize_rows, round_to_grid
from onnx_cbq.records.grids import fits_bits, largest_code

WIDTHS = range(9)
GRIDS = [(bits, mid_rise) for bits in range(1, 9) for mid_rise in (False, True) if bits != (8 if mid_rise else 1)]


def levels(bits: int, *, mid_rise: bool) -> list[int]:
    """The codes of a grid, counted off: 2^b - 1 around zero, or 2^b odd ones."""
    if mid_rise:
        return list(range(-(2**bits) + 1, 2**bits, 2))
    return list(range(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1)))


def grids(bits: int) -> list[set[int]]:
    """All grids of a width; 0 bits know only the code 0."""
    return [{0}] if bits == 0 else [set(levels(b, mid_rise=mid_rise)) for b, mid_rise in GRIDS if b == bits]


def quantize_row(row: Array, bits: int) -> tuple[Array, float, float]:
    """Codes, scale and squared error of one row."""
    channels = quantize_rows(row[None].astype(np.float32), np.array([bits], np.int8))
    return channels.codes[0], float(channels.scale[0]), float(((channels.values[0] - row) ** 2).sum())


def best_error(row: Array, codes: list[int]) -> float:
    """The least squared error of any scale.

    Between two scales at which a weight changes its code all codes stay; there the best scale is <w, c> / <c, c>.
    """
    middles = np.array([(a + b) / 2 for a, b in itertools.pairwise(codes) if a + b > 0])
    changes = np.unique(np.abs(row[:, None]) / middles)
    scales = np.concatenate([changes[:1] / 2, (changes[1:] + changes[:-1]) / 2, changes[-1:] * 2])
    lowest = float((row**2).sum())
    for scale in scales if scales.size else [1.0]:
        chosen = np.array(codes)[np.abs(row[:, None] / scale - codes).argmin(axis=1)]
        if chosen.any():
            best = row @ chosen / (chosen @ chosen)
            lowest = min(lowest, float(((row - best * chosen) ** 2).sum()))
    return lowest


@pytest.mark.parametrize(("bits", "mid_rise"), GRIDS)
def test_rounding_finds_the_nearest_level(bits: int, mid_rise: bool) -> None:
    """A level too many or too few at either end would be a code outside the grid, or a weight clipped too early."""
    values = np.linspace(-300, 300, 4801, dtype=np.float32) + np.float32(0.01)  # no ties
    codes = round_to_grid(values[None] * np.float32(0.5), np.array([0.5], np.float32), bits, mid_rise=mid_rise)[0]
    expected = np.array(levels(bits, mid_rise=mid_rise))
    np.testing.assert_array_equal(codes, expected[np.abs(values[:, None] - expected).argmin(axis=1)])
    assert codes.dtype == np.int8
    assert largest_code(bits, mid_rise=mid_rise) == expected.max()


@pytest.mark.parametrize("bits", WIDTHS)
def test_quantized_rows_lie_on_one_grid_of_their_width(bits: int) -> None:
    random = np.random.default_rng(bits)
    rows = (random.standard_normal((50, 20)) * random.uniform(1e-4, 1e4, (50, 1))).astype(np.float32)
    channels = quantize_rows(rows, np.full(50, bits, np.int8))
    for codes in channels.codes:
        assert any(set(codes.tolist()) <= grid for grid in grids(bits))
    assert (channels.scale > 0).all()
    assert channels.scale.dtype == np.float32
    np.testing.assert_array_equal(channels.bits, bits)


ROWS: dict[str, Callable[[np.random.Generator, tuple[int, int]], Array]] = {
    "normal": lambda random, shape: random.standard_normal(shape),
    "heavy-tailed": lambda random, shape: random.standard_t(2, shape),
    "one-sided": lambda random, shape: random.exponential(size=shape),
}


@pytest.mark.parametrize("bits", range(1, 5))
@pytest.mark.parametrize("kind", ROWS)
def test_few_weights_get_the_best_of_all_scales_and_grids(bits: int, kind: str) -> None:
    """Most rows of a few weights get the very best scale, and none one that is much worse.

    A row of 12 weights has error minima narrower than the steps that scales are tried in, so not all can be found.
    """
    rows = ROWS[kind](np.random.default_rng(bits), (20, 12))
    least = [min(best_error(row, sorted(grid)) for grid in grids(bits)) for row in rows]
    ratios = np.array([quantize_row(row, bits)[2] for row in rows]) / least
    assert np.median(ratios) < 1 + 1e-6
    assert ratios.max() < 1.5


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("kind", ROWS)
def test_many_weights_get_nearly_the_best_scale(bits: int, kind: str) -> None:
    """The error of many weights grows with the square of the scale, and scales are tried in steps of 2.5 %."""
    rows = ROWS[kind](np.random.default_rng(bits), (3, 500))
    for row in rows:
        least = np.inf
        for mid_rise in [m for b, m in GRIDS if b == bits]:
            codes = np.array(levels(bits, mid_rise=mid_rise))
            for share in np.linspace(0.03, 1.05, 1000):
                scale = share * np.abs(row).max() / codes.max()
                nearest = codes[np.searchsorted((codes[1:] + codes[:-1]) / 2, row / scale)]
                least = min(least, float(((row - nearest * scale) ** 2).sum()))
        assert quantize_row(row, bits)[2] < 1.06 * least


@pytest.mark.parametrize("bits", WIDTHS)
def test_rows_of_zeros_stay_zero(bits: int) -> None:
    """A dead filter has them. One bit has no zero, and once made a constant of 0.15 out of it."""
    rows = np.array([[0.0] * 4, [0.5, -1.0, 0.25, 1.0]], np.float32)
    channels = quantize_rows(rows, np.full(2, bits, np.int8))
    assert not channels.values[0].any()
    assert (channels.scale > 0).all()
    assert channels.bits.tolist() == [0 if bits == 1 else bits, bits]


@pytest.mark.parametrize("factor", [1e-44, 1e-38, 1e-28, 1e28])
@pytest.mark.parametrize("bits", WIDTHS)
def test_tiny_and_huge_weights_give_finite_values(bits: int, factor: float) -> None:
    """Folded batch norms leave such filters; a scale of 0 or infinity would spoil the whole layer."""
    rows = (np.random.default_rng(0).standard_normal((4, 8)) * factor).astype(np.float32)
    with np.errstate(over="ignore", under="ignore"):
        channels = quantize_rows(rows, np.full(4, bits, np.int8))
        values = channels.values
    assert (channels.scale > 0).all()
    assert np.isfinite(values).all()
    assert np.abs(values).max() <= np.abs(rows).max() * (1 + 1e-6)


def test_each_row_gets_its_own_width() -> None:
    """Rows of one width are rounded together; each must land where it came from, as if it were alone."""
    rows = np.random.default_rng(0).standard_normal((18, 30)).astype(np.float32)
    before = rows.copy()
    bits = np.random.default_rng(1).permutation(np.arange(18) % 9).astype(np.int8)
    channels = quantize_rows(rows, bits)
    np.testing.assert_array_equal(channels.bits, bits)
    for row, width, codes, scale in zip(rows, bits, channels.codes, channels.scale, strict=True):
        alone = quantize_rows(row[None], width[None])
        np.testing.assert_array_equal(alone.codes[0], codes)
        assert alone.scale[0] == scale
    np.testing.assert_array_equal(rows, before)


@pytest.mark.parametrize("bits", WIDTHS)
def test_every_single_code_fits_just_where_a_grid_has_it(bits: int) -> None:
    for code in range(-128, 128):
        assert fits_bits(np.array([code], np.int8), bits) is any(code in grid for grid in grids(bits)), code


@given(st.lists(st.integers(-128, 127), max_size=6), st.sampled_from(WIDTHS))
def test_codes_fit_just_where_one_grid_has_them_all(codes: list[int], bits: int) -> None:
    """A mix of both grids, such as 0 among odd codes beyond the mid-tread grid, fits neither."""
    assert fits_bits(np.array(codes, np.int8), bits) is any(set(codes) <= grid for grid in grids(bits))


@pytest.mark.parametrize("bits", range(2, 8))
def test_a_mix_of_two_grids_fits_neither(bits: int) -> None:
    on_rise, on_tread = levels(bits, mid_rise=True)[-1], levels(bits, mid_rise=False)[-1] - 1
    assert fits_bits(np.array([on_rise], np.int8), bits)
    assert fits_bits(np.array([on_tread], np.int8), bits)
    assert not fits_bits(np.array([on_rise, on_tread], np.int8), bits)
