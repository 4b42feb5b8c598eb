from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnx_cbq.model import INLINE_BYTES, FreshNames, Model, is_generated_name, read_only
from onnx_cbq.runtime import Session
from tests.graphs import make_model, node

LARGE = np.arange(INLINE_BYTES, dtype=np.float32).reshape(16, -1)
SMALL = np.array([3.0], np.float32)


@pytest.fixture
def proto() -> onnx.ModelProto:
    return make_model(
        [node("MatMul", "x large", "z"), node("Mul", "z small")],
        {"x": ["N", 16]},
        ["y"],
        {"large": LARGE, "small": SMALL},
    )


def test_split_and_join_give_the_same_model(proto: onnx.ModelProto) -> None:
    """Guards the weights against being lost, renamed or reordered on the way out of the protobuf and back."""
    model = Model.from_proto(proto)
    assert set(model.weights) == {"large"}
    joined = model.to_proto()
    assert {t.name for t in joined.graph.initializer} == {"large", "small"}
    feeds = {"x": np.ones((2, 16), np.float32)}
    expected = (feeds["x"] @ LARGE) * SMALL
    np.testing.assert_allclose(Session(model).run(feeds)["y"], expected, rtol=1e-6)
    np.testing.assert_allclose(Session(Model.from_proto(joined)).run(feeds)["y"], expected, rtol=1e-6)


def test_skeleton_stays_small_and_source_untouched(proto: onnx.ModelProto) -> None:
    before = proto.SerializeToString()
    model = Model.from_proto(proto)
    assert len(model.skeleton.SerializeToString()) < INLINE_BYTES
    assert proto.SerializeToString() == before


@pytest.mark.parametrize(("name", "value"), [("large", LARGE * 2), ("small", SMALL * 2)])
def test_replaced_constants_are_used_and_the_old_model_keeps_its_own(
    proto: onnx.ModelProto, name: str, value: np.ndarray
) -> None:
    """Searches swap weights this way; a swap that leaks into the float model would spoil everything after it."""
    model = Model.from_proto(proto)
    feeds = {"x": np.ones((2, 16), np.float32)}
    before = Session(model).run(feeds)["y"]
    np.testing.assert_allclose(Session(model.with_constants({name: value})).run(feeds)["y"], before * 2, rtol=1e-6)
    np.testing.assert_array_equal(Session(model).run(feeds)["y"], before)


def test_weights_cannot_be_written_to(proto: onnx.ModelProto) -> None:
    model = Model.from_proto(proto)
    with pytest.raises(ValueError, match="read-only"):
        model.weights["large"][0] = 1
    mine = np.zeros(3)
    read_only(mine)
    mine[0] = 1  # the caller's own array stays writable


def test_initializers_that_are_listed_as_inputs_are_none() -> None:
    """Before IR version 4 exporters had to list them; they would be asked for as samples."""
    proto = make_model([node("MatMul", "x w")], {"x": ["N", 16], "w": LARGE.shape}, ["y"], {"w": LARGE})
    proto.ir_version = 3
    assert [spec.name for spec in Model.from_proto(proto).inputs] == ["x"]


def test_fresh_names_do_not_repeat() -> None:
    fresh = FreshNames(["a", "a_1"])
    assert [fresh("a"), fresh("a"), fresh("b"), fresh("b")] == ["a_2", "a_3", "b", "b_1"]


@pytest.mark.parametrize(
    ("name", "made_up"),
    [("onnx::Conv_63", True), ("val_12", True), ("123", True), ("", True), ("layer1.0.weight", False), ("fc", False)],
)
def test_names_that_exporters_make_up_are_known(name: str, made_up: bool) -> None:
    assert is_generated_name(name) is made_up


def test_inputs_that_nothing_reads_are_left_out() -> None:
    """onnxruntime would ask for them; one that is an output itself is read by whoever runs it."""
    proto = make_model([node("Relu", "a")], {"a": ["N"], "b": ["N"], "c": ["N"]}, ["y", "c"])
    model = Model.from_proto(proto)
    assert [spec.name for spec in model.without_idle_inputs().inputs] == ["a", "c"]
    assert [spec.name for spec in model.inputs] == ["a", "b", "c"]
