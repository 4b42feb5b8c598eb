"""What becomes of a tensor's numbers, against the same operators in numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnx_cbq.graph.responses import find_response
from onnx_cbq.model import Array, Model

Nodes = Sequence[NodeProto]
X = np.linspace(-9, 9, 181, dtype=np.float32)


def model_of(*nodes: NodeProto, outputs: Sequence[str] = ("y",)) -> Model:
    """x -> MaxPool -> a, some nodes behind a, and y."""
    graph = helper.make_graph(
        [helper.make_node("MaxPool", ["x"], ["a"], kernel_shape=[1, 1]), *nodes],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 2, 2])],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [
            numpy_helper.from_array(np.array(3, np.float32), "three"),
            numpy_helper.from_array(np.array(6, np.float32), "six"),
            numpy_helper.from_array(np.full((1, 1, 1, 1), 0.2, np.float32), "slope"),
            numpy_helper.from_array(np.array(0, np.float32), "zero"),
            numpy_helper.from_array(np.ones((1, 4, 1, 1), np.float32), "channels"),
        ],
    )
    return Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def node(kind: str, reads: str, makes: str) -> NodeProto:
    return helper.make_node(kind, reads.split(), [makes])


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


HARD_SWISH = (
    node("Add", "a three", "b"),
    node("Clip", "b zero six", "c"),
    node("Mul", "a c", "d"),
    node("Div", "d six", "e"),
    node("GlobalAveragePool", "e", "y"),
)


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        (
            (node("Sigmoid", "a", "b"), node("Mul", "a b", "c"), node("GlobalAveragePool", "c", "y")),
            lambda x: x * sigmoid(x),
        ),
        ((node("Sigmoid", "a", "b"), node("Mul", "b x", "y")), sigmoid),
        (HARD_SWISH, lambda x: x * np.clip(x + 3, 0, 6) / 6),
        ((node("Tanh", "a", "y"),), np.tanh),
        ((node("PRelu", "a slope", "y"),), lambda x: np.where(x < 0, 0.2 * x, x)),
    ],
    ids=["silu", "gate", "hard swish", "output", "slope"],
)
def test_it_is_what_others_read(nodes: Nodes, expected: Callable[[Array], Array]) -> None:
    response = find_response(model_of(*nodes), "a")
    assert response is not None
    np.testing.assert_allclose(response(X), expected(X.astype(np.float64)), atol=1e-5)
    np.testing.assert_array_equal(response(X.reshape(1, -1)), response(X)[None])


@pytest.mark.parametrize(
    "nodes",
    [
        (node("GlobalAveragePool", "a", "y"),),
        (node("Sigmoid", "a", "b"), node("Concat", "a b", "y")),  # read as it is as well
        (node("Sigmoid", "a", "b"), node("Tanh", "a", "c"), node("Concat", "b c", "y")),
        (node("Mul", "a channels", "y"),),  # another function for each channel
        (node("Softmax", "a", "y"),),
    ],
    ids=["pooled", "read twice", "two functions", "by channel", "softmax"],
)
def test_it_is_none_where_a_number_is_not_all_that_counts(nodes: Nodes) -> None:
    nodes = [helper.make_node("Concat", n.input, n.output, axis=1) if n.op_type == "Concat" else n for n in nodes]
    assert find_response(model_of(*nodes), "a") is None


def test_an_output_of_the_model_counts_as_it_is() -> None:
    assert find_response(model_of(node("Tanh", "a", "y"), outputs=("y", "a")), "a") is None


def test_long_chains_end() -> None:
    """Each tensor of a long chain would look through the rest of it, which grows with the chain's square."""
    chain = [node("Tanh", f"t{i}" if i else "a", f"t{i + 1}") for i in range(100)]
    response = find_response(model_of(*chain, node("Identity", "t100", "y")), "a")
    expected = X
    for _ in range(32):
        expected = np.tanh(expected)
    assert response is not None
    np.testing.assert_allclose(response(X), expected, rtol=1e-4)
