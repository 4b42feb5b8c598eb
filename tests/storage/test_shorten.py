"""Short names change nothing that a user sees: inputs, outputs and values stay."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from onnx_cbq.model import Model
from onnx_cbq.runtime import Session
from onnx_cbq.storage.shorten import shorten
from tests.graphs import make_model, node

FEEDS = {"a": np.random.default_rng(1).standard_normal((1, 3, 9, 9)).astype(np.float32)}


def conv_model() -> Model:
    """A Conv that states every default, with a pool that states some, and an input that has a short name already."""
    attributes = {"strides": [1, 1], "dilations": [1, 1], "group": 1, "kernel_shape": [3, 3], "auto_pad": "NOTSET"}
    proto = make_model(
        [
            node("Conv", "a a_long_weight_name", "first/conv/output", pads=[1, 1, 1, 1], **attributes),
            node("MaxPool", "first/conv/output", "pooled", kernel_shape=[2, 2], strides=[2, 2], pads=[0, 0, 0, 0]),
            node("Relu", "pooled", "b"),
        ],
        {"a": [1, 3, 9, 9]},
        ["b"],
        {"a_long_weight_name": np.random.default_rng(0).standard_normal((40, 3, 3, 3)).astype(np.float32)},
    )
    return Model.from_proto(proto)


def test_outputs_and_their_names_stay() -> None:
    model = conv_model()
    short = shorten(model)
    np.testing.assert_array_equal(Session(short).run(FEEDS)["b"], Session(model).run(FEEDS)["b"])


def test_what_states_a_default_goes_and_the_rest_stays() -> None:
    conv, pool, _ = shorten(conv_model()).nodes
    assert [a.name for a in conv.attribute] == ["pads"]
    assert sorted(a.name for a in pool.attribute) == ["kernel_shape", "strides"]
    assert not conv.name


def test_new_names_are_short_and_never_those_of_inputs_and_outputs() -> None:
    """The input is called "a", which is the first short name: taken twice, the graph would read the wrong tensor."""
    short = shorten(conv_model())
    names = [name for node in short.nodes for name in (*node.input, *node.output)]
    assert max(map(len, names)) == 1
    assert len({name for node in short.nodes for name in node.output}) == 3
    assert short.nodes[0].input[0] == "a"


def test_names_that_a_subgraph_reads_stay() -> None:
    """A branch sees the tensors around it by name; renamed ones would be missing there."""
    branches = {
        name: helper.make_graph(
            [node(operator, "outer/value", f"{name}_out")],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)],
        )
        for name, operator in (("then_branch", "Relu"), ("else_branch", "Neg"))
    }
    proto = make_model(
        [node("Abs", "x", "outer/value"), node("If", "flag", "y", **branches)],
        {"x": [2], "flag": []},
        ["y"],
        dtypes={"flag": np.bool_},
    )
    model = Model.from_proto(proto)
    feeds = {"x": np.array([-1.0, 2.0], np.float32), "flag": np.zeros((), np.bool_)}
    np.testing.assert_array_equal(Session(shorten(model)).run(feeds)["y"], [-1.0, -2.0])
