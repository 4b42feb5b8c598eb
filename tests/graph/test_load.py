"""Everything that can be wrong with a model file, and the forms of a right one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnx_cbq.errors import ModelError
from onnx_cbq.graph.layers import find_layers
from onnx_cbq.graph.load import LOWEST_OPSET, load, raise_opset
from onnx_cbq.graph.shapes import Example
from onnx_cbq.model import INLINE_BYTES
from onnx_cbq.runtime import Session
from tests.graphs import make_model, node

WEIGHT = np.random.default_rng(0).standard_normal((16, INLINE_BYTES // 16)).astype(np.float32)
FEEDS = {"x": np.ones((2, 16), np.float32)}
EXPECTED = FEEDS["x"] @ WEIGHT


def matmul(opset: int = 18, weight: np.ndarray = WEIGHT) -> onnx.ModelProto:
    return make_model([node("MatMul", "x w")], {"x": ["N", 16]}, ["y"], {"w": weight}, opset=opset)


def save_external(folder: Path, location: str = "weights.bin") -> Path:
    path = folder / "model.onnx"
    onnx.save(matmul(), path, save_as_external_data=True, location=location, size_threshold=0)
    return path


def test_path_and_proto_load_alike(tmp_path: Path) -> None:
    onnx.save(matmul(), tmp_path / "model.onnx")
    for source in (matmul(), tmp_path / "model.onnx", str(tmp_path / "model.onnx")):
        np.testing.assert_allclose(Session(load(source)).run(FEEDS)["y"], EXPECTED, rtol=1e-5)


def test_external_data_is_mapped_not_read(tmp_path: Path) -> None:
    """A model of many gigabytes has to load without being copied into memory."""
    model = load(save_external(tmp_path))
    base = model.weights["w"]
    while not isinstance(base, np.memmap):
        assert base.base is not None
        base = base.base
    np.testing.assert_allclose(Session(model).run(FEEDS)["y"], EXPECTED, rtol=1e-5)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "not an ONNX model: it has no nodes"),
        (b"this is no protobuf at all", "not an ONNX model, or cut short"),
        (matmul().SerializeToString()[:-100], "not an ONNX model, or cut short"),
        (onnx.ModelProto().SerializeToString(), "not an ONNX model: it has no nodes"),
    ],
    ids=["empty", "text", "truncated", "no-graph"],
)
def test_broken_files_are_explained(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=expected):
        load(path)


def test_missing_file_and_folder_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        load(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="got a folder"):
        load(tmp_path)


def outside(path: Path) -> None:
    (path.parent.parent / "secret.bin").write_bytes(b"\0" * WEIGHT.nbytes)
    relocate(path, "../secret.bin")


def absolute(path: Path) -> None:
    relocate(path, str(path.parent.parent / "weights.bin"))


def through_a_link(path: Path) -> None:
    """The folder is left by a link in the middle of the location."""
    (path.parent.parent / "secret").mkdir()
    (path.parent / "weights.bin").rename(path.parent.parent / "secret" / "weights.bin")
    (path.parent / "elsewhere").symlink_to(path.parent.parent / "secret")
    relocate(path, "elsewhere/weights.bin")


def short(path: Path) -> None:
    (path.parent / "weights.bin").write_bytes(b"\0" * 100)


def relocate(path: Path, location: str) -> None:
    proto = onnx.load(path, load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    path.write_bytes(proto.SerializeToString())


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (outside, "points outside the model's folder"),
        (absolute, "points outside the model's folder"),
        (through_a_link, "points outside the model's folder"),
        (short, "does not fit: expected .* got 100"),
        (lambda path: (path.parent / "weights.bin").unlink(), "is missing"),
    ],
    ids=["outside", "absolute", "through-a-link", "short", "missing"],
)
def test_external_data_is_checked(tmp_path: Path, damage: Callable[[Path], None], expected: str) -> None:
    """A hostile model must not make us read a file elsewhere, nor more than there is."""
    folder = tmp_path / "model"
    folder.mkdir()
    path = save_external(folder)
    damage(path)
    with pytest.raises(ModelError, match=expected):
        load(path)


def test_external_data_without_a_folder_is_explained(tmp_path: Path) -> None:
    proto = onnx.load(save_external(tmp_path), load_external_data=False)
    with pytest.raises(ModelError, match="pass the model's path"):
        load(proto)


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 12, 13, 17, 18, 21])
def test_opsets_from_7_on_load(opset: int) -> None:
    model = load(matmul(opset))
    assert model.opset == max(opset, LOWEST_OPSET)
    np.testing.assert_allclose(Session(model).run(FEEDS)["y"], EXPECTED, rtol=1e-5)


def test_raising_the_opset_keeps_weights_outside() -> None:
    """The converter serialises what it is given: weights of 2 GB must not go through it."""
    model = raise_opset(load(matmul(13)), 18)
    assert model.opset == 18
    assert set(model.weights) == {"w"}
    np.testing.assert_allclose(Session(model).run(FEEDS)["y"], EXPECTED, rtol=1e-5)


def test_unknown_opsets_are_explained() -> None:
    with pytest.raises(ModelError, match="opset 6 is too old, expected 7 or later"):
        load(matmul(6))
    with pytest.raises(ModelError, match="opset 99 is later than this version knows"):
        load(matmul(99))


def test_local_functions_are_inlined() -> None:
    """torch's exporter writes modules as functions; their layers have to be found."""
    body = [node("MatMul", "a b", "c"), node("Relu", "c", "d")]
    function = helper.make_function("local", "Linear", ["a", "b"], ["d"], body, [helper.make_opsetid("", 18)])
    proto = matmul()
    proto.graph.node[0].CopyFrom(helper.make_node("Linear", ["x", "w"], ["y"], domain="local"))
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("local", 1))
    model = load(proto)
    assert [n.op_type for n in model.nodes] == ["MatMul", "Relu"]
    np.testing.assert_allclose(Session(model).run(FEEDS)["y"], np.maximum(EXPECTED, 0), rtol=1e-5)


def if_model(branch: list[onnx.NodeProto]) -> onnx.ModelProto:
    graph = helper.make_graph(branch, "branch", [], [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)])
    choice = helper.make_node("If", ["c"], ["y"], then_branch=graph, else_branch=graph)
    return make_model([choice], {"c": [], "x": ["N", 16]}, ["y"], {"w": WEIGHT}, dtypes={"c": np.bool_})


@pytest.mark.parametrize("branch", [node("Neg", "x", "b"), node("MatMul", "x w", "b")], ids=["none", "layer"])
def test_control_flow_is_allowed(branch: onnx.NodeProto) -> None:
    """Layers in branches stay float; whether anything is left to quantize is for whoever looks for layers."""
    model = load(if_model([branch]))
    assert model.nodes[0].op_type == "If"
    feeds = {**FEEDS, "c": np.array(True)}  # noqa: FBT003, an array of one boolean
    assert Session(model).run(feeds)["y"].shape == ((2, 64) if branch.op_type == "MatMul" else (2, 16))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("size", [4, INLINE_BYTES], ids=["inline", "outside"])
def test_weights_that_are_not_finite_are_named(bad: float, size: int) -> None:
    weight = np.ones((16, size // 4), np.float32)
    weight[3, 0] = bad
    with pytest.raises(ModelError, match="weight 'w' holds NaN or infinity"):
        load(matmul(weight=weight))


def test_infinite_mask_is_no_weight() -> None:
    """Attention masks hold -inf on purpose."""
    mask = np.full((16,), -np.inf, np.float32)
    load(make_model([node("Add", "x mask")], {"x": ["N", 16]}, ["y"], {"mask": mask}))


def test_functions_keep_the_defaults_of_their_attributes() -> None:
    """onnx's inliner puts in what a call states, and forgets what the function itself gives."""
    inner = helper.make_node("LeakyRelu", ["a"], ["b"])
    inner.attribute.add(name="alpha", ref_attr_name="alpha", type=onnx.AttributeProto.FLOAT)
    function = helper.make_function(
        "own", "Slope", ["a"], ["b"], [inner], [helper.make_opsetid("", 18)],
        attribute_protos=[helper.make_attribute("alpha", 0.75)],
    )  # fmt: skip
    calls = [helper.make_node("Slope", ["x"], ["m"], domain="own")]
    calls.append(helper.make_node("Slope", ["m"], ["y"], domain="own", alpha=0.5))
    proto = make_model(calls, {"x": ["N", 2]}, ["y"])
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("own", 1))
    found = Session(load(proto)).run({"x": np.array([[-8.0, 8.0]], np.float32)})["y"]
    np.testing.assert_array_equal(found, [[-3.0, 8.0]])


def test_functions_of_another_operator_set_are_inlined_with_their_weights() -> None:
    """The inliner converts them if it knows the type of what they are given, an initializer among it."""
    inner = [helper.make_node("MatMul", ["a", "w"], ["m"]), helper.make_node("HardSigmoid", ["m"], ["b"])]
    function = helper.make_function("own", "Layer", ["a", "w"], ["b"], inner, [helper.make_opsetid("", 13)])
    call = helper.make_node("Layer", ["x", "v"], ["y"], domain="own")
    v = np.arange(12, dtype=np.float32).reshape(4, 3) / 12
    proto = make_model([call], {"x": ["N", 4]}, ["y"], {"v": v})
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("own", 1))
    model = load(proto)
    assert [node.op_type for node in model.nodes] == ["MatMul", "HardSigmoid"]


def test_a_model_of_integers_is_told_what_it_is() -> None:
    """Its products are found, if none that could be a layer."""
    codes = np.ones((4, 3), np.int8)
    nodes = [node("DynamicQuantizeLinear", "x", "q s z"), node("MatMulInteger", "q w z", "i"), node("Cast", "i", to=1)]
    proto = make_model(nodes, {"x": ["N", 4]}, ["y"], {"w": codes})
    model = load(proto)
    with pytest.raises(ModelError, match=r"multiplies integers already \(MatMulInteger\); start from the float model"):
        find_layers(model, Example.made_up(model).shapes(model))


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_bounds_and_fills_that_were_attributes_have_the_type_of_what_they_bound(kind: type) -> None:
    """onnx's converter makes float32 of them, and onnxruntime refuses the mixture."""
    nodes = [node("Clip", "x", "c", min=-0.5, max=0.5), node("Pad", "c", "y", pads=[0, 1, 0, 0], value=2.0)]
    proto = make_model(nodes, {"x": ["N", 2]}, ["y"], dtypes={"x": kind}, opset=10)
    model = load(proto)
    assert model.opset == LOWEST_OPSET
    found = Session(model).run({"x": np.array([[-3, 0.25]], kind)})["y"]
    np.testing.assert_array_equal(found, np.array([[2, -0.5, 0.25]], kind))


@pytest.mark.parametrize("field", ["input", "output"])
def test_types_that_there_are_not_are_damage(field: str) -> None:
    proto = make_model([node("MatMul", "x w")], {"x": ["N", 4]}, ["y"], {"w": np.ones((4, 3), np.float32)})
    getattr(proto.graph, field)[0].type.tensor_type.elem_type = -1
    with pytest.raises(ModelError, match="is declared of the type -1, which there is not"):
        load(proto)


def test_a_size_below_0_is_any_size() -> None:
    """Exporters wrote -1 for it, at which onnx's shape inference of a Slice ends the process."""
    nodes = [node("Relu", "x", "r"), node("Slice", "r starts ends axes", "y")]
    constants = {"starts": np.array([1]), "ends": np.array([7]), "axes": np.array([1])}
    proto = make_model(nodes, {"x": ["N", 9]}, ["y"], constants)
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = -1
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", -2]))
    model = load(proto)
    assert model.inputs[0].shape == (None, None)
    for info in (*model.skeleton.graph.input, *model.skeleton.graph.output):
        assert not info.type.tensor_type.shape.dim[1].HasField("dim_value")
