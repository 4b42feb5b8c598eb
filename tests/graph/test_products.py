"""Products written as Einsum, or with a vector, become layers; the others stay what they are."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_cbq.graph.layers import find_layers
from onnx_cbq.graph.load import load
from onnx_cbq.graph.normalise import normalise, outputs_of
from onnx_cbq.graph.passes.products import products_to_matmul
from onnx_cbq.graph.shapes import Example
from onnx_cbq.model import Array
from tests.graphs import make_model, node


def numbers(*shape: int) -> Array:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


# Equation, shape of x behind the samples, shape of the weight, whether the weight comes first, numbers per channel.
PRODUCTS = {
    "matrix": ("btk,kn->btn", (4, 5), (5, 6), False, 5),
    "weight-first": ("nk,btk->btn", (4, 5), (6, 5), True, 5),
    "turned": ("btk,nk->bnt", (4, 5), (6, 5), False, 5),
    "heads-out": ("btk,hdk->bhtd", (4, 5), (2, 3, 5), False, 5),
    "heads-in": ("bthd,hdn->btn", (4, 2, 3), (2, 3, 7), False, 6),
    "a-matrix-for-each": ("bthk,hkn->bthn", (4, 2, 5), (2, 5, 3), False, 10),
    "a-matrix-for-each-in-front": ("hkn,bhtk->bhtn", (2, 4, 5), (2, 5, 3), True, 10),
    "vector": ("btk,k->bt", (4, 5), (5,), False, 5),
    "rest": ("...k,kn->...n", (4, 5), (5, 6), False, 5),
    "no-arrow": ("btk,kn", (4, 5), (5, 6), False, 5),
    "samples-alone": ("bk,kn->bn", (5,), (5, 6), False, 5),
}
KEPT = {
    "no-sum": ("btk,k->btk", (4, 5), (5,)),
    "diagonal": ("btt,tn->bn", (4, 4), (4, 6)),
    "sum-of-one-operand": ("btk,kn->bn", (4, 5), (5, 6)),
    "ellipsis-of-the-weight": ("bk,...kn->b...n", (5,), (2, 5, 6)),
}


@pytest.mark.parametrize("size", [3, "N"])
@pytest.mark.parametrize(("equation", "shape", "weight", "first", "per_channel"), PRODUCTS.values(), ids=PRODUCTS)
def test_a_product_is_a_layer_and_gives_the_same(
    equation: str, shape: tuple[int, ...], weight: tuple[int, ...], first: bool, per_channel: int, size: int | str
) -> None:
    """An axis taken for another has the same shape here and there."""
    operands = "w x" if first else "x w"
    nodes = [node("Einsum", operands, equation=equation)]
    proto = make_model(nodes, {"x": [size, *shape]}, ["y"], {"w": numbers(*weight)})
    model, example = load(proto), Example({"x": numbers(3, *shape)})
    found = products_to_matmul(model, example)
    assert not any(one.op_type == "Einsum" for one in found.nodes)
    for value, expected in zip(outputs_of(found, example), outputs_of(model, example), strict=True):
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-5)
    normalised = normalise(model, example)
    assert normalised.notes == ()
    layers = find_layers(normalised.model, example.shapes(normalised.model))
    assert [(layer.size, layer.weights_per_channel) for layer in layers] == [(int(np.prod(weight)), per_channel)]
    assert layers.left_float == ()


@pytest.mark.parametrize(("equation", "shape", "weight"), KEPT.values(), ids=KEPT)
def test_what_is_no_product_of_matrices_stays(equation: str, shape: tuple[int, ...], weight: tuple[int, ...]) -> None:
    """A rewrite that does not hold would be refused by its check, with a note that nobody can act on."""
    nodes = [node("Einsum", "x w", equation=equation)]
    proto = make_model(nodes, {"x": ["N", *shape]}, ["y"], {"w": numbers(*weight)})
    model = load(proto)
    assert products_to_matmul(model, Example({"x": numbers(3, *shape)})) is model


@pytest.mark.parametrize(
    ("operands", "shape"), [("x w", (4, 5)), ("w x", (5, 4)), ("x w", (2, 4, 5)), ("w x", (2, 5, 4))]
)
def test_a_product_with_a_vector_is_a_layer_of_one_channel(operands: str, shape: tuple[int, ...]) -> None:
    """It has one output, which is a channel as good as any."""
    proto = make_model([node("MatMul", operands)], {"x": ["N", *shape]}, ["y"], {"w": numbers(5)})
    model, example = load(proto), Example({"x": numbers(3, *shape)})
    normalised = normalise(model, example)
    for value, expected in zip(outputs_of(normalised.model, example), outputs_of(model, example), strict=True):
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-5)
    layers = find_layers(normalised.model, example.shapes(normalised.model))
    assert [(layer.channels, layer.size) for layer in layers] == [(1, 5)]
