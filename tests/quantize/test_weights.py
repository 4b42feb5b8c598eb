"""Layers to integers, and scales that leave an int32 bias its room."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_cbq.model import Array
from onnx_cbq.quantize.digits import DIGITS, few_digits
from onnx_cbq.quantize.grid import quantize_rows
from onnx_cbq.quantize.weights import LARGEST_BIAS, leave_room_for_biases, quantize_layer
from onnx_cbq.records import Layer, LayerWeights, Shared, Use
from onnx_cbq.records.grids import fits_bits

ACTIVATION_SCALE = 0.02


def layer(shape: tuple[int, ...], axis: int) -> Layer:
    use = Use("y", "x", 1, "b", 1, 0, (2, shape[axis]))
    return Layer("layer", "Gemm", "w", shape, axis, 1, (use,), 2)


def weights(shape: tuple[int, ...]) -> Array:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def room(found: LayerWeights, bias: list[float]) -> LayerWeights:
    biases = [(np.array(bias, np.float32), ACTIVATION_SCALE)]
    return leave_room_for_biases(layer(found.codes.shape, 0), found, biases)


def bias_codes(found: LayerWeights, bias: list[float]) -> Array:
    return np.rint(np.array(bias) / (found.scale.astype(np.float64) * np.float32(ACTIVATION_SCALE)))


@pytest.mark.parametrize(("shape", "axis"), [((6, 4, 3, 3), 0), ((4, 6), 1), ((4, 6, 3), 1)])
def test_a_layer_is_rounded_channel_by_channel(shape: tuple[int, ...], axis: int) -> None:
    """Codes stand in the weight's own shape, with the bits and scale of the channel along its axis."""
    weight, bits = weights(shape), np.array([0, 1, 2, 3, 5, 8], np.int8)
    found = quantize_layer(layer(shape, axis), weight, bits)
    assert found.codes.shape == shape
    np.testing.assert_array_equal(found.bits, bits)
    for channel in range(6):
        alone = quantize_rows(np.take(weight, channel, axis).reshape(1, -1), bits[channel : channel + 1])
        np.testing.assert_array_equal(np.take(found.codes, channel, axis).reshape(-1), alone.codes[0])
        assert found.scale[channel] == alone.scale[0]


def test_ordinary_biases_change_nothing() -> None:
    found = quantize_layer(layer((4, 9), 0), weights((4, 9)), np.array([1, 2, 4, 8], np.int8))
    after = room(found, [1.0, -5.0, 0.0, 100.0])
    np.testing.assert_array_equal(after.codes, found.codes)
    np.testing.assert_array_equal(after.scale, found.scale)
    np.testing.assert_array_equal(after.bits, found.bits)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("largeness", [0.9, 1.5, 40.0, 1e6])
def test_a_large_bias_fits_and_so_do_the_codes(bits: int, largeness: float) -> None:
    """A bias beyond int32 wraps around and turns the sign of the output."""
    found = quantize_layer(layer((3, 200), 0), weights((3, 200)), np.full(3, bits, np.int8))
    bias = [0.0, 1.0, -float(found.scale[2]) * ACTIVATION_SCALE * LARGEST_BIAS * largeness]
    after = room(found, bias)
    # Two roundings of the scale to float32.
    assert np.abs(bias_codes(after, bias)).max() <= LARGEST_BIAS * (1 + 2**-22)
    for channel in range(3):
        assert fits_bits(after.codes[channel], int(after.bits[channel]))
    assert (after.bits <= found.bits).all()
    np.testing.assert_array_equal(after.codes[:2], found.codes[:2])


def test_on_the_coarser_scale_weights_are_rounded_to_the_nearest_level() -> None:
    """8 bits lie on a mid-tread grid, so that no weight is clipped and none is off by more than half a step."""
    found = quantize_layer(layer((1, 300), 0), weights((1, 300)), np.array([8], np.int8))
    after = room(found, [float(found.scale[0]) * ACTIVATION_SCALE * LARGEST_BIAS * 3])
    assert after.scale[0] == pytest.approx(3 * found.scale[0], rel=1e-6)
    before_values, after_values = found.codes * found.scale[:, None], after.codes * after.scale[:, None]
    assert np.abs(after_values - before_values).max() <= after.scale[0] * (0.5 + 1e-5)


def test_a_channel_without_weights_takes_the_finest_scale_that_its_bias_allows() -> None:
    """Only its bias is left of it, which is the more exact the finer the scale."""
    found = quantize_layer(layer((2, 9), 0), weights((2, 9)), np.array([0, 0], np.int8))
    after = room(found, [3.7, 0.0])
    assert abs(bias_codes(after, [3.7, 0.0])[0]) == pytest.approx(LARGEST_BIAS, rel=1e-6)
    assert (after.scale > 0).all()
    assert not after.codes.any()


def test_one_bias_for_all_channels_counts_for_each() -> None:
    """The C of a Gemm may be a single number."""
    found = quantize_layer(layer((3, 9), 0), weights((3, 9)), np.full(3, 4, np.int8))
    bias = [float(found.scale.max()) * ACTIVATION_SCALE * LARGEST_BIAS * 2]
    assert (np.abs(bias_codes(room(found, bias), bias)) <= LARGEST_BIAS * (1 + 2**-22)).all()


def test_shared_values_stay_shared_where_a_bias_needs_room() -> None:
    """One coarser channel would leave the table; the whole layer gets coarser instead."""
    table = np.array([-127, -3, 0, 60], np.int8)
    codes = np.array([[-127, 60], [-3, 0]], np.int8)
    found = LayerWeights(codes, np.full(2, 1e-6, np.float32), np.array([2, 2], np.int8), Shared(table))
    bias = [0.0, 1e-6 * ACTIVATION_SCALE * LARGEST_BIAS * 10]
    after = room(found, bias)
    assert isinstance(after.grid, Shared)
    assert np.isin(after.codes, after.grid.table).all()
    assert after.grid.table.tolist() == [-13, 0, 6]
    assert len(np.unique(after.scale)) == 1
    assert np.abs(bias_codes(after, bias)).max() <= LARGEST_BIAS * (1 + 1e-6)
    np.testing.assert_allclose(after.codes * after.scale[:, None], codes * 1e-6, atol=0.51e-5)


def test_room_for_a_bias_beside_the_largest_activations() -> None:
    """The product of their scale and an int32 is beyond single precision."""
    found = quantize_layer(layer((2, 3), 0), weights((2, 3)), np.array([4, 4], np.int8))
    same = leave_room_for_biases(layer((2, 3), 0), found, [(np.array([1.0, -2.0], np.float32), 1e36)])
    np.testing.assert_array_equal(same.scale, found.scale)
    np.testing.assert_array_equal(same.codes, found.codes)


def test_a_scale_has_room_for_the_biases_of_all_uses() -> None:
    """A channel of 0 bits takes the finest scale that they allow: not that of the last use alone."""
    found = LayerWeights(np.zeros((2, 3), np.int8), np.ones(2, np.float32), np.zeros(2, np.int8))
    biases = [(np.array([4.0, 0.5], np.float32), 1e-3), (np.array([1.0, 1.0], np.float32), 1e-2)]
    for order in (biases, biases[::-1]):
        scale = leave_room_for_biases(layer((2, 3), 0), found, order).scale
        for bias, read in biases:
            assert (np.abs(bias) / (scale * np.float64(read)) < 2**31 - 1).all()


def test_a_short_scale_of_zeros_is_coarser_only_where_its_bias_does_not_fit() -> None:
    """The finest one has all digits, and makes an int32 near 2^30 of a bias that was a power of two times its scale."""
    weights = LayerWeights(np.zeros((2, 3), np.int8), np.array([0.25, 1e-12], np.float32), np.zeros(2, np.int8))
    biases = [(np.array([0.5, 3.0], np.float32), 0.125)]
    found = leave_room_for_biases(layer((2, 3), 0), weights, biases, short=True).scale
    assert found[0] == np.float32(0.25)
    assert found[1] == few_digits(found[1:], DIGITS)[0] > 3 / 0.125 / LARGEST_BIAS * 0.999
