"""A file that is written piece by piece has the bytes that protobuf would write."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from onnx_cbq.model import Model
from onnx_cbq.storage.pieces import pieces
from tests.graphs import make_model, node


def plain() -> onnx.ModelProto:
    """Weights of several types and sizes, whose lengths take one to three bytes, and small constants between them."""
    random = np.random.default_rng(0)
    constants = {
        "w": random.standard_normal((30, 400)).astype(np.float32),
        "shape": np.array([-1, 20, 20]),
        "half": random.standard_normal((20, 40)).astype(np.float16),
        "codes": random.integers(-9, 9, (40, 60)).astype(np.int8),
        "long name " * 30: np.zeros((50, 50)),
        "last": np.array(1, np.float32),
    }
    nodes = [
        node("MatMul", "x w", "a"),
        node("Reshape", "a shape", "b"),
        *(node("Identity", name, f"{name} again") for name in ("half", "codes", "last")),
    ]
    nodes.append(helper.make_node("Identity", ["long name " * 30], ["y"]))
    return make_model(nodes, {"x": ["N", 30]}, ["b", "y", "half again", "codes again", "last again"], constants)


def described() -> onnx.ModelProto:
    """Everything that a model says about itself, before and behind its graph."""
    proto = plain()
    proto.producer_name, proto.producer_version, proto.domain = "someone", "1", "here"
    proto.model_version, proto.doc_string, proto.graph.doc_string = 7, "what it is", "what it does"
    proto.metadata_props.add(key="names", value="a, b")
    proto.opset_import.add(domain="own", version=1)
    twice = helper.make_function("own", "Twice", ["p"], ["q"], [node("Add", "p p", "q")], [helper.make_opsetid("", 18)])
    proto.functions.append(twice)
    return proto


def branching() -> onnx.ModelProto:
    """A branch that reads a weight of the graph around it."""
    proto = plain()
    value = helper.make_empty_tensor_value_info
    branch = [helper.make_graph([node(op, "w", op)], op, [], [value(op)]) for op in ("Neg", "Abs")]
    proto.graph.node.append(helper.make_node("If", ["last"], ["z"], then_branch=branch[0], else_branch=branch[1]))
    proto.graph.output.append(value("z"))
    return proto


@pytest.mark.parametrize("make", [plain, described, branching])
def test_the_bytes_are_those_of_protobuf(make: object) -> None:
    """A length that is off by one, or a field in another place, is a file that nobody can read, or another file."""
    assert callable(make)
    model = Model.from_proto(make())
    assert len(model.weights) >= 4
    content = b"".join(pieces(model))
    assert content == model.to_proto().SerializeToString()
    onnx.load_from_string(content)


def test_weights_are_not_copied() -> None:
    model = Model.from_proto(plain())
    views = [piece for piece in pieces(model) if isinstance(piece, memoryview)]
    assert all(any(np.shares_memory(view, value) for value in model.weights.values()) for view in views)
    assert len(views) == len(model.weights)
