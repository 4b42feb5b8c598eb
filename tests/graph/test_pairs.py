"""Channels of normalizations, products and attention, and all layers that read them.

Whatever is found is held against the definition: any factors > 0 leave the outputs, and change the tensors between by
just these factors.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest

from onnx_cbq.graph.equalize import equalized, factors
from onnx_cbq.graph.layers import find_layers
from onnx_cbq.graph.load import load
from onnx_cbq.graph.normalise import normalise
from onnx_cbq.graph.pairs import Pair, find_pairs
from onnx_cbq.graph.shapes import Example
from onnx_cbq.model import Array, Model
from onnx_cbq.runtime import Session
from tests.generator.models import build
from tests.graphs import make_model, node

WIDTH, TOKENS, HEADS = 6, 4, 2
RANDOM = np.random.default_rng(0)
TEXT: list[int | str] = ["N", TOKENS, WIDTH]
IMAGE: list[int | str] = ["N", WIDTH, 5, 5]


def normal(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


def integers(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


CONSTANTS: dict[str, Array] = {
    "scale": 1 + normal(WIDTH) / 4,
    "shift": normal(WIDTH),
    "added": normal(1, 1, WIDTH),
    "mean": normal(WIDTH),
    "variance": 1 + normal(WIDTH) ** 2,
    **{name: normal(WIDTH, WIDTH) for name in ("q", "k", "v", "o", "head")},
    "qkv": normal(WIDTH, 3 * WIDTH),
    "qkv_bias": normal(3 * WIDTH),
    "pointwise": normal(3, WIDTH, 1, 1),
    "made": normal(WIDTH, WIDTH, 1, 1),
    "squeezed": normal(2, WIDTH, 1, 1),
    "spread": normal(WIDTH, 2, 1, 1),
    "half": np.array(0.5, np.float32),
    "halves": normal(WIDTH, 2 * WIDTH),
    "none": integers(0),
    "width": integers(WIDTH),
    "whole": integers(2 * WIDTH),
    "last": integers(-1),
    "heads": integers(0, TOKENS, HEADS, -1),
    "joined": integers(0, TOKENS, WIDTH),
    "parts": integers(0, TOKENS, 3, HEADS, WIDTH // HEADS),
    "tokens": integers(1),
    "channels": integers(2),
    "zeroth": np.array(0),
    "first": np.array(1),
    "second": np.array(2),
    "flat": integers(-1, TOKENS * WIDTH),
    "end": integers(TOKENS),
    "grouped": integers(0, 2, WIDTH // 2, 5, 5),
    "image": integers(0, WIDTH, 5, 5),
    "pads": integers(0, 1, 0, 0, 0, 0),
    "one": np.array(1, np.float32),
    "gain": 1 + normal(WIDTH) ** 2,
    "table": normal(WIDTH, WIDTH),
    "two": integers(2),
    "third": normal(WIDTH // 2, WIDTH),
    "moving": integers(0, 0, 1, 0, 0, -1),
    "tokens_and_heads": integers(1, 2),
    "per_head": normal(WIDTH // HEADS, 3),
    "weights": normal(TOKENS),
    "table_ids": np.array([[1]]),
    "both": integers(TOKENS, -1, WIDTH // HEADS),
    "threes": integers(TOKENS, -1, 3, WIDTH),
    "back": integers(TOKENS, -1, WIDTH),
    "long": normal(TOKENS * WIDTH, 3),
}
NORM = node("LayerNormalization", "x scale shift", "l")
SPLIT_HEADS = {"perm": [0, 2, 1, 3]}


def attention(query: str, key: str, value: str) -> list[onnx.NodeProto]:
    """Softmax(q k') v, [n, heads, tokens, width of a head] each, through the layer o."""
    return [
        node("Transpose", key, "kt", perm=[0, 1, 3, 2]),
        node("MatMul", f"{query} kt", "s"),
        node("Mul", "s half", "m"),
        node("Softmax", "m", "p"),
        node("MatMul", f"p {value}", "w"),
        node("Transpose", "w", "j", **SPLIT_HEADS),
        node("Reshape", "j joined", "a"),
        node("MatMul", "a o"),
    ]


def three() -> list[onnx.NodeProto]:
    nodes = [NORM]
    for name in "qkv":
        nodes += [node("MatMul", f"l {name}", f"{name}0"), node("Reshape", f"{name}0 heads", f"{name}1")]
        nodes.append(node("Transpose", f"{name}1", f"{name}2", **SPLIT_HEADS))
    return nodes + attention("q2", "k2", "v2")


def gathered(*indices: str) -> list[onnx.NodeProto]:
    nodes = [NORM, node("MatMul", "l qkv", "z"), node("Add", "z qkv_bias", "b"), node("Reshape", "b parts", "r")]
    nodes.append(node("Transpose", "r", "t", perm=[2, 0, 3, 1, 4]))
    nodes += [node("Gather", f"t {index}", f"g{i}", axis=0) for i, index in enumerate(indices)]
    return nodes + attention("g0", "g1", "g2")


def split() -> list[onnx.NodeProto]:
    nodes = [NORM, node("MatMul", "l qkv", "z"), node("Split", "z", "q0 k0 v0", axis=-1, num_outputs=3)]
    for name in "qkv":
        nodes += [
            node("Reshape", f"{name}0 heads", f"{name}1"),
            node("Transpose", f"{name}1", f"{name}2", **SPLIT_HEADS),
        ]
    return nodes + attention("q2", "k2", "v2")


def tokens_first() -> list[onnx.NodeProto]:
    """As torch's MultiheadAttention: tokens, samples, channels, and an axis that samples and heads share."""
    nodes = [NORM, node("Transpose", "l", "lt", perm=[1, 0, 2]), node("MatMul", "lt qkv", "z")]
    nodes += [node("Add", "z qkv_bias", "b"), node("Reshape", "b threes", "r")]
    nodes.append(node("Transpose", "r", "t", perm=[2, 0, 1, 3]))
    for i, (name, index) in enumerate(zip("qkv", ("zeroth", "first", "second"), strict=True)):
        nodes += [node("Gather", f"t {index}", f"{name}0", axis=0), node("Reshape", f"{name}0 both", f"{name}1")]
        nodes.append(node("Transpose", f"{name}1", f"{name}2", perm=[1, 0, 2] if i != 1 else [1, 2, 0]))
    return [
        *nodes,
        *(node("MatMul", "q2 k2", "s"), node("Softmax", "s", "p"), node("MatMul", "p v2", "w")),
        *(node("Transpose", "w", "j", perm=[1, 0, 2]), node("Reshape", "j back", "a"), node("MatMul", "a o")),
    ]


def gated() -> list[onnx.NodeProto]:
    """SwiGLU: the second half lets the first through."""
    return [
        node("MatMul", "x halves", "z"),
        node("Slice", "z none width last", "u"),
        node("Slice", "z width whole last", "g"),
        node("Sigmoid", "g", "s"),
        node("Mul", "g s", "t"),
        node("Mul", "t u", "m"),
        node("MatMul", "m o"),
    ]


MEAN = node("ReduceMean", "l tokens", "r", keepdims=0)
# Nodes from x to y, and the pairs: (maker, channels, readers).
FOUND: dict[str, tuple[list[onnx.NodeProto], list[tuple[str, tuple[int, int], str]]]] = {
    "norm": ([NORM, node("MatMul", "l q")], [("l", (0, 6), "q")]),
    "norm-without-shift": ([node("LayerNormalization", "x scale", "l"), node("MatMul", "l q")], [("l", (0, 6), "q")]),
    "three": (three(), [("v", (0, 6), "o"), ("l", (0, 6), "q k v")]),
    "one-layer": (gathered("zeroth", "first", "second"), [("qkv", (12, 18), "o"), ("l", (0, 6), "qkv")]),
    "split": (split(), [("qkv", (12, 18), "o"), ("l", (0, 6), "qkv")]),
    "sliced": (gated(), [("halves", (0, 6), "o")]),
    "mean": ([NORM, MEAN, node("Gemm", "r head")], [("l", (0, 6), "head")]),
    "token": ([NORM, node("Gather", "l zeroth", "r", axis=1), node("Gemm", "r head")], [("l", (0, 6), "head")]),
    "flat": ([NORM, node("Reshape", "l flat", "r"), node("Gemm", "r long")], [("l", (0, 6), "long")]),
    "tokens-first": (tokens_first(), [("b", (12, 18), "o"), ("l", (0, 6), "qkv")]),
    "rolled": (
        [
            NORM,
            node("Slice", "l tokens end tokens", "s"),
            node("Slice", "l none tokens tokens", "t"),
            node("Concat", "s t", "c", axis=1),
            node("MatMul", "c q"),
        ],
        [("l", (0, 6), "q")],
    ),
    "shuffled": (
        [
            node("Conv", "x made", "z"),
            node("Reshape", "z grouped", "g"),
            node("Transpose", "g", "t", perm=[0, 2, 1, 3, 4]),
            node("Reshape", "t image", "i"),
            node("Conv", "i pointwise"),
        ],
        [("made", (0, 6), "pointwise")],
    ),
    "summed": ([NORM, node("Relu", "l", "r"), node("Add", "r l", "s"), node("MatMul", "s q")], [("l", (0, 6), "q")]),
    "class-token": ([NORM, node("Concat", "l x", "c", axis=1), node("MatMul", "c q")], []),
    "padded-with-ones": ([NORM, node("Pad", "l pads one", "p"), node("MatMul", "p q")], []),
    "padded": ([NORM, node("Pad", "l pads", "p"), node("MatMul", "p q")], [("l", (0, 6), "q")]),
    "spelled-out": (
        [node("Mul", "x scale", "m"), node("Add", "m added", "l"), node("MatMul", "l q")],
        [("l", (0, 6), "q")],
    ),
    "gate": (
        [
            node("MatMul", "x q", "u"),
            node("MatMul", "x k", "g"),
            node("Sigmoid", "g", "s"),
            node("Mul", "u s", "m"),
            node("MatMul", "m o"),
        ],
        [("q", (0, 6), "o")],
    ),
    "normed-image": (
        [
            node("BatchNormalization", "x scale shift mean variance", "b"),
            node("Relu", "b", "a"),
            node("Conv", "a pointwise"),
        ],
        [("b", (0, 6), "pointwise")],
    ),
    "excitation": (
        [
            node("Conv", "x made", "z"),
            node("Relu", "z", "a"),
            node("GlobalAveragePool", "a", "p"),
            node("Conv", "p squeezed", "e"),
            node("Relu", "e", "f"),
            node("Conv", "f spread", "h"),
            node("Sigmoid", "h", "g"),
            node("Mul", "a g", "m"),
            node("Conv", "m pointwise"),
        ],
        [("made", (0, 6), "squeezed pointwise"), ("squeezed", (0, 2), "spread")],
    ),
    # What may not be scaled.
    "residual": ([NORM, node("MatMul", "l q", "m"), node("Add", "m l")], []),
    "one-vector-for-two": (
        [
            NORM,
            node("MatMul", "l q", "m"),
            node("LayerNormalization", "m scale shift", "n"),
            node("MatMul", "n k"),
        ],
        [],
    ),
    "own-product": (
        [NORM, node("Relu", "l", "a"), node("LeakyRelu", "l", "b"), node("Mul", "a b", "m"), node("MatMul", "m q")],
        [],
    ),
    "divided-by": (
        [NORM, node("Relu", "l", "a"), node("Add", "a one", "b"), node("Div", "x a", "m"), node("MatMul", "m q")],
        [],
    ),
    "tied-table": (
        [
            node("ArgMax", "x", "ids", axis=2, keepdims=0),
            node("Gather", "table ids", "e"),
            node("Add", "x e", "f"),
            node("LayerNormalization", "f scale shift", "l"),
            node("ReduceMean", "l tokens", "r", keepdims=0),
            node("Gemm", "r table", transB=1),
        ],
        [],
    ),
    "one-vector-twice": ([node("LayerNormalization", "x scale scale", "l"), node("MatMul", "l q")], []),
    "every-other-channel": ([NORM, node("Slice", "l none width last two", "s"), node("MatMul", "s third")], []),
    "moved-channels": ([NORM, node("Pad", "l moving", "p"), node("MatMul", "p q")], []),
    "one-of-two-digits": (
        [NORM, node("Reshape", "l heads", "h"), node("ReduceMean", "h tokens_and_heads", "r", keepdims=0)]
        + [node("Gemm", "r per_head")],
        [],
    ),
    "weighed-by-a-vector": ([NORM, node("MatMul", "weights l", "w"), node("Gemm", "w head")], [("l", (0, 6), "head")]),
    "index-of-two-axes": (
        [
            NORM,
            node("MatMul", "l qkv", "z"),
            node("Reshape", "z parts", "r"),
            node("Gather", "r table_ids", "g", axis=2),
        ]
        + [node("Reshape", "g joined", "j"), node("MatMul", "j o")],
        [("l", (0, 6), "qkv")],
    ),
    "two-makers": (
        [NORM, node("Mul", "l gain", "m"), node("MatMul", "m q")],
        [("l", (0, 6), "q")],
    ),
    "two-ways": (
        [
            node("Conv", "x made", "z"),
            node("Relu", "z", "a"),
            node("MaxPool", "z", "b", kernel_shape=[1, 1]),
            node("Mul", "a b", "m"),
            node("Conv", "m pointwise"),
        ],
        [],
    ),
    "values-are-keys": (gathered("zeroth", "second", "second"), [("l", (0, 6), "qkv")]),
    "mean-of-channels": (
        [NORM, node("ReduceMean", "l channels", "r", keepdims=0), node("MatMul", "r long_tokens")],
        [],
    ),
    "softmax": ([NORM, node("Softmax", "l", "a"), node("MatMul", "a q")], []),
}


def parts(nodes: list[onnx.NodeProto]) -> tuple[Model, Example, tuple[Pair, ...]]:
    read = {name for entry in nodes for name in entry.input}
    constants = {n: v for n, v in {**CONSTANTS, "long_tokens": normal(TOKENS, 3)}.items() if n in read}
    is_image = any(entry.op_type in ("Conv", "BatchNormalization") for entry in nodes)
    proto = make_model(nodes, {"x": IMAGE if is_image else TEXT}, ["y"], constants)
    loaded = load(proto)
    example = Example.made_up(loaded)
    model = normalise(loaded, example).model
    shapes = example.shapes(model)
    return model, example, find_pairs(model, find_layers(model, shapes), shapes)


@pytest.mark.parametrize("case", FOUND)
def test_channels_are_followed_to_all_their_readers(case: str) -> None:
    """A reader that is missed, or one that is none, makes the outputs wrong for every factor but 1."""
    nodes, expected = FOUND[case]
    model, example, pairs = parts(nodes)
    found = [(p.maker.output, p.channels, {r.layer.weight for r in p.readers}) for p in pairs]
    wanted = [(maker, channels, set(readers.split())) for maker, channels, readers in expected]
    made = {layer.uses[0].output: layer.weight for layer in find_layers(model, example.shapes(model))}
    assert [(made.get(output, output), channels, readers) for output, channels, readers in found] == wanted

    scales = {pair: RANDOM.uniform(0.2, 1.0, pair.count) for pair in pairs}
    after = equalized(model, scales)
    outputs = ["y", *(pair.tensor for pair in pairs)]
    before, now = (Session(m.with_graph(outputs=outputs)).run(example.feeds) for m in (model, after))
    np.testing.assert_allclose(now["y"], before["y"], rtol=0, atol=4e-6 * np.abs(before["y"]).max())
    for pair, scale in scales.items():
        own = [np.moveaxis(values[pair.tensor], pair.channel_axis, 0) for values in (before, now)]
        old, new = (pair.of_tensor(np.abs(values).reshape(len(values), -1).max(axis=1)) for values in own)
        np.testing.assert_allclose(new * scale, old, rtol=1e-5)


def test_a_bound_is_held_against_ranges_in_front_of_a_gate() -> None:
    """relu6(x + 3) / 6, the hard sigmoid: behind the division ranges say nothing of what the Clip cuts off."""
    nodes = [node("MatMul", "x q", "z"), node("Add", "z shift", "u"), node("Clip", "u zero six", "c")]
    nodes += [node("Div", "c six", "d"), node("Mul", "d x", "m"), node("MatMul", "m o")]
    constants = {name: CONSTANTS[name] for name in ("q", "shift", "o")}
    constants |= {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
    loaded = load(make_model(nodes, {"x": TEXT}, ["y"], constants))
    example = Example.made_up(loaded)
    model = normalise(loaded, example).model
    shapes = example.shapes(model)
    (pair,) = find_pairs(model, find_layers(model, shapes), shapes)
    assert (pair.tensor, pair.bound) == ("c", 6.0)
    before = Session(model.with_graph(outputs=["y", "c"])).run(example.feeds)
    ranges = np.abs(before["c"]).reshape(-1, WIDTH).max(axis=0)
    scales = factors(ranges, 1.0, pair.bound)
    assert scales.min() < 0.9
    after = Session(equalized(model, {pair: scales})).run(example.feeds)
    np.testing.assert_allclose(after["y"], before["y"], rtol=0, atol=4e-6 * np.abs(before["y"]).max())


def test_what_lies_within_a_maker_has_the_factors_too() -> None:
    """Where everything is quantized, so is the product in front of the Add."""
    _, _, (pair,) = parts(FOUND["spelled-out"][0])
    assert pair.path[:2] == ("m", "l")


def test_ranges_are_those_of_what_attention_gives() -> None:
    """It is what is quantized; the values themselves are larger, and others."""
    _, _, (values, _) = parts(FOUND["one-layer"][0])
    assert values.tensor == "a"
    np.testing.assert_array_equal(values.of_tensor(np.arange(6.0)), np.arange(6.0))
    np.testing.assert_array_equal(values.of_tensor(np.arange(18.0)), np.arange(12.0, 18.0))


def test_random_nets_compute_the_same() -> None:
    """What no case above thought of: whatever is found in nets made at random may have any factors."""
    found = 0
    for seed in range(60):
        random = np.random.default_rng(seed)
        case = build(lambda low, high: int(random.integers(low, high + 1)))  # noqa: B023
        if case is None:
            continue
        loaded = load(case.model)
        example = Example.made_up(loaded)
        model = normalise(loaded, example).model
        shapes = example.shapes(model)
        pairs = [pair for pair in find_pairs(model, find_layers(model, shapes), shapes) if math.isinf(pair.bound)]
        before = Session(model, "off").run(example.feeds)
        for pair in pairs:
            after = Session(equalized(model, {pair: random.uniform(0.3, 1, pair.count)}), "off").run(example.feeds)
            found += 1
            for name, values in before.items():
                if values.dtype.kind == "f":
                    largest = float(np.abs(values).max())
                    np.testing.assert_allclose(after[name], values, rtol=0, atol=1e-5 * largest, err_msg=pair.name)
    assert found > 10


def test_what_an_output_shows_stays() -> None:
    constants = {name: CONSTANTS[name] for name in ("scale", "shift", "q")}
    model = load(make_model([NORM, node("MatMul", "l q")], {"x": TEXT}, ["y", "l"], constants))
    example = Example.made_up(model)
    model = normalise(model, example).model
    shapes = example.shapes(model)
    assert find_pairs(model, find_layers(model, shapes), shapes) == ()
