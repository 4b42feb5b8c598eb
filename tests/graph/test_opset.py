"""Old operator sets are raised, and what that makes computes the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from onnx_cbq.errors import ModelError
from onnx_cbq.graph import opset
from onnx_cbq.graph.load import LOWEST_OPSET, load
from onnx_cbq.model import Array, Model
from onnx_cbq.runtime import Session
from tests.graphs import make_model, node

X = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
KERNEL = np.random.default_rng(1).standard_normal((4, 3, 3, 3)).astype(np.float32)
SCALES = np.array([1, 1, 2, 2], np.float32)


def in_branch(operator: str, **attributes: Any) -> onnx.NodeProto:
    branches = [
        helper.make_graph(
            [node(operator, "c", "b", **attributes)], "branch", [], [helper.make_empty_tensor_value_info("b")]
        )
        for _ in range(2)
    ]
    return helper.make_node("If", ["yes"], ["y"], then_branch=branches[0], else_branch=branches[1])


# What stands behind a Conv, in an operator set in which it is written so.
OLD: dict[str, tuple[int, list[onnx.NodeProto], dict[str, Array]]] = {
    "Clip": (7, [node("Clip", "c", min=0.0, max=1.0)], {}),
    "Pad": (7, [node("Pad", "c", pads=[0, 0, 1, 1, 0, 0, 1, 1])], {}),
    "Upsample-7": (7, [node("Upsample", "c", mode="linear", scales=[1.0, 1.0, 2.0, 2.0])], {}),
    "Upsample-9": (9, [node("Upsample", "c s")], {"s": SCALES}),
    "Resize-linear": (10, [node("Resize", "c s", mode="linear")], {"s": SCALES}),
    "Resize-nearest": (10, [node("Resize", "c s")], {"s": np.array([1, 1, 1.6, 3], np.float32)}),
    "Slice": (9, [node("Slice", "c", axes=[2], starts=[1], ends=[4])], {}),
    "Squeeze": (8, [node("GlobalAveragePool", "c", "g"), node("Squeeze", "g", axes=[2, 3])], {}),
    "Dropout": (7, [node("Dropout", "c", ratio=0.5)], {}),
    "BatchNormalization": (7, [node("BatchNormalization", "c v v v v")], {"v": np.ones(4, np.float32)}),
    "Split": (8, [node("Split", "c", "a b", axis=1, split=[1, 3]), node("Concat", "b a", axis=1)], {}),
    "Softmax": (8, [node("Softmax", "c")], {}),
    "branch": (10, [in_branch("ReduceSum", axes=[2], keepdims=0)], {"yes": np.array(1, bool)}),
}


@pytest.mark.parametrize("case", OLD)
def test_raised_models_compute_what_they_did(case: str) -> None:
    version, nodes, constants = OLD[case]
    made = {"w": KERNEL, **constants}
    proto = make_model([node("Conv", "x w", "c"), *nodes], {"x": ["N", 3, 8, 8]}, ["y"], made, opset=version)
    model = load(proto)
    assert model.opset == LOWEST_OPSET
    expected = Session(proto.SerializeToString()).run({"x": X})["y"]
    np.testing.assert_allclose(Session(model).run({"x": X})["y"], expected, rtol=1e-5, atol=1e-5)


def test_other_domains_do_not_stop_the_raise() -> None:
    gelu = helper.make_node("Gelu", ["c"], ["y"], domain="com.microsoft")
    proto = make_model([node("Conv", "x w", "c"), gelu], {"x": ["N", 3, 8, 8]}, ["y"], {"w": KERNEL}, opset=9)
    proto.opset_import.extend([helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("ai.onnx.ml", 1)])
    model = load(proto)
    assert [n.op_type for n in model.nodes] == ["Conv", "Gelu"]
    np.testing.assert_allclose(
        Session(model).run({"x": X})["y"], Session(proto.SerializeToString()).run({"x": X})["y"], rtol=1e-5
    )


def test_a_raise_that_changes_an_output_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: Model, version: int) -> Model:
        raised = raise_opset(model, version)
        return raised.with_constants({"w": 1.01 * raised.weight("w")})

    raise_opset = opset.raise_opset
    monkeypatch.setattr(opset, "raise_opset", wrong)
    proto = make_model([node("Conv", "x w")], {"x": ["N", 3, 8, 8]}, ["y"], {"w": KERNEL}, opset=10)
    with pytest.raises(ModelError, match=r"onnx raises it from opset 10 to 13, but an output then differs by 1\.0e-02"):
        load(proto)


def test_a_model_without_the_default_domain_loads() -> None:
    """Of ai.onnx.ml alone, as converters of trees and linear models write it."""
    scaler = helper.make_node("Scaler", ["x"], ["y"], domain="ai.onnx.ml", offset=[1.0], scale=[2.0])
    proto = make_model([scaler], {"x": ["N", 4]}, ["y"])
    del proto.opset_import[:]
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(Session(load(proto)).run({"x": x})["y"], 0 * x)
