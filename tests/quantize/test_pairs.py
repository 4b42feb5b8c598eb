"""Every way of rounding keeps pairs of codes within what 16-bit lanes add, and loses next to nothing by it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnx_cbq.model import Array
from onnx_cbq.quantize.codebook import kmeans, largest_number, make_codebook
from onnx_cbq.quantize.entropy import fit_entropy
from onnx_cbq.quantize.fit import fit
from onnx_cbq.quantize.grid import Channels, quantize_rows
from onnx_cbq.quantize.moments import Moments
from onnx_cbq.quantize.problem import Problem, make_problem
from onnx_cbq.quantize.settings import RoundingConfig
from onnx_cbq.quantize.shared import Charges, fit_shared
from onnx_cbq.quantize.table import make_table
from onnx_cbq.quantize.weights import make_coarser
from onnx_cbq.records import FREE, Layer, LayerWeights, Use, WeightRules
from onnx_cbq.records.lanes import Lanes

CONFIG = RoundingConfig()
ROWS = 24


INTEGERS = WeightRules(255)


def make_layer(shape: tuple[int, ...] = (ROWS, 6, 2, 2), rules: WeightRules = INTEGERS) -> Layer:
    return Layer("w", "Conv", "w", shape, 0, 1, (Use("y", "x", 1, None, 1, 0, (1, shape[0], 4, 4)),), 1, rules)


def inputs(size: int) -> Moments:
    random = np.random.default_rng(0)
    x = random.standard_normal((8 * size, size)) @ random.standard_normal((size, size))
    second = (x.T @ x)[None] / len(x)
    return Moments((second,), (second,), (), len(x))


def weights(kind: str, size: int) -> Array:
    """Rows of the usual kind, and some where nearly every pair is too much: large weights of one sign."""
    random = np.random.default_rng(1)
    if kind == "normal":
        return random.standard_normal((ROWS, size)).astype(np.float32)
    signs = random.choice([-1, 1], (ROWS, 1)) if kind == "one sign" else random.choice([-1, 1], (ROWS, size))
    return (signs * random.uniform(0.8, 1.0, (ROWS, size))).astype(np.float32)


KINDS = ("normal", "one sign", "one size")


def lanes_of(layer: Layer) -> Lanes:
    assert layer.lanes is not None
    return layer.lanes


def assert_fits(layer: Layer, channels: Channels) -> None:
    assert lanes_of(layer).fit(channels.codes).all()


@pytest.fixture(params=[(ROWS, 6, 2, 2), (ROWS, 3, 3, 3)], ids=["even", "odd"])
def layer(request: pytest.FixtureRequest) -> Layer:
    return make_layer(request.param)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [7, 8])
def test_rounding_to_nearest_fits(layer: Layer, kind: str, bits: int) -> None:
    rows = weights(kind, layer.weights_per_channel)
    assert_fits(layer, quantize_rows(rows, np.full(ROWS, bits, np.int8), layer.rules, layer.lanes))


@pytest.mark.parametrize("kind", KINDS)
def test_compensated_rounding_fits(layer: Layer, kind: str) -> None:
    rows = weights(kind, layer.weights_per_channel)
    problem = make_problem(rows, inputs(layer.weights_per_channel), CONFIG, layer)
    bits = np.resize([8, 7, 8, 3, 8, 0], ROWS).astype(np.int8)
    assert_fits(layer, fit(problem, bits, CONFIG).channels)


@pytest.mark.parametrize("kind", KINDS)
def test_every_width_of_a_table_fits(layer: Layer, kind: str) -> None:
    rows = weights(kind, layer.weights_per_channel)
    table = make_table(rows, inputs(layer.weights_per_channel), CONFIG, layer)
    assert all(lanes_of(layer).fit(codes).all() for codes in table.codes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("levels", [10, 100])
def test_codes_at_a_price_fit(layer: Layer, kind: str, levels: int) -> None:
    rows = weights(kind, layer.weights_per_channel)
    problem = make_problem(rows, inputs(layer.weights_per_channel), CONFIG, layer)
    steps = np.abs(rows).max(axis=1) / levels
    assert_fits(layer, fit_entropy(problem, steps, steps**2 * 0.1, CONFIG).channels)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("values", [16, 255])
def test_shared_values_fit(layer: Layer, kind: str, values: int) -> None:
    rows = weights(kind, layer.weights_per_channel)
    problem = make_problem(rows, inputs(layer.weights_per_channel), CONFIG, layer)
    book = make_codebook(kmeans(rows.reshape(-1), np.ones(rows.size), values), None, largest_number(layer.lanes))
    assert_fits(layer, fit_shared(problem, book, Charges(np.ones(ROWS)), CONFIG, refit=True))


def test_a_coarser_scale_makes_room_for_any_pairs() -> None:
    """Where inputs are removed, other weights become neighbours."""
    layer = make_layer()
    codes = np.random.default_rng(0).integers(-127, 128, layer.weight_shape).astype(np.int8)
    plain = LayerWeights(codes, np.ones(ROWS, np.float32), np.full(ROWS, 8, np.int8))
    factors = np.maximum(lanes_of(layer).sums(layer.rows(codes)) / 128, 1)
    found = make_coarser(layer, plain, factors)
    assert lanes_of(layer).fit(layer.rows(found.codes)).all()
    error = np.abs(found.codes * found.scale[:, None, None, None] - codes)
    assert (error <= factors[:, None, None, None]).all()
    same = make_coarser(layer, plain, np.ones(ROWS))
    np.testing.assert_array_equal(same.codes, codes)


def error(problem: Problem, bits: int) -> float:
    return float(fit(problem, np.full(ROWS, bits, np.int8), CONFIG).error.sum())


def test_the_limit_costs_far_less_than_a_bit() -> None:
    """At 8 bits; below, nothing at all. A bit is a factor of 4, and one sign and size is the worst there can be."""
    layer = make_layer()
    rows, moments = weights("normal", layer.weights_per_channel), inputs(layer.weights_per_channel)
    free, bound = (make_problem(rows, moments, CONFIG, x) for x in (make_layer(rules=FREE), layer))
    assert error(bound, 8) < 2 * error(free, 8)
    assert error(bound, 8) < 0.6 * error(free, 7)
    for bits in range(7):
        assert error(bound, bits) == error(free, bits)


def test_the_solver_makes_up_for_what_the_limit_takes() -> None:
    """The codes of a free rounding, cut afterwards, would be worse."""
    layer = make_layer()
    rows, moments = weights("one size", layer.weights_per_channel), inputs(layer.weights_per_channel)
    problem = make_problem(rows, moments, CONFIG, layer)
    bits = np.full(ROWS, 8, np.int8)
    free = fit(replace(problem, lanes=None), bits, CONFIG).channels
    cut = np.clip(free.codes, *lanes_of(layer).box(free.codes.astype(np.float32))) * free.scale[:, None]
    found = fit(problem, bits, CONFIG)
    assert found.error.sum() < 0.5 * problem.error(cut.reshape(problem.aim.shape)).sum()
