"""Which tensors of a file stand for which of the float model, whatever form the file has."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnx_cbq.errors import ModelError
from onnx_cbq.evidence.workload import prepare
from onnx_cbq.graph.load import load
from onnx_cbq.model import Array
from onnx_cbq.targets.reading import QdqFile
from onnx_cbq.verification.pairing import Pairs, find_pairs, names_of, renamed
from tests.conftest import random_set
from tests.graphs import make_model, node
from tests.qdq import grid_of, quantized_by_hand, rounded_weight

RANDOM = np.random.default_rng(0)
CONSTANTS: dict[str, Array] = {
    "w": RANDOM.standard_normal((4, 3, 3, 3)).astype(np.float32),
    "t": RANDOM.standard_normal((4, 6, 2, 2)).astype(np.float32),
    "g": RANDOM.standard_normal((5, 6)).astype(np.float32),
    "size": RANDOM.uniform(0.5, 2, (1, 4, 1, 1)).astype(np.float32),
    "more": RANDOM.standard_normal((1, 4, 1, 1)).astype(np.float32),
}


def net() -> onnx.ModelProto:
    """A Conv that something is multiplied with and added to, a ConvTranspose and a Gemm."""
    nodes = [
        node("Conv", "x w", "p"),
        node("Mul", "p size", "n"),
        node("Add", "n more", "a"),
        node("Relu", "a", "r"),
        node("ConvTranspose", "r t", "q", strides=[2, 2]),
        node("GlobalAveragePool", "q", "m"),
        node("Flatten", "m", "f"),
        node("Gemm", "f g", transB=1),
    ]
    return make_model(nodes, {"x": ["N", 3, 6, 6]}, ["y"], CONSTANTS, opset=17)


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    work = prepare(net(), random_set((3, 6, 6), classes=5))
    file = QdqFile(load(quantized_by_hand(net(), {"x": grid_of(np.array([-4.0, 4.0]))})))
    return find_pairs(work.model, work.layers, file, work.example.feeds)


def test_what_was_left_unfolded_belongs_to_the_layer(pairs: Pairs) -> None:
    conv, transposed, gemm = pairs.pairs
    assert (conv.product.node.output[0], conv.made, conv.is_direct) == ("p", "a", False)
    assert (transposed.made, gemm.made) == ("q", "y")
    assert (transposed.is_direct, gemm.is_direct) == (True, True)
    assert (pairs.alone, pairs.alone_in_file) == ((), ())
    assert conv.read == "x_dq"


def test_weights_are_rows_of_channels_in_either_form(pairs: Pairs) -> None:
    """Gemm's may be transposed; those of a ConvTranspose lie the other way round."""
    for pair, name in zip(pairs.pairs, "wtg", strict=True):
        rows = pair.rows_of(pairs.weight(pair))
        weight = rounded_weight(CONSTANTS[name])
        axis = 1 if name == "t" else 0
        expected = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
        assert rows is not None
        np.testing.assert_allclose(rows, expected, rtol=1e-6)


def test_names_are_those_of_layers(pairs: Pairs) -> None:
    assert names_of(pairs.pairs) == [pair.layer.name for pair in pairs.pairs]
    again = [*pairs.pairs, pairs.pairs[0]]
    assert names_of(again) == [again[0].use.output, *names_of(again[1:3]), again[0].use.output]


def test_samples_are_given_by_name_else_by_place() -> None:
    two = load(make_model([node("Add", "a b")], {"a": [1], "b": [1]}, ["y"]))
    one, other = np.ones(1, np.float32), np.full(1, 2, np.float32)
    assert renamed({"b": other, "a": one}, two) == {"a": one, "b": other}
    assert renamed({"first": one, "second": other}, two) == {"a": one, "b": other}
    with pytest.raises(ModelError, match="the quantized model takes 2 inputs, the float model 1"):
        renamed({"a": one}, two)
    half = load(make_model([node("Relu", "a")], {"a": [1]}, ["y"], dtypes={"a": np.float16}))
    assert renamed({"a": one}, half)["a"].dtype == np.float16
    codes = np.array([1], np.int64)
    assert renamed({"a": codes}, half)["a"] is codes
