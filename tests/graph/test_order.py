"""Graphs as files have them: nodes in any order, names twice, cycles, nodes without what their operator needs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from onnx_cbq.errors import ModelError
from onnx_cbq.graph.load import load
from onnx_cbq.runtime import Session
from tests.graphs import make_model, node

W = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
X = np.ones((2, 4), np.float32)


def model(*nodes: onnx.NodeProto, **constants: np.ndarray) -> onnx.ModelProto:
    return make_model(nodes, {"x": ["N", 4]}, ["y"], {"w": W, **constants})


def test_nodes_in_any_order_are_sorted() -> None:
    """onnxruntime does so too; what reads a graph in order must see one."""
    nodes = [node("Add", "m r"), node("Relu", "m", "r"), node("MatMul", "x w", "m")]
    expected = Session(model(*nodes).SerializeToString()).run({"x": X})["y"]
    loaded = load(model(*nodes))
    assert [n.op_type for n in loaded.nodes] == ["MatMul", "Relu", "Add"]
    np.testing.assert_array_equal(Session(loaded).run({"x": X})["y"], expected)


def test_what_a_branch_reads_comes_before_it() -> None:
    branch = helper.make_graph([node("Neg", "m", "b")], "b", [], [helper.make_empty_tensor_value_info("b")])
    choice = helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)
    loaded = load(model(choice, node("MatMul", "x w", "m"), yes=np.array(1, bool)))
    assert [n.op_type for n in loaded.nodes] == ["MatMul", "If"]


def test_nodes_that_give_nothing_and_constants_that_nothing_reads_are_left_out() -> None:
    proto = model(node("MatMul", "x w"), helper.make_node("Relu", ["x"], [""]), unread=np.ones(500, np.float32))
    loaded = load(proto)
    assert [n.op_type for n in loaded.nodes] == ["MatMul"]
    assert [t.name for t in loaded.skeleton.graph.initializer] == ["w"]
    Session(loaded)


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([node("Add", "x y")], r"node 'Add_y' \(Add\) needs what it makes itself"),
        ([node("Add", "x b", "a"), node("Neg", "a", "b"), node("Neg", "b")], "needs what it makes itself"),
        ([node("Neg", "x"), node("Abs", "x")], "there are 2 tensors of the name 'y'"),
        ([node("Neg", "x", "w"), node("Neg", "w")], "there are 2 tensors of the name 'w'"),
        ([node("Neg", "x", "x"), node("Neg", "x")], "2 tensors of the name 'x'|needs what it makes itself"),
        ([node("MatMul", "x")], r"node 'MatMul_y' \(MatMul\) has 1 inputs, expected 2"),
        ([node("Relu", "x w")], r"has 2 inputs, expected 1"),
        ([node("Relu", "x", "a y")], r"has 2 outputs, expected 1"),
        ([node("Gemm", "x w", transB=1.0)], "attribute 'transB' of type FLOAT, expected INT"),
    ],
)
def test_what_cannot_be_a_graph_is_named(nodes: list[onnx.NodeProto], expected: str) -> None:
    with pytest.raises(ModelError, match=expected):
        load(model(*nodes))


def test_optional_results_in_front_may_be_left_out() -> None:
    """A recurrent node whose last state alone is read has "" as its first output."""
    weights = {"i": np.zeros((1, 3, 4), np.float32), "r": np.zeros((1, 3, 3), np.float32)}
    nodes = [
        helper.make_node("Unsqueeze", ["x", "first"], ["s"]),
        helper.make_node("RNN", ["s", "i", "r"], ["", "y"], hidden_size=3),
    ]
    loaded = load(model(*nodes, first=np.array([0], np.int64), **weights))
    assert [n.op_type for n in loaded.nodes] == ["Unsqueeze", "RNN"]
