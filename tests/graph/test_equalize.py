"""Pairs of layers that can be equalized, and that it changes nothing but the sizes of channels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import onnx
import pytest

from onnx_cbq.graph.equalize import SMALLEST_RANGE, equalized, factors
from onnx_cbq.graph.layers import find_layers
from onnx_cbq.graph.load import load
from onnx_cbq.graph.pairs import Pair, find_pairs
from onnx_cbq.graph.shapes import Example
from onnx_cbq.model import Array, Model
from onnx_cbq.runtime import Session
from tests.graphs import make_model, node

CHANNELS = 4
RANDOM = np.random.default_rng(0)
IMAGE: list[int | str] = ["N", 3, 6, 6]


def normal(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


CONSTANTS: dict[str, Array] = {
    "w": normal(CHANNELS, 3, 3, 3) * np.logspace(-2, 1, CHANNELS).reshape(-1, 1, 1, 1).astype(np.float32),
    "w1": normal(3, CHANNELS) * np.logspace(1, -2, CHANNELS).astype(np.float32),
    "b": normal(CHANNELS),
    "b1": np.array([3, 0.5, 0.1, 0.02], np.float32),  # no channel is always 0 on a few samples
    "dense": normal(5, CHANNELS, 1, 1),
    "depthwise": normal(2 * CHANNELS, 1, 3, 3),
    "grouped": normal(6, 2, 3, 3),
    "head": normal(CHANNELS, 5),
    "head_t": normal(5, CHANNELS),
    "flat_head": normal(CHANNELS * 16, 5),
    "zero": np.array(0, np.float32),
    "minus": np.array(-1, np.float32),
    "six": np.array(6, np.float32),
    "huge": np.array(1e4, np.float32),
    "rows": np.array([-1, CHANNELS * 16]),
    "offset": normal(CHANNELS, 1, 1),
    "axes": np.array([2, 3]),
}
CONV, GEMM = node("Conv", "x w b", "z"), node("Gemm", "x w1 b1", "z")
RELU, DENSE = node("Relu", "z", "a"), node("Conv", "a dense")
pool = partial(node, kernel_shape=[2, 2])
CHAINS: dict[str, list[onnx.NodeProto]] = {
    "relu": [CONV, RELU, DENSE],
    "identity": [CONV, node("Conv", "z dense")],
    "leaky": [CONV, node("LeakyRelu", "z", "a", alpha=0.2), DENSE],
    "clip": [CONV, node("Clip", "z zero huge", "a"), DENSE],
    "clip-open": [CONV, node("Clip", "z zero", "a"), DENSE],
    "no-bias": [node("Conv", "x w", "z"), RELU, DENSE],
    "depthwise": [CONV, RELU, node("Conv", "a depthwise", group=CHANNELS)],
    "grouped": [CONV, RELU, node("Conv", "a grouped", group=2)],
    "max-pool": [CONV, RELU, pool("MaxPool", "a", "p"), node("Conv", "p dense")],
    "pool-relu": [CONV, pool("MaxPool", "z", "p"), node("Relu", "p", "a"), DENSE],
    "average-pool": [CONV, RELU, pool("AveragePool", "a", "p", pads=[0, 0, 1, 1]), node("Conv", "p dense")],
    "global": [
        *(CONV, RELU, node("GlobalAveragePool", "a", "p")),
        *(node("Flatten", "p", "f"), node("Gemm", "f head_t", transB=1)),
    ],
    "squeeze": [
        CONV,
        RELU,
        node("GlobalAveragePool", "a", "p"),
        node("Squeeze", "p axes", "f"),
        node("Gemm", "f head"),
    ],
    "flatten": [CONV, RELU, node("Flatten", "a", "f"), node("Gemm", "f flat_head")],
    "flatten-relu": [CONV, node("Reshape", "z rows", "f"), node("Relu", "f", "a"), node("Gemm", "a flat_head")],
    "gemm": [GEMM, RELU, node("Gemm", "a head")],
    "gemm-factors": [node("Gemm", "x w1 b1", "z", alpha=0.5, beta=2.0), RELU, node("Gemm", "a head", alpha=3.0)],
}


def parts(nodes: Sequence[onnx.NodeProto]) -> tuple[Model, Example, tuple[Pair, ...]]:
    read = {name for entry in nodes for name in entry.input}
    shape: list[int | str] = ["N", 3] if nodes[0].op_type == "Gemm" else IMAGE
    constants = {name: value for name, value in CONSTANTS.items() if name in read}
    model = load(make_model(nodes, {"x": shape}, ["y"], constants))
    example = Example.made_up(model)
    shapes = example.shapes(model)
    return model, example, find_pairs(model, find_layers(model, shapes), shapes)


def run(model: Model, example: Example, name: str) -> Array:
    return Session(model.with_graph(outputs=[name])).run(example.feeds)[name]


def peaks(model: Model, example: Example, pair: Pair) -> Array:
    """Largest magnitude of each channel, by the definition."""
    value = run(model, example, pair.tensor)
    return np.array([np.abs(value.take(c, axis=pair.channel_axis)).max() for c in range(CHANNELS)])


@pytest.mark.parametrize("nodes", CHAINS.values(), ids=CHAINS)
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_channels_become_alike_and_outputs_stay(nodes: list[onnx.NodeProto], strength: float) -> None:
    model, example, pairs = parts(nodes)
    (pair,) = pairs
    before = peaks(model, example, pair)
    assert before.max() > 4 * before.min()
    after = equalized(model, {pair: factors(before, strength, pair.bound)})
    expected = run(model, example, "y")
    np.testing.assert_allclose(run(after, example, "y"), expected, rtol=0, atol=2e-6 * np.abs(expected).max())
    largest = before.max() if math.isinf(pair.bound) else pair.bound
    np.testing.assert_allclose(peaks(after, example, pair), before * (before / largest) ** -strength, rtol=1e-5)


REFUSED: dict[str, list[onnx.NodeProto]] = {
    "sigmoid": [CONV, node("Sigmoid", "z", "a"), DENSE],
    "residual": [CONV, RELU, node("Conv", "a square", "d"), node("Add", "d a")],
    "offset": [CONV, node("Add", "z offset", "a"), DENSE],
    "clip-below-zero": [CONV, node("Clip", "z minus six", "a"), DENSE],
    "clip-no-lower": [CONV, node("Clip", "z _ six", "a"), DENSE],
    "two-clips": [CONV, node("Clip", "z zero huge", "c"), node("Clip", "c zero six", "a"), DENSE],
    "across-channels": [CONV, node("Transpose", "z", "a", perm=[0, 2, 1, 3]), DENSE],
    "other-rows": [CONV, node("Flatten", "z", "f", axis=2), node("Gemm", "f flat_rows")],
    "bias-shared": [CONV, RELU, node("Conv", "a square b")],
    "weight-shared": [CONV, node("Conv", "z square", "a"), node("Conv", "a square")],
    "squared": [CONV, node("Mul", "z z", "a"), DENSE],
}


@pytest.mark.parametrize("nodes", REFUSED.values(), ids=REFUSED)
def test_what_treats_channels_unlike_is_left_alone(
    nodes: list[onnx.NodeProto], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONSTANTS, "flat_rows", normal(16, 5))
    monkeypatch.setitem(CONSTANTS, "square", normal(CHANNELS, CHANNELS, 1, 1))
    assert parts(nodes)[2] == ()


def test_a_graph_output_is_left_alone() -> None:
    constants = {name: CONSTANTS[name] for name in ("w", "b", "dense")}
    model = load(make_model([CONV, RELU, DENSE], {"x": IMAGE}, ["y", "a"], constants))
    shapes = Example.made_up(model).shapes(model)
    assert find_pairs(model, find_layers(model, shapes), shapes) == ()


def test_a_layer_between_two_pairs_is_scaled_on_both_sides() -> None:
    nodes = [CONV, RELU, node("Conv", "a square c", "m"), node("Relu", "m", "n"), node("Conv", "n dense")]
    # Of their own, and no channel always 0: what other tests drew before must not matter.
    own = np.random.default_rng(1)
    drawn = {"square": own.standard_normal((CHANNELS, CHANNELS, 1, 1)), "c": own.uniform(1, 2, CHANNELS)}
    others = {name: value.astype(np.float32) for name, value in drawn.items()}
    constants = {name: CONSTANTS[name] for name in ("w", "b", "dense")} | others
    model = load(make_model(nodes, {"x": IMAGE}, ["y"], constants))
    example = Example.made_up(model)
    shapes = example.shapes(model)
    pairs = find_pairs(model, find_layers(model, shapes), shapes)
    assert [pair.path for pair in pairs] == [("z", "a"), ("m", "n")]
    scales = {pair: RANDOM.uniform(0.01, 1, CHANNELS) for pair in pairs}
    after = equalized(model, scales)
    expected = run(model, example, "y")
    np.testing.assert_allclose(run(after, example, "y"), expected, rtol=0, atol=2e-6 * np.abs(expected).max())
    for pair, scale in scales.items():
        ratio = peaks(after, example, pair) / peaks(model, example, pair)
        np.testing.assert_allclose(ratio, 1 / scale, rtol=1e-5)


def test_a_clip_cuts_off_nothing_that_was_measured() -> None:
    """A channel that reaches the bound keeps it; the others are enlarged up to it at most."""
    six = [CONV, node("Clip", "z zero six", "a"), DENSE]
    model, example, (pair,) = parts(six)
    before = peaks(model, example, pair)
    assert before.max() == 6
    assert before.min() < 1
    scales = factors(before, 1.0, pair.bound)
    np.testing.assert_array_equal(scales[before == 6], 1.0)
    after = equalized(model, {pair: scales})
    expected = run(model, example, "y")
    np.testing.assert_allclose(run(after, example, "y"), expected, rtol=0, atol=2e-6 * np.abs(expected).max())
    np.testing.assert_allclose(peaks(after, example, pair), 6, rtol=1e-6)


@pytest.mark.parametrize("bound", [math.inf, 9.0])
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_factors_only_enlarge(bound: float, strength: float) -> None:
    """A channel without values stays as it is, one with next to none is not blown up without limit."""
    ranges = np.array([0.0, 1e-12, 0.5, 8.0])
    found = factors(ranges, strength, bound)
    largest = min(bound, 8.0) if math.isinf(bound) else bound
    assert found[0] == 1
    assert found[1] == SMALLEST_RANGE**strength
    np.testing.assert_allclose(found[2:], (ranges[2:] / largest) ** strength)
    np.testing.assert_array_equal(factors(np.zeros(3), strength, bound), 1)


def test_pairs_can_be_keys_and_have_names() -> None:
    _, _, (pair,) = parts(CHAINS["relu"])
    scales: Mapping[Pair, int] = {pair: 1}
    assert scales[pair] == 1
    assert pair.name == "w -> dense"
