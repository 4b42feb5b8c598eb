"""Functions are inlined, and a file of a few kilobytes cannot make a graph of millions of nodes of it."""

from __future__ import annotations

import time

import numpy as np
import onnx
import pytest
from onnx import helper

from onnx_cbq.errors import ConfigError, ModelError
from onnx_cbq.graph.load import load
from onnx_cbq.runtime import Session
from onnx_cbq.system.allowance import FACTOR
from tests.graphs import make_model, node

IDS = [helper.make_opsetid("", 18), helper.make_opsetid("l", 1)]


def calls(name: str, inputs: str, outputs: str) -> onnx.NodeProto:
    return helper.make_node(name, inputs.split(), outputs.split(), domain="l")


def model_with(functions: list[onnx.FunctionProto], first: str) -> onnx.ModelProto:
    nodes = [calls(first, "x", "f"), node("MatMul", "f w")]
    model = make_model(nodes, {"x": ["N", 4]}, ["y"], {"w": np.eye(4, dtype=np.float32)})
    model.functions.extend(functions)
    model.opset_import.append(helper.make_opsetid("l", 1))
    return model


def doubling(levels: int) -> onnx.ModelProto:
    """Each function calls the next twice."""
    functions = [
        helper.make_function(
            "l", f"F{i}", ["X"], ["Y"], [calls(f"F{i + 1}", "X", "t"), calls(f"F{i + 1}", "t", "Y")], IDS
        )
        for i in range(levels)
    ]
    last = helper.make_function("l", f"F{levels}", ["X"], ["Y"], [node("Neg", "X", "Y")], IDS)
    return model_with([*functions, last], "F0")


@pytest.mark.parametrize("levels", [14, 25, 2000])
def test_what_would_expand_beyond_measure_is_refused_first(levels: int) -> None:
    began = time.perf_counter()
    with pytest.raises(ModelError, match=r"its functions expand to .* nodes, expected at most \d+ "):
        load(doubling(levels))
    assert time.perf_counter() - began < 2


def test_the_environment_moves_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = doubling(6)
    assert len(load(model).nodes) == 64 + 1
    monkeypatch.setenv(FACTOR, "0.005")
    with pytest.raises(ModelError, match="expand to 65 nodes, expected at most 50 "):
        load(model)
    monkeypatch.setenv(FACTOR, "much")
    with pytest.raises(ConfigError, match="ONNX_CBQ_ALLOWANCE: expected a number above 0"):
        load(model)


@pytest.mark.parametrize("called", ["F", "G"])
def test_a_function_that_calls_itself_is_refused(called: str) -> None:
    functions = [
        helper.make_function("l", "F", ["X"], ["Y"], [calls(called, "X", "Y")], IDS),
        helper.make_function("l", "G", ["X"], ["Y"], [calls("F", "X", "Y")], IDS),
    ]
    with pytest.raises(ModelError, match="calls itself"):
        load(model_with(functions, "F"))


def test_a_call_in_a_branch_counts() -> None:
    bomb = doubling(14)
    branch = helper.make_graph([calls("F0", "X", "b")], "b", [], [helper.make_empty_tensor_value_info("b")])
    choice = helper.make_node("If", ["c"], ["Y"], then_branch=branch, else_branch=branch)
    bomb.functions.append(helper.make_function("l", "Choice", ["X", "c"], ["Y"], [choice], IDS))
    bomb.graph.node[0].CopyFrom(calls("Choice", "x c", "f"))
    bomb.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1, bool), "c"))
    with pytest.raises(ModelError, match="its functions expand to"):
        load(bomb)


def test_a_function_of_an_earlier_operator_set_is_inlined() -> None:
    body = [helper.make_node("Squeeze", ["X"], ["s"], axes=[0]), helper.make_node("Unsqueeze", ["s"], ["Y"], axes=[0])]
    function = helper.make_function("l", "F", ["X"], ["Y"], body, [helper.make_opsetid("", 11)])
    model = load(model_with([function], "F"))
    assert [n.op_type for n in model.nodes if n.op_type != "Constant"] == ["Squeeze", "Unsqueeze", "MatMul"]
    x = np.ones((1, 4), np.float32)
    np.testing.assert_array_equal(Session(model).run({"x": x})["y"], x)
