"""Damping is chosen by what it does on other samples; against least squares on rows that nothing was made of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnx_cbq.model import Array
from onnx_cbq.quantize.damping import choose_dampings
from onnx_cbq.quantize.fit import fit
from onnx_cbq.quantize.moments import Moments
from onnx_cbq.quantize.problem import make_problem
from onnx_cbq.quantize.settings import RoundingConfig
from tests.sums import Sums

CONFIG = RoundingConfig()
SIZE, NOISE = 40, 0.5


def rows_of(count: int, seed: int, noise: float) -> tuple[Array, Array]:
    """Rows x of one distribution, and x~: x and noise that is a linear function of it, and some that is not."""
    fixed, random = np.random.default_rng(9), np.random.default_rng(seed)
    mixing = fixed.standard_normal((SIZE, SIZE)) * np.geomspace(1, 0.05, SIZE)
    x = random.standard_normal((1, count, SIZE)) @ mixing
    y = x + noise * (random.standard_normal(x.shape) + x @ fixed.standard_normal((SIZE, SIZE)) / SIZE)
    return x.astype(np.float32), y.astype(np.float32)


def moments_of(x: Array, y: Array, held: int) -> Moments:
    sums = Sums(centred=False)
    sums.add(x, y, np.ones(x.shape[1], np.float32), held)
    return sums.moments()


def weights(count: int = 24) -> Array:
    return np.random.default_rng(3).standard_normal((count, SIZE)).astype(np.float32)


def error_elsewhere(moments: Moments) -> float:
    """Squared error of 3 bits on many rows that are in no moments."""
    x, y = rows_of(20_000, 77, NOISE)
    rows = weights()
    values = fit(make_problem(rows, moments, CONFIG), np.full(len(rows), 3, np.int8), CONFIG).channels.values
    return float(np.square(x[0] @ rows.T - y[0] @ values.T).mean())


def test_few_rows_are_trusted_less_than_many() -> None:
    """Guards against weights that make up for each other, and for the layers in front, on these samples alone."""
    few, many = (moments_of(*rows_of(count, 0, NOISE), held=count // 4) for count in (60, 5000))
    of_few, of_many = (choose_dampings(weights()[None], moments, CONFIG) for moments in (few, many))
    assert (of_many.aim, of_many.rounding) == (CONFIG.damping, CONFIG.damping)
    assert of_few.aim > of_many.aim
    assert of_few.rounding > of_many.rounding
    assert error_elsewhere(few) < 0.8 * error_elsewhere(replace(few, held=None))


@pytest.mark.parametrize("seed", range(4))
def test_what_is_no_function_of_the_inputs_is_not_repaired(seed: int) -> None:
    """The last digit of 8-bit activations, and few rows: an aim that follows it is farther off than w itself.

    x~ is x and white noise of a tenth, so the best aim of all rows there are is w / 1.01: 1e-4 of the squares from w.
    """
    random = np.random.default_rng(seed)
    x = random.standard_normal((1, 60, SIZE)).astype(np.float32)
    noise = (0.1 * random.standard_normal(x.shape)).astype(np.float32)
    rows = weights()
    aim = make_problem(rows, moments_of(x, x + noise, held=15), CONFIG).aim[0]
    assert np.square(aim - rows).sum() < 1e-4 * np.square(rows).sum()


def test_what_a_branch_lacks_on_these_samples_alone_is_not_repaired() -> None:
    """Noise of the other branch that has nothing to do with the layer's inputs; some of 60 rows seem to predict it."""
    x, _ = rows_of(60, 0, NOISE)
    sums = Sums(centred=False)
    noise = np.random.default_rng(5).standard_normal((1, 60, 24)).astype(np.float32)
    sums.add(x, x.copy(), np.ones(60, np.float32), 15, 3 * noise)
    moments, rows = sums.moments(), weights()
    trusting, wary = (
        np.square(make_problem(rows, each, CONFIG).aim[0] - rows).sum()
        for each in (replace(moments, held=None), moments)
    )
    assert wary < 0.3 * trusting


def test_the_least_is_taken_where_nothing_is_held_back() -> None:
    x, y = rows_of(60, 0, NOISE)
    found = choose_dampings(weights()[None], moments_of(x, y, held=0), CONFIG)
    assert (found.aim, found.rounding) == (CONFIG.damping, CONFIG.damping)


def test_groups_share_a_damping() -> None:
    """Of a grouped Conv whose groups read the same, it is that of each."""
    x, y = rows_of(60, 0, NOISE)
    one = choose_dampings(weights()[None], moments_of(x, y, held=15), CONFIG)
    tiled = moments_of(np.tile(x, (3, 1, 1)), np.tile(y, (3, 1, 1)), held=15)
    assert choose_dampings(np.tile(weights(), (3, 1, 1)), tiled, CONFIG) == one
