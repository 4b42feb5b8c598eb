"""Ratios and grids by plain numpy, and what has no ratio."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_cbq.graph.load import load
from onnx_cbq.model import Array
from onnx_cbq.runtime import Session
from onnx_cbq.targets.reading import Grid
from onnx_cbq.verification.noise import MOST_DB, Noise, limits, rounded
from tests.graphs import make_model, node


def noise(wanted: Array, found: Array) -> Noise:
    one = Noise()
    one.add(wanted, found)
    return one


@given(st.integers(0, 1000), st.floats(0.01, 10), st.integers(1, 4))
def test_batches_add_up(seed: int, spread: float, parts: int) -> None:
    random = np.random.default_rng(seed)
    y = random.standard_normal((12, 3, 4)).astype(np.float32)
    other = (y + spread * random.standard_normal(y.shape)).astype(np.float32)
    found = Noise()
    for one, two in zip(np.array_split(y, parts), np.array_split(other, parts), strict=True):
        found.add(one, two)
    a, b = y.astype(float), other.astype(float)
    assert found.ratio == pytest.approx(10 * np.log10((a**2).sum() / ((a - b) ** 2).sum()))
    assert found.gain == pytest.approx((a * b).sum() / (a**2).sum())


def test_ends_of_the_scale() -> None:
    y = np.ones((2, 3), np.float32)
    assert (noise(y, y).ratio, noise(y, y).gain) == (MOST_DB, 1)
    assert (noise(0 * y, y).ratio, noise(0 * y, y).gain) == (None, None)
    assert (Noise().ratio, Noise().gain) == (None, None)
    assert noise(y, 0 * y).ratio == 0
    assert noise(y, np.full_like(y, np.inf)).ratio == -MOST_DB
    assert noise(y, np.full_like(y, np.nan)).ratio == -MOST_DB
    assert noise(y, np.full_like(y, np.nan)).gain is None


def test_factors_belong_to_the_axis_of_the_channels() -> None:
    y = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    factors = np.array([2.0, 0.5, 4.0])
    one = Noise()
    one.add(y, y * factors[:, None], factors, 1)
    assert one.ratio == MOST_DB


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.uint16, np.int16])
@pytest.mark.parametrize("zero", [0, 7])
def test_a_grid_is_that_of_onnxruntime(kind: type[np.generic], zero: int) -> None:
    x = np.random.default_rng(0).uniform(-30, 30, 500).astype(np.float32)
    scale, point = np.array(1e-4 if np.dtype(kind).itemsize == 2 else 0.02, np.float32), np.array(zero, kind)
    nodes = [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z")]
    model = load(make_model(nodes, {"x": [500]}, ["y"], {"s": scale, "z": point}, opset=21))
    expected = Session(model, "off").run({"x": x})["y"]
    grid = Grid("q", scale, point, None)
    np.testing.assert_allclose(rounded(x, grid, 255), expected, rtol=1e-6)
    ends = limits(grid, 255)
    assert ends is not None
    assert ends == pytest.approx((expected.min(), expected.max()), rel=1e-5)


def test_a_narrow_grid_ends_where_its_codes_do() -> None:
    """Of 4 bits in uint8, a Clip in front says so."""
    grid = Grid("q", np.array(0.5, np.float32), np.array(0, np.uint8), None)
    assert limits(grid, 15) == (0, 7.5)
    np.testing.assert_array_equal(rounded(np.array([-1, 0.3, 9], np.float32), grid, 15), [0, 0.5, 7.5])


def test_grids_of_several_scales_or_of_floats_have_no_ends() -> None:
    assert limits(Grid("q", np.ones(2, np.float32), np.zeros(2, np.uint8), 1), 255) is None
    assert limits(Grid("q", None, None, None), 255) is None
