"""Latent weights start as they were rounded, stay on their grids, and hand on the gradients of learned step sizes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnx_cbq.evidence.workload import prepare
from onnx_cbq.learned.latent import Latent
from onnx_cbq.model import Array
from onnx_cbq.quantize.grid import quantize_rows
from onnx_cbq.quantize.weights import as_weights
from onnx_cbq.records import Layer, WeightRules, fits_bits
from tests.conftest import DIGITS_CARD, DIGITS_MODEL


@pytest.fixture(scope="module")
def layer() -> Layer:
    return prepare(DIGITS_MODEL, DIGITS_CARD).layers.layers[1]


def latent_of(layer: Layer, widths: Array | None = None) -> tuple[Latent, Array]:
    random = np.random.default_rng(1)
    weight = random.standard_normal(layer.weight_shape).astype(np.float32)
    bits = np.arange(layer.channels) % 9 if widths is None else widths
    channels = quantize_rows(layer.rows(weight), bits.astype(np.int8), layer.rules, layer.lanes)
    return Latent.of(layer, weight, as_weights(layer, channels)), layer.rows(weight)


def test_the_start_is_what_was_rounded(layer: Layer) -> None:
    """All widths, both grids: codes, scales and bits come back as they were given."""
    bits = np.arange(layer.channels) % 9
    weight = np.random.default_rng(1).standard_normal(layer.weight_shape).astype(np.float32)
    start = as_weights(layer, quantize_rows(layer.rows(weight), bits.astype(np.int8), layer.rules, layer.lanes))
    found = Latent.of(layer, weight, start).integers()
    np.testing.assert_array_equal(found.codes, start.codes)
    np.testing.assert_array_equal(found.bits, start.bits)
    np.testing.assert_allclose(found.scale, start.scale, rtol=1e-7)


@pytest.mark.parametrize("top", [0, 255])
def test_wherever_weights_go_codes_fit_their_bits_and_lanes(layer: Layer, top: int) -> None:
    """Guards the promise that no file saturates, and that a channel takes the bits that were planned."""
    bound = replace(layer, rules=WeightRules(top))
    latent, _ = latent_of(bound)
    rows = (10 * np.random.default_rng(2).standard_normal(latent.rows.shape)).astype(np.float32)
    scale = np.random.default_rng(3).normal(0, 0.3, len(rows)).astype(np.float32)
    codes = bound.rows(replace(latent, rows=rows, log_scale=scale).integers().codes)
    assert all(fits_bits(row, int(bits)) for row, bits in zip(codes, latent.bits, strict=True))
    if top:
        assert bound.lanes is not None
        assert bound.lanes.fit(codes).all()


def test_gradients_are_those_of_learned_step_sizes(layer: Layer) -> None:
    """Against the definition, element by element: straight through within the range, none beyond it."""
    latent, _ = latent_of(layer, np.full(layer.channels, 3))
    rows = latent.rows.copy()
    rows[:, ::5] *= 4  # beyond the range
    latent = replace(latent, rows=rows, log_scale=np.linspace(-0.2, 0.2, len(rows)).astype(np.float32))
    by_weight = np.random.default_rng(4).standard_normal(layer.weight_shape).astype(np.float32)
    by_rows, by_scale = latent.gradients(by_weight)
    upstream, codes, scale = layer.rows(by_weight), latent.codes(), latent.scale
    beyond = 0
    for c in range(len(rows)):
        expected = 0.0
        for j in range(rows.shape[1]):
            unit, inside = rows[c, j] / scale[c], abs(rows[c, j] / scale[c]) <= latent.grid.top[c]
            assert by_rows[c, j] == (upstream[c, j] if inside else 0)
            expected += upstream[c, j] * scale[c] * (codes[c, j] - unit if inside else codes[c, j])
            beyond += not inside
        np.testing.assert_allclose(by_scale[c], expected, rtol=1e-3, atol=1e-4)
    assert beyond > 10
