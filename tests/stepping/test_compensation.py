"""Weights that take up what others did, against regression by least squares on the rows themselves."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_cbq.model import Array
from onnx_cbq.quantize.patches import input_rows
from onnx_cbq.stepping.compensation import Inputs, taken_up
from onnx_cbq.stepping.units import Units
from tests.stepping.nets import padded_net, units_of


def correlated(count: int, size: int, seed: int = 0) -> Array:
    """Rows [count, size] whose values say something of each other, with means."""
    random = np.random.default_rng(seed)
    mixed = random.normal(0, 1, (count, size)) @ random.normal(0, 1, (size, size)) + random.normal(0, 2, size)
    return mixed.astype(np.float32)


def inputs_of(x: Array, damping: float = 1e-9) -> Inputs:
    mean = x.mean(axis=0, dtype=np.float64)
    return Inputs(mean, np.cov(x.astype(np.float64), rowvar=False, bias=True), damping)


def test_what_is_left_is_fitted_as_by_least_squares() -> None:
    """Two kinds of channels, each with its own inputs; the bias takes up the mean."""
    x = correlated(400, 8)
    rows = np.random.default_rng(1).normal(0, 1, (5, 8)).astype(np.float32)
    before, after = np.ones((5, 8), np.bool_), np.ones((5, 8), np.bool_)
    before[:, 7] = False
    after[:2, 2:4] = after[2:4, 5:] = after[:2, 7] = after[4, 7] = False
    found, shift = taken_up(rows, inputs_of(x), before, after)
    outputs = x.astype(np.float64) @ np.where(before, rows, 0).T
    for channel in range(4):
        kept = after[channel]
        design = np.concatenate([x[:, kept].astype(np.float64), np.ones((len(x), 1))], axis=1)
        expected = np.linalg.lstsq(design, outputs[:, channel], rcond=None)[0]
        np.testing.assert_allclose(found[channel, kept], expected[:-1], atol=1e-4)
        np.testing.assert_allclose(shift[channel], expected[-1], atol=1e-3)
        assert not found[channel, ~kept].any()
    np.testing.assert_array_equal(found[4, :7], rows[4, :7])
    assert shift[4] == 0


def test_an_input_that_comes_back_begins_with_nothing() -> None:
    """What it did was taken up by others, and would count twice."""
    rows = np.ones((2, 3), np.float32)
    before = np.array([[True, True, False], [True, True, False]])
    after = np.array([[True, True, True], [True, False, True]])
    found, _ = taken_up(rows, inputs_of(correlated(100, 3)), before, after)
    np.testing.assert_array_equal(found[0], [1, 1, 0])
    assert found[1, 2] != 0
    assert found[1, 1] == 0


def test_a_channel_that_loses_all_its_inputs_gives_its_mean() -> None:
    x = correlated(100, 3)
    rows = np.array([[1, -2, 3]], np.float32)
    found, shift = taken_up(rows, inputs_of(x), np.ones((1, 3), np.bool_), np.zeros((1, 3), np.bool_))
    assert not found.any()
    np.testing.assert_allclose(shift, x.mean(axis=0, dtype=np.float64) @ rows[0], rtol=1e-5)


def first_of(units: Units) -> Array:
    """A batch for the second convolution of `padded_net`."""
    use = units.hidden[1].layer.uses[0]
    return np.random.default_rng(0).normal(1, 1, (40, *units.shapes[use.activation][1:])).astype(np.float32)


@pytest.mark.parametrize("centred", [True, False])
def test_moments_are_those_of_the_rows_that_a_layer_multiplies(centred: bool) -> None:
    units, _ = units_of(padded_net())
    layer, x = units.hidden[1].layer, first_of(units_of(padded_net())[0])
    found = Inputs.of(layer, [x], np.random.default_rng(0), centred=centred)
    rows = input_rows(layer, layer.uses[0], x, 64, np.random.default_rng(0))[0].astype(np.float64)
    mean = rows.mean(axis=0) if centred else np.zeros(rows.shape[1])
    np.testing.assert_allclose(found.mean, mean, atol=1e-6)
    np.testing.assert_allclose(found.second, (rows - mean).T @ (rows - mean) / len(rows), atol=1e-5)
    weights = np.random.default_rng(1).normal(0, 1, (4, rows.shape[1]))
    np.testing.assert_allclose(
        found.variances(weights),
        ((rows - mean) @ weights.T).var(axis=0) + (0 if centred else (rows @ weights.T).mean(axis=0) ** 2),
        rtol=1e-5,
    )


def test_few_rows_are_trusted_less() -> None:
    """Least squares on fewer rows than inputs fit noise."""
    units, _ = units_of(padded_net())
    layer, x = units.hidden[1].layer, first_of(units)
    few, many = (Inputs.of(layer, [x[:n]], np.random.default_rng(0), centred=True).damping for n in (2, 40))
    assert many == 1e-2
    assert few > 0.1
