"""Weights that take up what others did, against regression by least squares on the rows themselves."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_cbq.model import Array
from onnx_cbq.stepping.compensation import Inputs, read_rows, taken_up
from onnx_cbq.stepping.units import Units
from tests.stepping.nets import padded_net, units_of


def correlated(count: int, size: int, seed: int = 0) -> Array:
    """Rows [count, size] whose values say something of each other, with means."""
    random = np.random.default_rng(seed)
    mixed = random.normal(0, 1, (count, size)) @ random.normal(0, 1, (size, size)) + random.normal(0, 2, size)
    return mixed.astype(np.float32)


def inputs_of(x: Array, damping: float = 1e-7) -> Inputs:
    mean = x.mean(axis=0, dtype=np.float64)
    return Inputs(mean, x - mean.astype(np.float32), damping)


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


def test_fewer_rows_than_inputs_give_the_same_from_the_smaller_system() -> None:
    """Regression drawn towards the weights as they are, written out with the large matrix in float64."""
    x, random = correlated(30, 50), np.random.default_rng(1)
    rows = random.normal(0, 1, (2, 50)).astype(np.float32)
    after = np.repeat(random.random((1, 50)) < 0.8, 2, axis=0)
    inputs = inputs_of(x, 0.3)
    found, _ = taken_up(rows, inputs, np.ones_like(after), after)
    kept = after[0]
    centred = inputs.rows.astype(np.float64)
    second = centred.T @ centred / len(x)
    solved = np.linalg.solve(second[np.ix_(kept, kept)] + 0.3 * np.eye(kept.sum()), second[np.ix_(kept, ~kept)])
    np.testing.assert_allclose(found[:, kept], rows[:, kept] + rows[:, ~kept] @ solved.T, atol=1e-3)


def first_of(units: Units) -> Array:
    """A batch for the second convolution of `padded_net`."""
    use = units.hidden[1].layer.uses[0]
    return np.random.default_rng(0).normal(1, 1, (40, *units.shapes[use.activation][1:])).astype(np.float32)


def test_variances_are_those_of_what_weights_give() -> None:
    units, _ = units_of(padded_net())
    layer = units.hidden[1].layer
    rows = read_rows(layer, [first_of(units)], np.random.default_rng(0))
    assert rows.shape == (40 * 16, 54)
    found = Inputs.of(rows, centred=True)
    np.testing.assert_allclose(found.mean, rows.astype(np.float64).mean(axis=0), atol=1e-5)
    weights = np.random.default_rng(1).normal(0, 1, (4, 54))
    np.testing.assert_allclose(found.variances(weights), (rows @ weights.T).var(axis=0), rtol=1e-4)
    np.testing.assert_allclose(found.rows.mean(axis=0), 0, atol=1e-5)


def test_without_a_bias_rows_are_not_centred() -> None:
    rows = correlated(40, 3)
    found = Inputs.of(rows, centred=False)
    assert not found.mean.any()
    np.testing.assert_array_equal(found.rows, rows)


def test_few_rows_are_trusted_less() -> None:
    """Least squares on fewer rows than inputs fit noise."""
    x = correlated(2000, 20)
    few, many = (Inputs.of(x[:n], centred=False) for n in (10, 2000))
    assert many.damping == pytest.approx(1e-2 * np.square(x, dtype=np.float64).mean(), rel=1e-4)
    assert few.damping > 0.1 * np.square(x[:10]).mean()


def test_a_layer_with_very_many_inputs_is_told_from_fewer_rows() -> None:
    """A system of 29,000 inputs, as behind a flattening, would take 7 GB."""
    rows = np.random.default_rng(0).normal(0, 1, (3000, 2100)).astype(np.float32)
    assert len(Inputs.of(rows, centred=True).rows) == 1500


def test_inputs_that_never_vary_change_nothing() -> None:
    weights = np.ones((1, 3), np.float32)
    inputs = Inputs.of(np.full((10, 3), 2, np.float32), centred=True)
    found, shift = taken_up(weights, inputs, np.ones((1, 3), np.bool_), np.array([[True, True, False]]))
    np.testing.assert_array_equal(found, [[1, 1, 0]])
    np.testing.assert_allclose(shift, [2])
