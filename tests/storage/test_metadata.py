"""The plan that travels in the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from onnx_cbq.errors import ModelError
from onnx_cbq.graph.layers import find_layers
from onnx_cbq.graph.load import load
from onnx_cbq.graph.shapes import Example
from onnx_cbq.model import Model
from onnx_cbq.records import Layers, Plan
from onnx_cbq.storage.metadata import HIGHEST_IR, KEY, read_metadata, with_metadata
from tests.graphs import make_model, node

BITS = {"w": np.array([0, 1, 8, 4], np.int8), "v": np.array([2, 2, 3], np.int8)}


def made(ir_version: int = 8, opset: int = 18) -> onnx.ModelProto:
    proto = make_model(
        [node("Conv", "x w", "a"), node("Conv", "a v")],
        {"x": ["N", 2, 5, 5]},
        ["y"],
        {"w": np.ones((4, 2, 3, 3), np.float32), "v": np.ones((3, 4, 1, 1), np.float32)},
        opset=opset,
    )
    proto.ir_version = ir_version
    return proto


def with_plan(proto: onnx.ModelProto) -> tuple[Model, Layers]:
    model = load(proto)
    layers = find_layers(model, Example.made_up(model).shapes(model))
    return with_metadata(model, layers, Plan(BITS), ("cbq", "1.2.3")), layers


def test_the_plan_is_read_from_the_file_as_it_was_written(tmp_path: Path) -> None:
    model, layers = with_plan(made())
    onnx.save(model.to_proto(), tmp_path / "model.onnx")
    stored = read_metadata(load(tmp_path / "model.onnx"))
    assert stored is not None
    assert (stored.version, stored.method) == ("1.2.3", "cbq")
    # 13 bits over 4 channels of 18 weights, 7 bits over 3 channels of 4 weights.
    assert stored.average_bits == pytest.approx((13 * 18 + 7 * 4) / (4 * 18 + 3 * 4))
    assert list(stored.layers) == [layer.name for layer in layers]
    for layer in layers:
        found = stored.layers[layer.name]
        assert (found.operator, found.shape) == (layer.operator, layer.weight_shape)
        np.testing.assert_array_equal(found.bits, BITS[layer.name])
        assert found.bits.dtype == np.int8


def test_a_model_of_others_has_no_plan() -> None:
    assert read_metadata(load(made())) is None


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "null", '{"version": "1"}', '{"version":"1","method":"m","average_bits":"x","layers":{}}']
    + [
        '{"version":"1","method":"cbq","average_bits":4,"layers":' + layers + "}"
        for layers in ("[]", '{"w":3}', '{"w":["Conv",[1]]}', '{"w":["Conv",[1],"4x"]}', '{"w":["Conv",1,"44"]}')
    ],
)
def test_a_damaged_plan_is_an_error(text: str) -> None:
    proto = made()
    proto.metadata_props.add(key=KEY, value=text)
    with pytest.raises(ModelError, match=r"the plan in the model's metadata is damaged .*; quantize the float model"):
        read_metadata(load(proto))


def test_what_exporters_leave_is_dropped() -> None:
    """Stack traces of the exporter, one per node, are larger than a small model's weights."""
    proto = made()
    proto.graph.doc_string = "documentation"
    proto.metadata_props.add(key="pkg.torch", value="exporter")
    proto.producer_name = "pytorch"
    for entry in (*proto.graph.node, *proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        entry.doc_string = "documentation"
        entry.metadata_props.add(key="stack trace", value="exporter")
    written = with_plan(proto)[0].to_proto()
    assert b"documentation" not in written.SerializeToString()
    assert b"exporter" not in written.SerializeToString()
    assert [entry.key for entry in written.metadata_props] == [KEY]
    assert (written.producer_name, written.producer_version) == ("onnx-cbq", "1.2.3")


@pytest.mark.parametrize(("ir_version", "opset", "expected"), [(8, 18, 8), (12, 18, 10), (10, 21, 10), (11, 23, 11)])
def test_the_ir_version_is_at_most_10_where_the_opset_allows(ir_version: int, opset: int, expected: int) -> None:
    """Older runtimes refuse later ones without need; opset 23 came with IR 11."""
    assert HIGHEST_IR == 10
    assert with_plan(made(ir_version, opset))[0].skeleton.ir_version == expected


def test_what_users_wrote_is_kept() -> None:
    """Programs read class names and strides from a file, and a licence may have to travel with it."""
    proto = made()
    proto.doc_string = "trained by us"
    for key, value in (("names", "{0: 'cat'}"), ("stride", "32"), ("onnx_cbq", "of an earlier run")):
        proto.metadata_props.add(key=key, value=value)
    written = with_plan(proto)[0].to_proto()
    kept = {entry.key: entry.value for entry in written.metadata_props}
    assert (kept["names"], kept["stride"], written.doc_string) == ("{0: 'cat'}", "32", "trained by us")
    assert [entry.key for entry in written.metadata_props].count(KEY) == 1
    assert kept[KEY] != "of an earlier run"


def test_domains_that_onnx_does_not_know_are_no_hindrance() -> None:
    proto = made()
    proto.opset_import.extend([helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("my.lib", 3)])
    written = with_plan(proto)[0].to_proto()
    assert {entry.domain for entry in written.opset_import} == {"", "com.microsoft", "my.lib"}


def test_the_source_keeps_its_metadata() -> None:
    proto = made()
    before = proto.SerializeToString()
    with_plan(proto)
    assert proto.SerializeToString() == before
