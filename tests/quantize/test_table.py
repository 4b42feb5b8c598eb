"""The table of all widths of a layer: what a search looks up is what rounding gives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnx_cbq.model import Array
from onnx_cbq.quantize.fit import fit
from onnx_cbq.quantize.moments import Moments, mean_shift
from onnx_cbq.quantize.problem import make_problem
from onnx_cbq.quantize.settings import RoundingConfig
from onnx_cbq.quantize.table import WIDTHS, Table, make_table
from onnx_cbq.records.grids import fits_bits
from tests.sums import Sums

CONFIG = RoundingConfig()
CHANNELS, SIZE, ROWS = 6, 10, 400


@pytest.fixture(scope="module")
def case() -> tuple[Table, Array, Array, Moments]:
    """A table, the weights, rows of inputs and their moments."""
    random = np.random.default_rng(0)
    x = (random.standard_normal((1, ROWS, SIZE)) @ random.standard_normal((SIZE, SIZE)) + 2).astype(np.float32)
    rows = random.standard_normal((CHANNELS, SIZE)).astype(np.float32)
    sums = Sums(centred=True)
    sums.add(x, x, np.ones(ROWS, np.float32))
    moments = sums.moments()
    return make_table(rows, moments, CONFIG), rows, x[0], moments


def test_every_width_is_what_a_layer_of_that_width_gets(case: tuple[Table, Array, Array, Moments]) -> None:
    table, rows, _, moments = case
    # Widths compare the same once scales are refitted to the codes.
    config = replace(CONFIG, refits=1, sweeps=0)
    problem = make_problem(rows, moments, config)
    assert table.codes.shape == (WIDTHS, CHANNELS, SIZE)
    for width in range(WIDTHS):
        bits = np.full(CHANNELS, width, np.int8)
        fitted = fit(problem, bits, config)
        np.testing.assert_array_equal(table.codes[width], fitted.channels.codes)
        np.testing.assert_array_equal(table.rows(bits), fitted.channels.values)
        np.testing.assert_array_equal(table.error[width], fitted.error)
        np.testing.assert_array_equal(table.shift(0, bits), mean_shift(moments, rows, fitted.channels.values)[0])
        assert all(fits_bits(codes, width) for codes in table.codes[width])


def test_channels_of_different_widths_are_looked_up_one_by_one(case: tuple[Table, Array, Array, Moments]) -> None:
    table, _, _, _ = case
    bits = np.array([8, 0, 3, 1, 2, 5], np.int8)
    found, shift = table.rows(bits), table.shift(0, bits)
    assert found.dtype == np.float32
    assert shift is not None
    for channel, width in enumerate(bits):
        same = np.full(CHANNELS, width, np.int8)
        np.testing.assert_array_equal(found[channel], table.rows(same)[channel])
        assert shift[channel] == table.shifts[0][width, channel]
    assert not found[1].any()


def test_errors_are_what_rounding_adds_to_the_output(case: tuple[Table, Array, Array, Moments]) -> None:
    """Measured on the rows themselves, with the bias taking up the mean; the damping adds half a percent or so."""
    table, rows, x, _ = case
    outputs = x.astype(np.float64) @ rows.T
    np.testing.assert_allclose(table.power, outputs.var(axis=0), rtol=0.02)
    for width in range(WIDTHS):
        bits = np.full(CHANNELS, width, np.int8)
        shift = table.shift(0, bits)
        assert shift is not None
        added = x.astype(np.float64) @ table.rows(bits).T + shift - outputs
        np.testing.assert_allclose(added.mean(axis=0), 0, atol=1e-5)
        # Damping counts a little for directions in which the inputs hardly vary, and the error lies in just those.
        measured = np.square(added).mean(axis=0)
        assert (measured <= table.error[width] * 1.001).all()
        assert (measured >= table.error[width] * 0.3).all()


def test_more_bits_lose_less(case: tuple[Table, Array, Array, Moments]) -> None:
    table = case[0]
    assert (table.error[1:].sum(axis=1) < table.error[:-1].sum(axis=1)).all()
    np.testing.assert_array_equal(table.power, table.error[0])


def test_without_known_means_nothing_is_shifted() -> None:
    second = (np.eye(SIZE)[None],)
    table = make_table(np.ones((2, SIZE), np.float32), Moments(second, second, (), 0), CONFIG)
    assert table.shifts == ()
    assert table.shift(0, np.array([3, 4])) is None
