"""Schemes and what is said about their grids, against formulas applied to one weight at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from onnx_cbq.jobs.data_free import DataFreeConfig
from onnx_cbq.model import Array
from onnx_cbq.quantize.grid import Channels, quantize_rows
from onnx_cbq.quantize.schemes import (
    LEAST_BITS,
    LOG_LEVELS,
    SCHEMES,
    GridStatistics,
    grid_statistics,
    quantize_scheme,
    signal_to_noise,
    statistics_of,
)

WIDTHS = range(2, 9)
# Scales are kept in float32, and so are the values; half a unit in the last place of each.
TOLERANCE = 2e-7
ROWS: dict[str, Callable[[np.random.Generator], Array]] = {
    "normal": lambda random: random.standard_normal((6, 40)),
    "positive": lambda random: random.uniform(1, 2, (4, 40)),
    "negative": lambda random: -random.exponential(size=(4, 40)),
    "tiny": lambda random: 1e-30 * random.standard_normal((3, 40)),
    "one-weight": lambda random: random.standard_normal((5, 1)),
}


def symmetric_levels(row: list[float], bits: int) -> list[float]:
    top = 2 ** (bits - 1) - 1
    scale = max(map(abs, row)) / top
    return [scale * code for code in range(-top, top + 1)]


def power_of_two_levels(row: list[float], bits: int) -> list[float]:
    top = 2 ** (bits - 1) - 1
    scale = 2.0 ** math.ceil(math.log2(max(map(abs, row)) / top))
    return [scale * code for code in range(-top, top + 1)]


def asymmetric_levels(row: list[float], bits: int) -> list[float]:
    low, high = min(*row, 0.0), max(*row, 0.0)
    scale = (high - low) / (2**bits - 1)
    zero = round(-low / scale)
    return [scale * (code - zero) for code in range(2**bits)]


def log_levels(row: list[float], bits: int) -> list[float]:
    largest = max(map(abs, row))
    powers = [largest * 2.0**-k for k in range(2 ** (bits - 1) - 1)]
    return [*(-power for power in powers), 0.0, *powers]


LEVELS: dict[str, Callable[[list[float], int], list[float]]] = {
    "symmetric": symmetric_levels,
    "power-of-two": power_of_two_levels,
    "asymmetric": asymmetric_levels,
    "log": log_levels,
}


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("scheme", LEVELS)
def test_every_weight_gets_the_nearest_level_of_its_scheme(scheme: str, bits: int, kind: str) -> None:
    """A level too many or too few, or a grid that is off by one, gives a larger distance for some weight."""
    rows = ROWS[kind](np.random.default_rng(bits)).astype(np.float32)
    values = quantize_scheme(rows, bits, scheme).values
    assert values.dtype == np.float32
    for row, found in zip(rows.tolist(), values.tolist(), strict=True):
        levels, slack = LEVELS[scheme](row, bits), TOLERANCE * max(map(abs, row)) * 2
        for weight, value in zip(row, found, strict=True):
            assert min(abs(level - value) for level in levels) <= slack
            assert abs(value - weight) <= min(abs(level - weight) for level in levels) + slack


@pytest.mark.parametrize("bits", WIDTHS)
def test_mse_is_the_grid_search_of_the_other_methods(bits: int) -> None:
    """That search is held against exhaustive ones in its own tests."""
    rows = np.random.default_rng(0).standard_normal((5, 30)).astype(np.float32)
    expected = quantize_rows(rows, np.full(5, bits))
    found = quantize_scheme(rows, bits, "mse")
    np.testing.assert_array_equal(found.values, expected.values)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("scheme", ["symmetric", "power-of-two"])
def test_mse_has_the_least_error_of_the_schemes_of_equal_steps(scheme: str, bits: int) -> None:
    """It may choose their grid and their scale, up to the step in which it tries scales."""
    rows = np.random.default_rng(bits).standard_normal((20, 60)).astype(np.float32)
    errors = [
        np.square(quantize_scheme(rows, bits, s).values - rows, dtype=np.float64).sum(axis=1) for s in ("mse", scheme)
    ]
    assert (errors[0] <= 1.06 * errors[1]).all()
    assert errors[0].sum() < errors[1].sum()


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_codes_keep_to_their_width_and_type(scheme: str, bits: int) -> None:
    """At most 2^n of them, in int8, where an asymmetric grid of 8 bits just fits; positions in a table are uint8."""
    random = np.random.default_rng(bits)
    rows = random.standard_normal((6, 2000)) * random.uniform(1e-3, 1e3, (6, 1)) + random.uniform(-1, 1, (6, 1))
    found = quantize_scheme(rows, bits, scheme)
    assert found.codes.dtype == (np.uint8 if scheme == "log" else np.int8)
    assert found.scale.dtype == np.float32
    assert (found.scale > 0).all()
    for codes in found.codes:
        assert len(set(codes.tolist())) <= 2**bits
    if found.grid.zero_point is not None:
        assert found.grid.zero_point.dtype == np.int8
        assert (found.codes.max(axis=1) - found.codes.min(axis=1) < 2**bits).all()
    assert found.grid.holds(found.codes)
    assert all(found.grid.fits(codes, bits) for codes in found.codes)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_rows_of_zeros_stay_zero(scheme: str, bits: int) -> None:
    """A dead filter has them; a scale of 0 would give NaN."""
    rows = np.zeros((2, 8), np.float32)
    rows[1] = np.linspace(0, 1, 8)
    found = quantize_scheme(rows, bits, scheme)
    assert (found.scale > 0).all()
    assert not found.values[0].any()
    assert np.isfinite(found.values).all()


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("scheme", [s for s in SCHEMES if s != "mse"])
@pytest.mark.parametrize("side", [1, -1])
def test_one_sided_rows_keep_zero_at_zero(scheme: str, bits: int, side: int) -> None:
    """Pruned weights must stay pruned; the paper's own asymmetric grid from min to max has no exact zero."""
    rows = side * np.linspace(3, 4, 30, dtype=np.float32)[None]
    rows[0, 7] = 0
    assert quantize_scheme(rows, bits, scheme).values[0, 7] == 0


def test_an_asymmetric_grid_spends_no_codes_on_the_side_without_weights() -> None:
    rows = np.random.default_rng(0).uniform(0, 1, (1, 500)).astype(np.float32)
    errors = {s: np.abs(quantize_scheme(rows, 4, s).values - rows).max() for s in ("symmetric", "asymmetric")}
    assert errors["asymmetric"] <= 0.5 / 15 * 1.001
    assert errors["symmetric"] > 0.9 * 0.5 / 7


def test_the_log_table_holds_every_power_once_and_zero() -> None:
    np.testing.assert_array_equal(LOG_LEVELS[1::2], [2.0**-k for k in range(127)])
    np.testing.assert_array_equal(LOG_LEVELS[2::2], -LOG_LEVELS[1::2])
    assert LOG_LEVELS[0] == 0
    assert LOG_LEVELS.dtype == np.float32


def test_rows_are_quantized_one_by_one_and_not_overwritten() -> None:
    rows = np.random.default_rng(0).standard_normal((5, 12)).astype(np.float32) * np.logspace(-3, 3, 5)[:, None]
    before = rows.copy()
    for scheme in SCHEMES:
        together = quantize_scheme(rows, 3, scheme).values
        alone = np.concatenate([quantize_scheme(row[None], 3, scheme).values for row in rows])
        np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(rows, before)


def counted(rows: Array, quantized: Channels, bits: int) -> GridStatistics:
    """What the record says, by loops over the weights."""
    ranges, used, zeros = [], [], 0
    signal = noise = 0.0
    for row, codes, values in zip(rows.tolist(), quantized.codes.tolist(), quantized.values.tolist(), strict=True):
        ranges.append(max(values) - min(values))
        used.append(len(set(codes)) / 2**bits)
        zeros += values.count(0.0)
        signal += sum(weight**2 for weight in row)
        noise += sum((weight - value) ** 2 for weight, value in zip(row, values, strict=True))
    return GridStatistics(max(ranges), zeros / rows.size, sum(used) / len(used), 10 * math.log10(signal / noise))


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_statistics_are_those_that_counting_gives(scheme: str, bits: int) -> None:
    rows = np.random.default_rng(bits).standard_normal((4, 300)).astype(np.float32)
    rows[:, ::9] = 0
    quantized = quantize_scheme(rows, bits, scheme)
    found, expected = grid_statistics(rows, quantized, bits), counted(rows, quantized, bits)
    assert found.range == pytest.approx(expected.range, rel=1e-6)
    assert found.zero_share == pytest.approx(expected.zero_share)
    assert found.occupancy == pytest.approx(expected.occupancy)
    # The difference is taken in float32.
    assert found.snr_db == pytest.approx(expected.snr_db, abs=1e-3)


def test_the_ratio_of_signal_to_noise_in_decibels() -> None:
    """A tenth of the amplitude as noise is 20 dB; without noise or signal there is no ratio, and no warning."""
    assert signal_to_noise(9, 0.09) == pytest.approx(20)
    assert signal_to_noise(9, 0) is None
    assert signal_to_noise(0, 9) is None


def test_statistics_of_many_rows_are_those_of_the_rows() -> None:
    """They are taken from a few rows at a time, of several widths: a block or a width that counts as another shows."""
    random = np.random.default_rng(3)
    rows = random.standard_normal((90, 3000)).astype(np.float32) * random.lognormal(size=(90, 1)).astype(np.float32)
    parts = [(part, quantize_scheme(part, bits, "asymmetric"), bits) for part, bits in ((rows[:70], 3), (rows[70:], 6))]
    found, (three, six) = statistics_of(parts), (counted(*part) for part in parts)
    values = np.concatenate([quantized.values for _, quantized, _ in parts])
    assert found.range == pytest.approx(max(three.range, six.range), rel=1e-6)
    assert found.zero_share == pytest.approx((values == 0).mean())
    assert found.occupancy == pytest.approx((70 * three.occupancy + 20 * six.occupancy) / 90)
    noise = np.square(rows - values, dtype=np.float64).sum()
    assert found.snr_db == pytest.approx(10 * math.log10(np.square(rows, dtype=np.float64).sum() / noise), abs=1e-3)


def test_the_schemes_are_those_that_the_settings_know() -> None:
    assert set(SCHEMES) == set(DataFreeConfig.SCHEMES)
    assert DataFreeConfig(LEAST_BITS).bits == WIDTHS[0]
