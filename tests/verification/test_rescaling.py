"""Channels that are made up for in the next layer are no error; a scale that nothing makes up for stays one."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_cbq import CalibrationSet, DebugResult, debug
from onnx_cbq.model import Array
from tests.graphs import make_model, node
from tests.qdq import grid_of, quantized_by_hand

CLASSES, INNER = 5, 8


def draw(seed: int, *shape: int) -> Array:
    random = np.random.default_rng(seed)
    return np.asarray(random.standard_normal(shape) / np.sqrt(np.prod(shape[1:])), np.float32)


X = 4 * draw(0, 32, 3, 6, 6)
DATA = CalibrationSet.from_arrays(X, np.arange(len(X)) % CLASSES)
# 1 / 16 to 16, in no order.
FACTORS = np.exp2(np.array([3, -4, 0, 2, -1, 4, -3, 1], np.float32))
PLAIN = {
    "w": draw(1, INNER, 3, 3, 3),
    "b": 0.1 * draw(2, INNER),
    "k": draw(3, INNER, 1, 3, 3),
    "c": 0.1 * draw(4, INNER),
    "v": draw(5, INNER, INNER, 1, 1),
    "g": draw(6, CLASSES, INNER),
}


def separable(weights: dict[str, Array]) -> onnx.ModelProto:
    """A Conv, a depthwise one, one of 1 x 1, and a Gemm; a Relu and a pool between."""
    nodes = [
        node("Conv", "x w b", "p", pads=[1, 1, 1, 1]),
        node("Relu", "p", "r"),
        node("Conv", "r k c", "d", group=INNER, pads=[1, 1, 1, 1]),
        node("Relu", "d", "s"),
        node("Conv", "s v", "q"),
        node("Relu", "q", "t"),
        node("GlobalAveragePool", "t", "m"),
        node("Flatten", "m", "f"),
        node("Gemm", "f g", transB=1),
    ]
    return make_model(nodes, {"x": ["N", 3, 6, 6]}, ["y"], weights, opset=17)


def by_channel(weights: dict[str, Array], made: dict[str, Array], read: dict[str, Array]) -> dict[str, Array]:
    """Weights and biases whose channels are larger by these factors, and those that read them smaller."""
    found = dict(weights)
    for name, factors in made.items():
        found[name] = found[name] * factors.reshape(-1, *[1] * (found[name].ndim - 1))
    for name, factors in read.items():
        found[name] = found[name] / factors.reshape(1, -1, *[1] * (found[name].ndim - 2))
    return {name: value.astype(np.float32) for name, value in found.items()}


# The depthwise Conv hands on what it reads: its own factors are those of its output over those of its input.
ALIKE = {
    "through the depthwise Conv": by_channel(PLAIN, {"w": FACTORS, "b": FACTORS, "c": FACTORS}, {"v": FACTORS}),
    "undone by the depthwise Conv": by_channel(PLAIN, {"w": FACTORS, "b": FACTORS, "k": 1 / FACTORS}, {}),
    "made by the depthwise Conv": by_channel(PLAIN, {"k": FACTORS, "c": FACTORS}, {"v": FACTORS}),
    "behind a pool": by_channel(PLAIN, {"v": FACTORS}, {"g": FACTORS}),
    "from Conv to Gemm": by_channel(
        PLAIN,
        {"w": FACTORS, "b": FACTORS, "c": 1 / FACTORS, "k": FACTORS**-2, "v": FACTORS},
        {"v": 1 / FACTORS, "g": FACTORS},
    ),
}


def run(weights: dict[str, Array]) -> DebugResult:
    """Beside a file whose layers are float: nothing but its class scores is quantized, behind them all."""
    file = separable(weights)
    file.graph.node[-1].output[0] = "scores"
    file.graph.node.extend([node("QuantizeLinear", "scores step", "codes"), node("DequantizeLinear", "codes step")])
    file.graph.initializer.append(numpy_helper.from_array(np.array(0.05, np.float32), "step"))
    return debug(separable(PLAIN), file, DATA)


@pytest.mark.parametrize("name", ALIKE)
def test_what_is_undone_is_no_error(name: str) -> None:
    """Nothing but the order of sums in float32 is left of it, in weights and outputs."""
    for layer in run(ALIKE[name]).layers:
        ratios = (layer.weight_snr, layer.alone_snr, layer.accumulated_snr, layer.weight_alone_snr)
        assert min(ratio for ratio in ratios if ratio is not None) > 90, layer.name
        assert layer.weight_gain == pytest.approx(1, abs=1e-4)
        assert layer.divergence == pytest.approx(0, abs=1e-7)


HEADS, WIDTH, TOKENS = 2, 8, 4
ATTENTION = {
    "qkv": draw(7, WIDTH, 3 * WIDTH),
    "qkv_bias": 0.1 * draw(8, 3 * WIDTH),
    "o": draw(9, WIDTH, WIDTH),
    "h": draw(10, WIDTH, CLASSES),
    "parts": np.array([0, TOKENS, 3, HEADS, WIDTH // HEADS]),
    "joined": np.array([0, TOKENS, WIDTH]),
    "tokens": np.array([1]),
    **{f"index{i}": np.array(i) for i in range(3)},
}


def attention(weights: dict[str, Array], *, graded: bool = False) -> onnx.ModelProto:
    """Queries, keys and values by one layer, one behind the heads, a mean over the tokens and a Gemm."""
    nodes = [node("MatMul", "t qkv", "m"), node("Add", "m qkv_bias", "z"), node("Reshape", "z parts", "r")]
    nodes += [node("Transpose", "r", "p", perm=[2, 0, 3, 1, 4])]
    nodes += [node("Gather", f"p index{i}", f"g{i}", axis=0) for i in range(3)]
    nodes += [node("Transpose", "g1", "k", perm=[0, 1, 3, 2]), node("MatMul", "g0 k", "s"), node("Softmax", "s", "e")]
    nodes += [node("MatMul", "e g2", "w"), node("Transpose", "w", "j", perm=[0, 2, 1, 3])]
    nodes += [node("Reshape", "j joined", "a"), node("MatMul", "a o", "b")]
    nodes += [node("ReduceMean", "b tokens", "n", keepdims=0), node("Gemm", "n h", "c")]
    behind = [node("QuantizeLinear", "c step", "q"), node("DequantizeLinear", "q step")]
    nodes += behind if graded else [node("Identity", "c")]
    read = {name for entry in nodes for name in entry.input}
    known = {name: value for name, value in {**weights, "step": np.array(0.05, np.float32)}.items() if name in read}
    return make_model(nodes, {"t": ["N", TOKENS, WIDTH]}, ["y"], known, opset=18)


def test_values_of_attention_are_followed_behind_the_heads() -> None:
    """The rows of queries and keys are as they were, those of values larger: no error of the layer that makes all."""
    rows = np.concatenate([np.ones(2 * WIDTH, np.float32), FACTORS])
    changed = {"qkv": ATTENTION["qkv"] * rows, "qkv_bias": ATTENTION["qkv_bias"] * rows}
    changed["o"] = ATTENTION["o"] / FACTORS[:, None]
    x = 3 * draw(11, 32, TOKENS, WIDTH)
    data = CalibrationSet.from_arrays(x, np.arange(len(x)) % CLASSES)
    result = debug(attention(ATTENTION), attention({**ATTENTION, **changed}, graded=True), data)
    assert len(result.layers) == 3
    for layer in result.layers:
        ratios = (layer.weight_snr, layer.alone_snr, layer.accumulated_snr)
        assert min(ratio for ratio in ratios if ratio is not None) > 90, layer.name


@pytest.mark.parametrize(("weight", "position"), [("w", 0), ("k", 1), ("v", 2)])
@pytest.mark.parametrize("uniform", [False, True])
def test_what_is_undone_by_nobody_is_one(weight: str, position: int, uniform: bool) -> None:
    """Of every layer the one whose weights were changed, and no other."""
    factors = np.full(INNER, 3, np.float32) if uniform else FACTORS
    result = run(by_channel(PLAIN, {weight: factors}, {}))
    ratios = [layer.weight_snr for layer in result.layers]
    assert [ratio is not None and ratio < 20 for ratio in ratios] == [i == position for i in range(4)]
    alone = [layer.alone_snr for layer in result.layers]
    assert [ratio is not None and ratio < 20 for ratio in alone] == [i == position for i in range(4)]
    # What lies behind has another input in the file, and none when it stands alone.
    assert result.layers[3].accumulated_snr is not None
    assert result.layers[3].accumulated_snr < 20
    if uniform:
        assert result.layers[position].weight_gain == pytest.approx(3)


def test_rounded_weights_of_equalized_channels_have_their_own_noise() -> None:
    """What channels with little signal say of the factors is some percent off, which is no noise of the weights."""
    mild = FACTORS**0.25
    weights = by_channel(PLAIN, {"k": mild, "c": mild}, {"v": mild})
    file = quantized_by_hand(separable(weights), {"x": grid_of(X)}, bits=8)
    result = debug(separable(PLAIN), file, DATA)
    codes = {t.name: numpy_helper.to_array(t) for t in file.graph.initializer}
    for layer, name in zip(result.layers, "wkvg", strict=True):
        found = codes[name] * codes[f"{name}_scale"]
        expected = 10 * np.log10(np.square(weights[name]).sum() / np.square(found - weights[name]).sum())
        assert layer.weight_snr == pytest.approx(expected, abs=3), name
