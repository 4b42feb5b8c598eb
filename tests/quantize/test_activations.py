"""Streaming histograms against numpy's, and ranges against exhaustive search."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_cbq.model import Array
from onnx_cbq.quantize import activations
from onnx_cbq.quantize.activations import Histogram, Response, choose_grid, join_grids
from onnx_cbq.records import ActivationGrid, ActivationRules

HALF = 4096


def histogram_of(*parts: Array) -> Histogram:
    histogram = Histogram.empty()
    for part in parts:
        histogram = histogram.add(part)
    return histogram


def assert_counts_like_numpy(histogram: Histogram, values: Array) -> None:
    width = 2.0**histogram.exponent
    edges = np.arange(-HALF, HALF + 1) * width
    np.testing.assert_array_equal(histogram.counts, np.histogram(values.astype(np.float64), edges)[0])
    assert histogram.counts.sum() == values.size
    assert (histogram.low, histogram.high) == (values.min(), values.max())


def assert_same(one: Histogram, other: Histogram) -> None:
    np.testing.assert_array_equal(one.counts, other.counts)
    assert (one.exponent, one.low, one.high) == (other.exponent, other.low, other.high)


def error(values: Array, grid: ActivationGrid) -> float:
    """Mean squared error of `values` on a grid."""
    codes = np.clip(np.rint(values / grid.scale) + grid.zero_point, 0, 2**grid.bits - 1)
    return float(np.mean(((codes - grid.zero_point) * grid.scale - values) ** 2))


def best_error(values: Array, bits: int = 8) -> float:
    """The least of any scale and zero point: scales in steps of 1 %, up to the one that clips nothing."""
    reach = max(values.max() - min(values.min(), 0), 1e-30)
    scales = reach / (2**bits - 1) * np.exp(np.arange(0, np.log(0.1), -0.01))
    zero_points = range(2**bits) if values.min() < 0 else [0]
    return min(error(values, ActivationGrid(float(scale), zero, bits)) for scale in scales for zero in zero_points)


@given(
    # Beside a million, numbers below float32's normal ones count as 0.
    st.lists(st.floats(-1e6, 1e6, width=32, allow_subnormal=False), min_size=2, max_size=60),
    st.lists(st.integers(1, 59), max_size=5),
    st.randoms(use_true_random=False),
)
def test_any_order_and_chunking_counts_like_numpy(values: list[float], cuts: list[int], random: Random) -> None:
    """Calibration reads samples in batches; the range must not depend on how they were cut."""
    array = np.array(values, np.float32)
    shuffled = np.array(random.sample(values, len(values)), np.float32)
    bounds = [0, *sorted({min(cut, len(values)) for cut in cuts}), len(values)]
    chunked = histogram_of(*(shuffled[a:b] for a, b in pairwise(bounds) if a < b))
    assert_counts_like_numpy(chunked, array)
    assert_same(chunked, histogram_of(array))


@pytest.mark.parametrize("factor", [1e-42, 1e-38, 1e-20, 1e-3, 1.0, 1e5, 1e30, 3e38])
def test_values_of_any_size_are_counted_like_numpy(factor: float) -> None:
    """The width of a bin is a power of two far from those of float32 at either end."""
    values = (np.random.default_rng(0).uniform(-1, 1, 1000) * factor).astype(np.float32)
    assert_counts_like_numpy(histogram_of(*np.split(values, 10)), values)


def test_zeros_in_front_cost_no_resolution() -> None:
    """A batch of nothing but zeros, as a dead map gives, says nothing about the width of a bin."""
    values = np.random.default_rng(0).uniform(0, 1e-6, 1000).astype(np.float32)
    histogram = histogram_of(np.zeros(50, np.float32), values)
    assert_counts_like_numpy(histogram, np.concatenate([np.zeros(50, np.float32), values]))
    assert np.count_nonzero(histogram.counts) > 500


def test_powers_of_two_lie_inside() -> None:
    """The largest value on the edge of the last bin is one that the next wider histogram has to hold."""
    assert_counts_like_numpy(histogram_of(np.array([4.0, -4.0], np.float32)), np.array([4.0, -4.0]))


def test_an_array_is_not_written_to_and_nor_is_the_histogram() -> None:
    values = np.array([1.0, 2.0], np.float32)
    before = histogram_of(values)
    counts = before.counts.copy()
    before.add(np.array([100.0], np.float32))
    np.testing.assert_array_equal(before.counts, counts)
    np.testing.assert_array_equal(values, [1.0, 2.0])


def test_of_very_many_values_an_even_part_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large maps would take long; the ends of the range are still those of all values."""
    monkeypatch.setattr(activations, "LARGEST_COUNT", 100)
    values = np.arange(1000, dtype=np.float32)
    histogram = histogram_of(values)
    assert (histogram.low, histogram.high) == (0, 999)
    edges = np.arange(-HALF, HALF + 1) * 2.0**histogram.exponent
    np.testing.assert_array_equal(histogram.counts, np.histogram(values[::10], edges)[0])


def draw(kind: str, size: int = 4000) -> Array:
    random = np.random.default_rng(0)
    z = random.standard_normal(size)
    values = {
        "normal": z,
        "relu": np.maximum(z, 0),
        "heavy-tailed": random.standard_t(3, size),
        "shifted": z + 2,
        "outlier": np.append(random.uniform(0, 1, size), 3.0),
        "silu": 2 * z / (1 + np.exp(-2 * z)),
        "negative": -random.exponential(size=size),
    }
    return np.asarray(values[kind], np.float32)


KINDS = ["normal", "relu", "heavy-tailed", "shifted", "outlier", "silu", "negative"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_range_is_nearly_the_best_of_all(kind: str) -> None:
    values = draw(kind)
    grid = choose_grid(histogram_of(*np.array_split(values, 7)))
    assert error(values, grid) < 1.03 * best_error(values)


@pytest.mark.parametrize("bits", range(2, 8))
@pytest.mark.parametrize("kind", ["normal", "relu", "heavy-tailed", "silu"])
def test_narrow_ranges_are_nearly_the_best_of_all(kind: str, bits: int) -> None:
    """Few levels want to clip far; the ends move one at a time, which few levels make a little uneven."""
    values = draw(kind)
    grid = choose_grid(histogram_of(values), bits)
    assert grid.bits == bits
    assert 0 <= grid.zero_point <= grid.top == 2**bits - 1
    assert error(values, grid) < 1.1 * best_error(values, bits)
    assert error(values, grid) <= error(values, choose_grid(histogram_of(values), bits, "minmax"))


def test_an_end_is_the_best_of_those_that_are_tried() -> None:
    """Errors come from running sums; that must choose as adding up the error of each bin does."""
    values = np.random.default_rng(3).exponential(2.0, 20_000).astype(np.float32)
    histogram = histogram_of(values)
    bins = np.flatnonzero(histogram.counts)
    centres = (bins - HALF + 0.5) * 2.0**histogram.exponent

    def error(scale: float) -> float:
        codes = np.clip(np.rint(centres / scale), 0, 15)
        return float(histogram.counts[bins] @ (codes * scale - centres) ** 2)

    scales = [float(np.float32(share * histogram.high / 15)) for share in np.linspace(0.02, 1.0, 99)]
    assert choose_grid(histogram, 4).scale == min(scales, key=error)


def hard_sigmoid(values: Array) -> Array:
    return np.asarray(np.clip(np.asarray(values, np.float64) / 6 + 0.5, 0, 1))


def hard_swish(values: Array) -> Array:
    return np.asarray(values * hard_sigmoid(values))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("response", [hard_sigmoid, hard_swish])
def test_errors_count_by_what_becomes_of_the_values(response: Response, bits: int) -> None:
    """Half of the codes were spent on the flat sides of gates. Against all ranges, by each value's own error."""
    values = np.random.default_rng(0).normal(-3, 6, 4000).astype(np.float32)

    def error_behind(grid: ActivationGrid) -> float:
        codes = np.clip(np.rint(values / grid.scale) + grid.zero_point, 0, grid.top)
        levels = (codes - grid.zero_point) * grid.scale
        return float(np.mean((response(levels) - response(values)) ** 2))

    def ranged(low: float, high: float) -> ActivationGrid:
        scale = (high - low) / (2**bits - 1)
        return ActivationGrid(scale, round(-low / scale), bits)

    found = error_behind(choose_grid(histogram_of(values), bits, response=response))
    ends = [(low, high) for low in np.linspace(-25, -0.1, 60) for high in np.linspace(0.1, 20, 60)]
    assert found < 1.1 * min(error_behind(ranged(*both)) for both in ends)
    assert found < 0.5 * error_behind(choose_grid(histogram_of(values), bits))


@pytest.mark.parametrize("response", [np.zeros_like, lambda values: np.exp(np.square(values) * 99)])
def test_a_response_that_says_nothing_leaves_a_grid_that_works(response: Response) -> None:
    """A gate that is shut for all samples, and one whose numbers have no finite squares."""
    values = draw("normal")
    assert error(values, choose_grid(histogram_of(values), response=response)) < 1e-2


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_minmax_reaches_all_values(kind: str, bits: int) -> None:
    """To half a step: the zero point is a whole level."""
    values = draw(kind)
    grid = choose_grid(histogram_of(*np.array_split(values, 7)), bits, "minmax")
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    assert grid.scale == pytest.approx((high - low) / grid.top, rel=1e-6)
    assert grid.ends == pytest.approx((low, high), abs=grid.scale * 0.501)


@pytest.mark.parametrize("kind", KINDS)
def test_percentile_cuts_off_one_value_in_twenty_thousand_at_either_end(kind: str) -> None:
    values = draw(kind, 200_000)
    histogram = histogram_of(*np.array_split(values, 7))
    grid = choose_grid(histogram, 8, "percentile")
    # Ten values of 200,000 lie outside at either end; to a value more or less, a bin and half a step.
    order, slack = np.sort(values), 2.0**histogram.exponent + 0.501 * grid.scale
    low, high = np.minimum(order[8:12], 0), np.maximum(order[-12:-8], 0)
    for end, near in zip(grid.ends, (low, high), strict=True):
        assert near.min() - slack <= end <= near.max() + slack


def test_a_percentile_does_not_see_one_outlier() -> None:
    values = np.append(draw("normal", 100_000), np.float32(1000))
    assert choose_grid(histogram_of(values), 8, "percentile").ends[1] < 5
    assert choose_grid(histogram_of(values), 8, "minmax").ends[1] > 990


@pytest.mark.parametrize("criterion", ["mse", "percentile", "minmax"])
@pytest.mark.parametrize("kind", ["zeros", "relu", "negative", "one"])
def test_zero_is_a_level_and_the_scale_is_above_0(kind: str, criterion: str) -> None:
    values = {"zeros": np.zeros(5, np.float32), "one": np.ones(5, np.float32)}
    found = values.get(kind, draw("relu") if kind == "relu" else draw("negative"))
    for bits in range(2, 9):
        grid = choose_grid(histogram_of(found), bits, criterion)
        assert grid.scale > 0
        assert 0 <= grid.zero_point <= grid.top
        if kind == "relu":
            assert grid.zero_point == 0


@pytest.mark.parametrize("kind", ["relu", "outlier"])
def test_values_that_are_never_negative_get_zero_point_0(kind: str) -> None:
    """The ReLU in front is then left out: the grid saturates where it would cut."""
    assert choose_grid(histogram_of(draw(kind))).zero_point == 0


def test_values_that_are_never_positive_end_at_zero() -> None:
    assert choose_grid(histogram_of(draw("negative"))).zero_point == 255


@pytest.mark.parametrize("value", [5.0, -5.0, 1e-3, 1e-30, 1e38])
def test_a_constant_is_a_level(value: float) -> None:
    """To half a bin of the histogram, 2^-12 of the value."""
    grid = choose_grid(histogram_of(np.full(10, value, np.float32)))
    levels = (np.arange(256) - grid.zero_point) * grid.scale
    assert np.abs(levels - value).min() <= abs(value) * 2**-11


@pytest.mark.parametrize("value", [0.0, 1e-45])
def test_nothing_but_zeros_gets_a_grid_that_works(value: float) -> None:
    """A scale of 0 would divide by zero in onnxruntime."""
    grid = choose_grid(histogram_of(np.full(10, value, np.float32)))
    assert np.float32(grid.scale) >= np.finfo(np.float32).smallest_normal
    assert grid.zero_point == 0


def test_without_values_the_grid_works() -> None:
    assert choose_grid(Histogram.empty()).scale > 0


@pytest.mark.parametrize("factor", [1e-30, 1e-6, 1e6, 1e37])
@pytest.mark.parametrize("kind", ["normal", "relu"])
def test_the_grid_scales_with_the_values(kind: str, factor: float) -> None:
    """Powers of two apart from rounding; no size of the numbers may change what is clipped."""
    power = 2.0 ** np.round(np.log2(factor))
    values = draw(kind)
    grid, scaled = choose_grid(histogram_of(values)), choose_grid(histogram_of(values * np.float32(power)))
    assert scaled.zero_point == grid.zero_point
    assert scaled.scale == pytest.approx(grid.scale * power, rel=1e-6)


SIGNED = ActivationRules(signed=True)
SYMMETRIC = ActivationRules(signed=True, symmetric=True)
POWER_OF_TWO = ActivationRules(signed=True, symmetric=True, power_of_two=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [4, 8])
def test_a_signed_grid_is_an_unsigned_one_with_other_codes(kind: str, bits: int) -> None:
    histogram = histogram_of(draw(kind))
    unsigned, signed = choose_grid(histogram, bits), choose_grid(histogram, bits, rules=SIGNED)
    assert signed.ends == unsigned.ends
    assert (signed.bottom, signed.top) == (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    assert signed.zero_point - signed.bottom == unsigned.zero_point


def symmetric_error(values: Array, scale: float, bits: int) -> float:
    largest = (1 << (bits - 1)) - 1
    codes = np.clip(np.rint(values / scale), -largest - 1, largest)
    return float(np.mean((codes * scale - values) ** 2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [4, 8])
def test_a_symmetric_grid_is_nearly_the_best_around_0(kind: str, bits: int) -> None:
    """Against all scales in steps of 1 %."""
    values = draw(kind)
    grid = choose_grid(histogram_of(values), bits, rules=SYMMETRIC)
    assert grid.zero_point == 0
    scales = np.abs(values).max() / ((1 << (bits - 1)) - 1) * np.exp(np.arange(0.1, np.log(0.05), -0.01))
    best = min(symmetric_error(values, float(scale), bits) for scale in scales)
    assert symmetric_error(values, grid.scale, bits) <= 1.05 * best + 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_a_scale_that_must_be_a_power_of_two_is_the_best_of_those(kind: str) -> None:
    values = draw(kind)
    grid = choose_grid(histogram_of(values), rules=POWER_OF_TWO)
    mantissa, _ = np.frexp(grid.scale)
    assert (mantissa, grid.zero_point) == (0.5, 0)
    best = min(symmetric_error(values, grid.scale * 2.0**k, 8) for k in (-2, -1, 1, 2))
    assert symmetric_error(values, grid.scale, 8) <= 1.05 * best


def test_a_narrow_range_becomes_as_wide_as_it_must() -> None:
    grid = choose_grid(histogram_of(np.full(10, 1e-6, np.float32)), rules=ActivationRules(least_range=1e-4))
    low, high = grid.ends
    assert high - low == pytest.approx(1e-4, rel=1e-3)
    assert choose_grid(histogram_of(np.full(10, 1e-6, np.float32))).ends[1] == pytest.approx(1e-6, rel=0.01)


def test_one_grid_for_all_reaches_as_far_as_each() -> None:
    grids = [ActivationGrid(0.01, 0, 8), ActivationGrid(0.004, 200, 8)]
    low, high = join_grids(grids).ends
    assert low <= min(grid.ends[0] for grid in grids) + 0.01
    assert high >= max(grid.ends[1] for grid in grids) - 0.01
    around_0 = [ActivationGrid(0.5, 0, 8, signed=True), ActivationGrid(0.125, 0, 8, signed=True)]
    assert join_grids(around_0, POWER_OF_TWO) == around_0[0]


def test_percentile_cuts_a_single_value_off_a_small_set() -> None:
    """Of 8,000 values 0.005 % are less than one: nothing was cut, and one wild value decided the range."""
    values = np.random.default_rng(0).uniform(-1, 1, 8000)
    values[[5, 900]] = 1e6, -1e6
    low, high = choose_grid(histogram_of(values), criterion="percentile").ends
    # A bin is 1e6 / 4096 wide or less, and the values left are within one.
    assert -500 < low < high < 500
    few = np.append(np.linspace(0, 1, 99), 40.0)
    assert choose_grid(histogram_of(few), criterion="percentile").ends[1] == pytest.approx(40, rel=0.01)


def test_nothing_and_infinity_are_not_counted() -> None:
    """A tensor may be empty between two operators, and a mask adds -inf to it."""
    few = np.array([0.5, -1.0, 2.0], np.float32)
    counted = Histogram.empty().add(few)
    found = (
        Histogram.empty().add(np.zeros((2, 0), np.float32)).add(np.array([*few, np.inf, -np.inf, np.nan], np.float32))
    )
    assert (found.low, found.high, found.exponent) == (counted.low, counted.high, counted.exponent)
    np.testing.assert_array_equal(found.counts, counted.counts)
    assert choose_grid(Histogram.empty().add(np.zeros(0, np.float32))).scale > 0


@pytest.mark.parametrize("cuts", [[1], [500], [3, 4, 900]], ids=str)
def test_histograms_joined_are_that_of_all_values(cuts: list[int]) -> None:
    """Workers count a part each, of unlike size, so with bins of unlike width."""
    random = np.random.default_rng(0)
    values = np.concatenate([random.standard_normal(500), 1e3 * random.standard_normal(500), [0.0]]).astype(np.float32)
    whole = Histogram.empty().add(values)
    parts = [Histogram.empty().add(part) for part in np.split(values, cuts)]
    for order in (parts, parts[::-1]):
        found = Histogram.empty()
        for part in order:
            found = found.joined(part)
        assert (found.exponent, found.low, found.high) == (whole.exponent, whole.low, whole.high)
        np.testing.assert_array_equal(found.counts, whole.counts)
