"""Pairs of weights that kernels add in 16 bits: which they are, and codes that fit whatever the activations.

The oracle is `tests.saturation`; where this processor saturates, onnxruntime's kernels must do as it does, so the order
of the pairs is not taken on faith.
"""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_cbq.model import Array
from onnx_cbq.records import FREE, Layer, Use, WeightRules
from onnx_cbq.records.lanes import Lanes, lanes
from onnx_cbq.runtime import Session
from onnx_cbq.verification.saturation import saturates
from tests.graphs import make_model, node
from tests.saturation import columns, exact_product, patches, saturating_product

SHAPES = [(4, 3, 3), (3, 3, 3), (5, 2), (1, 5, 5), (16,), (7,), (258,), (3, 1, 1)]


def lanes_of(shape: tuple[int, ...]) -> Lanes:
    found = lanes(shape, 255)
    assert found is not None
    return found


def pairs(found: Lanes) -> list[set[tuple[int, int]]]:
    """Each kind of pairs as a set."""
    return [{(i, j) for i, j in enumerate(kind.tolist()) if 0 <= i < j} for kind in found.partners]


def test_neighbours_are_the_channels_at_each_position() -> None:
    """Two by two, as a row of im2col has them: position 0 with its channels, then position 1."""
    (found,) = pairs(lanes_of((4, 2)))  # weights are [channels, positions]: channel c at position p is 2 c + p
    assert found == {(0, 2), (4, 6), (1, 3), (5, 7)}


def test_with_an_odd_number_of_channels_two_orders_count() -> None:
    """onnxruntime goes on at the next position, oneDNN fills the channels up."""
    rows, filled = pairs(lanes_of((3, 2)))  # the order of im2col is 0 2 4 1 3 5
    assert rows == {(0, 2), (1, 4), (3, 5)}
    assert filled == {(0, 2), (1, 3)}


def test_one_channel_meets_at_neighbouring_positions() -> None:
    assert pairs(lanes_of((1, 5))) == [{(0, 1), (2, 3)}]


def test_long_rows_are_also_cut_in_half() -> None:
    """oneDNN's matrix product does so between 257 and 1,535 numbers; it matters where the half is odd."""
    rows, halves = pairs(lanes_of((258,)))
    assert (128, 129) in rows
    assert {(0, 1), (126, 127), (129, 130), (255, 256)} <= halves
    assert not any(128 in pair or 257 in pair for pair in halves)
    assert len(lanes_of((256,)).partners) == len(lanes_of((260,)).partners) == len(lanes_of((1538,)).partners) == 1


def test_every_matrix_of_a_product_has_its_own_pairs() -> None:
    found = lanes((2, 3), 255, positions_first=True)
    assert found is not None
    assert pairs(found)[-1] == {(0, 1), (3, 4)}


@pytest.mark.parametrize(("top", "limit"), [(255, 128), (200, 163), (130, 252), (129, None), (127, None), (15, None)])
def test_few_activation_bits_have_room_for_any_codes(top: int, limit: int | None) -> None:
    found = lanes((4,), top)
    assert (found.limit if found else None) == limit
    largest = 127 if found is None else found.limit // 2
    assert top * 2 * largest <= 32767
    if found is not None:
        assert top * found.limit <= 32767 < top * (found.limit + 1)


def layer(operator: str, shape: tuple[int, ...], axis: int, groups: int = 1, rules: WeightRules = FREE) -> Layer:
    return Layer("w", operator, "w", shape, axis, groups, (Use("y", "x", 1, None, 1, 0, (1, shape[axis])),), 1, rules)


INTEGERS = WeightRules(255)


@pytest.mark.parametrize(
    ("found", "row"),
    [
        (layer("Conv", (8, 4, 3, 3), 0, rules=INTEGERS), (4, 3, 3)),
        (layer("Conv", (8, 2, 3, 3), 0, 4, INTEGERS), (2, 3, 3)),
        (layer("Gemm", (16, 8), 1, rules=INTEGERS), (16,)),
        (layer("Gemm", (8, 16), 0, rules=INTEGERS), (16,)),
        (layer("ConvTranspose", (6, 8, 3, 3), 1, rules=INTEGERS), (6, 3, 3)),
        (layer("Conv", (8, 1, 3, 3), 0, 4, INTEGERS), (1, 3, 3)),  # two filters for each channel: im2col
        (layer("Conv", (8, 1, 3, 3), 0, 8, INTEGERS), None),  # depthwise
        (layer("Conv", (8, 4, 3, 3), 0), None),  # float activations
        (layer("Conv", (8, 4, 3, 3), 0, rules=WeightRules(15)), None),
    ],
    ids=lambda value: value.operator if isinstance(value, Layer) else str(value),
)
def test_a_layer_knows_its_rows(found: Layer, row: tuple[int, ...] | None) -> None:
    expected = None if row is None else lanes_of(row)
    if expected is None:
        assert found.lanes is None
    else:
        assert found.lanes is not None
        np.testing.assert_array_equal(found.lanes.partners, expected.partners)


def order_of(shape: tuple[int, ...]) -> Array:
    """Weights [channels, positions] in the order of im2col."""
    return np.arange(int(np.prod(shape))).reshape(shape[0], -1).T.reshape(-1)


def worst(codes: Array, order: Array) -> int:
    """The largest error that saturation makes of a row, over activations that are 0 or 255 pair by pair."""
    signs = (codes[order] > 0, codes[order] < 0)
    rows = np.stack([np.where(sign, 255, 0) for sign in signs])
    column = codes[order][:, None]
    return int(np.abs(saturating_product(rows, column) - exact_product(rows, column)).max())


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([s for s in SHAPES if np.prod(s) < 60]), st.integers(0, 10**6), st.sampled_from([40, 80, 127]))
def test_codes_fit_just_where_nothing_saturates(shape: tuple[int, ...], seed: int, spread: int) -> None:
    """By onnxruntime's order, which is the first kind."""
    found = lanes_of(shape)
    codes = np.random.default_rng(seed).integers(-spread, spread + 1, int(np.prod(shape))).astype(np.int8)
    first = Lanes(found.partners[:1], found.limit)
    assert bool(first.fit(codes)) == (worst(codes, order_of(shape)) == 0)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SHAPES), st.integers(0, 10**6), st.floats(1, 300))
def test_any_codes_within_the_box_fit(shape: tuple[int, ...], seed: int, spread: float) -> None:
    found, random = lanes_of(shape), np.random.default_rng(seed)
    wanted = random.normal(0, spread, (5, int(np.prod(shape)))).astype(np.float32)
    low, high = found.box(wanted)
    assert (low <= high).all()
    assert (low >= -127).all()
    assert (high <= 127).all()
    for codes in (low, high, np.where(random.random(low.shape) < 0.5, low, high), random.integers(low, high + 1)):
        assert found.fit(codes.astype(np.int8)).all()
    assert found.fit(found.nearest(wanted).astype(np.int8)).all()


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SHAPES), st.integers(0, 10**6))
def test_codes_that_fit_are_left_alone(shape: tuple[int, ...], seed: int) -> None:
    found = lanes_of(shape)
    wanted = np.random.default_rng(seed).normal(0, 90, (5, int(np.prod(shape))))
    codes = found.nearest(wanted)
    low, high = found.box(codes)
    assert ((low <= codes) & (codes <= high)).all()
    np.testing.assert_array_equal(found.nearest(codes), codes)


def test_what_is_too_much_is_taken_from_both_alike() -> None:
    found = lanes_of((2,))
    np.testing.assert_array_equal(found.nearest(np.array([[100.0, 60.0]])), [[84, 44]])
    np.testing.assert_array_equal(found.nearest(np.array([[-127.0, -127.0]])), [[-64, -64]])
    np.testing.assert_array_equal(found.nearest(np.array([[127.0, -127.0]])), [[127, -127]])


def quantized_product(weights: Array, x: Array, largest: float, **attrs: int) -> onnx.ModelProto:
    """A Conv or Gemm of codes as they are, scales 1; its output in steps of `largest` / 100."""
    channels = len(weights)
    operator = "Conv" if weights.ndim > 2 else "Gemm"
    steps = np.array(max(largest / 100, 1), np.float32)
    nodes = [
        node("QuantizeLinear", "x one zero", "q"),
        node("DequantizeLinear", "q one zero", "d"),
        node("DequantizeLinear", "w ones zeros", "v", axis=0),
        node(operator, "d v", "p", **(attrs if operator == "Conv" else {"transB": 1})),
        node("QuantizeLinear", "p steps middle", "r"),
        node("DequantizeLinear", "r steps middle"),
    ]
    constants: dict[str, Array] = {
        "one": np.array(1, np.float32),
        "zero": np.array(0, np.uint8),
        "w": weights,
        "ones": np.ones(channels, np.float32),
        "zeros": np.zeros(channels, np.int8),
        "steps": steps,
        "middle": np.array(128, np.uint8),
    }
    return make_model(nodes, {"x": list(x.shape)}, ["y"], constants, opset=17)


@pytest.mark.parametrize(
    ("channels", "kernel", "groups"),
    [(3, (3, 3), 1), (4, (3, 3), 1), (5, (2, 2), 1), (16, (1, 1), 1), (1, (5, 5), 1), (8, (3, 3), 2), (6, (3, 3), 2)]
    + [(2, (3, 3), 2), (4, (3,), 1), (3, (5,), 1), (3, (2, 2, 2), 1)],
)
def test_onnxruntimes_convolutions_add_these_pairs(channels: int, kernel: tuple[int, ...], groups: int) -> None:
    """Every two weights of a filter are the only ones that are not 0, one pair for each filter."""
    inside = channels // groups
    size = inside * int(np.prod(kernel))
    chosen = list(itertools.combinations(range(size), 2))
    weights = np.zeros((groups * len(chosen), size), np.int8)
    for i, pair in enumerate(chosen):
        weights[i :: len(chosen), list(pair)] = 127
    weights = weights.reshape(-1, inside, *kernel)
    x = np.random.default_rng(0).integers(200, 256, (1, channels, *(k + 2 for k in kernel))).astype(np.float32)
    product = saturating_product if saturates() else exact_product
    parts = [
        product(patches(x[0, g * inside : (g + 1) * inside].astype(np.uint8), kernel), columns(part))
        for g, part in enumerate(np.split(weights, groups))
    ]
    expected = np.concatenate(parts, axis=1).T
    session = Session(quantized_product(weights, x, float(expected.max()), group=groups).SerializeToString())
    found = session.run({"x": x})["y"].reshape(expected.shape)
    np.testing.assert_allclose(found, expected, atol=expected.max() / 100)


@pytest.mark.parametrize("size", [3, 16, 31])
@pytest.mark.parametrize("samples", [1, 7])
def test_onnxruntimes_matrix_products_add_these_pairs(size: int, samples: int) -> None:
    chosen = list(itertools.combinations(range(size), 2))
    weights = np.zeros((len(chosen), size), np.int8)
    for i, pair in enumerate(chosen):
        weights[i, list(pair)] = -127
    x = np.random.default_rng(0).integers(200, 256, (samples, size)).astype(np.float32)
    product = saturating_product if saturates() else exact_product
    expected = product(x.astype(np.uint8), weights.T)
    session = Session(quantized_product(weights, x, float(-expected.min())).SerializeToString())
    np.testing.assert_allclose(session.run({"x": x})["y"], expected, atol=-expected.min() / 100)


def test_depthwise_kernels_do_not_saturate() -> None:
    weights = np.full((16, 1, 3, 3), 127, np.int8)
    x = np.full((1, 16, 5, 5), 255, np.float32)
    expected = 9 * 127 * 255
    found = Session(quantized_product(weights, x, expected, group=16).SerializeToString()).run({"x": x})["y"]
    np.testing.assert_allclose(found, expected, rtol=0.01)


def test_the_oracle_saturates_as_the_instruction_does() -> None:
    """255 x 127 twice is 64,770, of which 16 bits hold 32,767; of -64,770 they hold -32,768."""
    ones = np.array([[255, 255]], np.uint8)
    assert saturating_product(ones, np.array([[127], [127]], np.int8)) == 32767
    assert saturating_product(ones, np.array([[-127], [-127]], np.int8)) == -32768
    assert saturating_product(ones, np.array([[127], [-127]], np.int8)) == 0
    assert saturating_product(ones[:, :1], np.array([[127]], np.int8)) == 32385
