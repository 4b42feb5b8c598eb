"""Data beside a model: read from wherever a model may have it, and from nowhere else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from onnx_cbq.errors import ModelError
from onnx_cbq.evidence.workload import size_of
from onnx_cbq.graph.load import data_files, load
from onnx_cbq.model import Array
from onnx_cbq.runtime import Session
from tests.graphs import make_model, node

WEIGHT = np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)
SHIFT = np.arange(4, dtype=np.float32)
FEEDS = {"x": np.ones((2, 16), np.float32)}
EXPECTED = FEEDS["x"] @ WEIGHT + SHIFT


def outside(value: Array | np.ndarray, name: str, location: str = "d.bin", data_type: int | None = None) -> TensorProto:
    """A tensor whose data stands in a file of its own."""
    tensor = numpy_helper.from_array(np.asarray(value), name)
    if data_type is not None:
        tensor.data_type = data_type
    set_external_data(tensor, location)
    tensor.ClearField("raw_data")
    return tensor


def initializer() -> onnx.ModelProto:
    model = make_model([node("MatMul", "x w", "m"), node("Add", "m s")], {"x": ["N", 16]}, ["y"], {"w": WEIGHT})
    model.graph.initializer.append(outside(SHIFT, "s"))
    return model


def constant_node() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Constant", [], ["s"], value=outside(SHIFT, "")),
        node("MatMul", "x w", "m"),
        node("Add", "m s"),
    ]
    return make_model(nodes, {"x": ["N", 16]}, ["y"], {"w": WEIGHT})


def in_branch(*, as_constant: bool) -> onnx.ModelProto:
    info = [helper.make_tensor_value_info("b", TensorProto.FLOAT, [4])]
    if as_constant:
        made = helper.make_node("Constant", [], ["b"], value=outside(SHIFT, ""))
        branch = helper.make_graph([made], "branch", [], info)
    else:
        branch = helper.make_graph([node("Identity", "s", "b")], "branch", [], info, [outside(SHIFT, "s")])
    nodes = [
        node("MatMul", "x w", "m"),
        helper.make_node("If", ["c"], ["i"], then_branch=branch, else_branch=branch),
        node("Add", "m i"),
    ]
    yes = np.array(True)  # noqa: FBT003, an array of one boolean
    return make_model(nodes, {"x": ["N", 16]}, ["y"], {"w": WEIGHT, "c": yes})


def in_function() -> onnx.ModelProto:
    body = [helper.make_node("Constant", [], ["s"], value=outside(SHIFT, "")), node("Add", "a s", "b")]
    function = helper.make_function("local", "Shift", ["a"], ["b"], body, [helper.make_opsetid("", 18)])
    nodes = [node("MatMul", "x w", "m"), helper.make_node("Shift", ["m"], ["y"], domain="local")]
    model = make_model(nodes, {"x": ["N", 16]}, ["y"], {"w": WEIGHT})
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("local", 1))
    return model


def sparse() -> onnx.ModelProto:
    model = make_model([node("MatMul", "x w", "m"), node("Add", "m s")], {"x": ["N", 16]}, ["y"], {"w": WEIGHT})
    entry = model.graph.sparse_initializer.add(dims=[4])
    entry.values.CopyFrom(outside(SHIFT, "s"))
    entry.indices.CopyFrom(numpy_helper.from_array(np.arange(4, dtype=np.int64), ""))
    return model


PLACES: dict[str, Callable[[], onnx.ModelProto]] = {
    "initializer": initializer,
    "constant-node": constant_node,
    "initializer-of-a-branch": lambda: in_branch(as_constant=False),
    "constant-of-a-branch": lambda: in_branch(as_constant=True),
    "function": in_function,
    "sparse": sparse,
}


@pytest.mark.parametrize("place", PLACES)
def test_data_is_read_beside_the_model_and_never_where_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "model" / "m.onnx"
    path.write_bytes(PLACES[place]().SerializeToString())
    (tmp_path / "elsewhere" / "d.bin").write_bytes((1e6 * SHIFT).tobytes())
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=r"is missing: expected the file 'd\.bin' beside the model"):
        load(path)
    (path.parent / "d.bin").write_bytes(SHIFT.tobytes())
    np.testing.assert_allclose(Session(load(path)).run(FEEDS)["y"], EXPECTED, rtol=1e-5)
    assert data_files(path) == (path.parent / "d.bin",)
    assert size_of(path) == path.stat().st_size + SHIFT.nbytes


def hub(folder: Path) -> Path:
    """A model as the cache of a hub has it: names are links to files named by their hash."""
    snapshot, blobs = folder / "snapshots" / "1", folder / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "1f3a").write_bytes(initializer().SerializeToString())
    (blobs / "77be").write_bytes(SHIFT.tobytes())
    (snapshot / "m.onnx").symlink_to("../../blobs/1f3a")
    (snapshot / "d.bin").symlink_to("../../blobs/77be")
    return snapshot / "m.onnx"


def test_links_of_a_cache_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = hub(tmp_path)
    monkeypatch.chdir(path.parent)
    for spelling in (path, Path("m.onnx"), Path("../1/m.onnx")):
        np.testing.assert_allclose(Session(load(spelling)).run(FEEDS)["y"], EXPECTED, rtol=1e-5)
    assert size_of(path) == path.stat().st_size + SHIFT.nbytes


def test_a_link_to_a_model_finds_the_data_beside_the_model(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "m.onnx").write_bytes(initializer().SerializeToString())
    (tmp_path / "real" / "d.bin").write_bytes(SHIFT.tobytes())
    (tmp_path / "link.onnx").symlink_to("real/m.onnx")
    np.testing.assert_allclose(Session(load(tmp_path / "link.onnx")).run(FEEDS)["y"], EXPECTED, rtol=1e-5)


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("../77be", "points outside the model's folder"),
        ("../../blobs/77be", "points outside the model's folder"),
        ("sub/d.bin", "points outside the model's folder"),
        ("", "points outside the model's folder: ''"),
        ("no/../d.bin", "points outside the model's folder"),
        ("loop", "is missing"),
        ("fifo", "is missing"),
        ("n" * 300, "is missing"),
        ("a\0b", "points outside the model's folder"),
        (".", "is missing"),
    ],
)
def test_other_ways_out_of_the_folder_are_refused(tmp_path: Path, location: str, expected: str) -> None:
    """A link in a folder below it, unlike one that stands beside the model, leads nowhere else."""
    path = hub(tmp_path)
    (path.parent / "sub").mkdir()
    (path.parent / "sub" / "d.bin").symlink_to(tmp_path / "blobs" / "77be")
    (path.parent / "loop").symlink_to("loop")
    os.mkfifo(path.parent / "fifo")
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[1].external_data[0].value = location
    path.unlink()
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=expected):
        load(path)


def test_strings_in_a_file_are_refused(tmp_path: Path) -> None:
    """Reading them would end the interpreter."""
    model = initializer()
    model.graph.initializer[1].data_type = TensorProto.STRING
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "d.bin").write_bytes(SHIFT.tobytes())
    with pytest.raises(ModelError, match="strings cannot lie in a file"):
        load(tmp_path / "m.onnx")


def test_a_small_file_cannot_stand_for_many_large_tensors(tmp_path: Path) -> None:
    """Mapped they take nothing, but each would be copied where it is used."""
    model, size = initializer(), 64 << 20
    for i in range(9):
        tensor = model.graph.initializer.add(name=f"t{i}", data_type=TensorProto.INT8, dims=[size])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="d.bin")
    with (tmp_path / "d.bin").open("wb") as file:
        file.truncate(size)
    model.graph.initializer[1].external_data.add(key="length", value=str(SHIFT.nbytes))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"tensors claim \d+ bytes of files that have \d+"):
        load(tmp_path / "m.onnx")


SMALL_TYPES: dict[str, tuple[type, str]] = {
    "bfloat16": (ml_dtypes.bfloat16, "Cast"),
    "float8e4m3fn": (ml_dtypes.float8_e4m3fn, "Cast"),
    "float8e5m2": (ml_dtypes.float8_e5m2, "Cast"),
    "int4": (ml_dtypes.int4, "DequantizeLinear"),
    "uint4": (ml_dtypes.uint4, "DequantizeLinear"),
}


@pytest.mark.parametrize("inside", [True, False], ids=["inside", "in-a-file"])
@pytest.mark.parametrize("kind", SMALL_TYPES)
def test_types_that_numpy_lacks_load(tmp_path: Path, kind: str, inside: bool) -> None:
    """Above the size at which weights are handed to onnxruntime as arrays, which it takes of numpy's types only."""
    dtype, operator = SMALL_TYPES[kind]
    values: Array = np.random.default_rng(0).integers(0, 8, (64, 41)).astype(np.float32).astype(dtype)
    weight = numpy_helper.from_array(values, "q")
    attributes: dict[str, Any] = {"to": TensorProto.FLOAT} if operator == "Cast" else {}
    widen = helper.make_node(operator, ["q", "one"][: 1 + (operator != "Cast")], ["w"], **attributes)
    constants: dict[str, Array] = {} if operator == "Cast" else {"one": np.array(1, np.float32)}
    model = make_model([widen, node("MatMul", "x w")], {"x": ["N", 64]}, ["y"], constants, opset=21)
    if not inside:
        (tmp_path / "d.bin").write_bytes(weight.raw_data)
        set_external_data(weight, "d.bin")
        weight.ClearField("raw_data")
    model.graph.initializer.append(weight)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    x = np.eye(64, dtype=np.float32)
    found = Session(load(tmp_path / "m.onnx")).run({"x": x})["y"]
    np.testing.assert_array_equal(found, values.astype(np.float32))
