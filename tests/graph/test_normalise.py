"""Every pass keeps the outputs and, applied twice, changes nothing more; what it is for is gone afterwards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_cbq.graph.load import load
from onnx_cbq.graph.normalise import PASSES, normalise
from onnx_cbq.graph.passes.constants import LARGEST_FOLDED_BYTES
from onnx_cbq.graph.shapes import Example
from onnx_cbq.model import Array, Model
from onnx_cbq.runtime import Session
from tests.graphs import make_model, node

RANDOM = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


def norm_constants(channels: int) -> dict[str, Array]:
    values = {name: normal(channels) for name in ("scale", "bias", "mean")}
    return values | {"var": np.abs(normal(channels)) + 0.1}


def batch_norm_model(layer: onnx.NodeProto, weight: Array, shape: list[int | str], channels: int) -> onnx.ModelProto:
    nodes = [layer, node("BatchNormalization", "z scale bias mean var", epsilon=1e-3)]
    return make_model(nodes, {"x": shape}, ["y"], {"w": weight, "b": normal(channels), **norm_constants(channels)})


IMAGE: list[int | str] = ["N", 4, 6, 6]
BATCH_NORMS = {
    "conv": batch_norm_model(node("Conv", "x w", "z"), normal(6, 4, 3, 3), IMAGE, 6),
    "conv-bias": batch_norm_model(node("Conv", "x w b", "z"), normal(6, 4, 3, 3), IMAGE, 6),
    "conv-grouped": batch_norm_model(node("Conv", "x w b", "z", group=2), normal(6, 2, 3, 3), IMAGE, 6),
    "transpose": batch_norm_model(node("ConvTranspose", "x w b", "z", strides=[2, 2]), normal(4, 6, 3, 3), IMAGE, 6),
    "transpose-grouped": batch_norm_model(node("ConvTranspose", "x w b", "z", group=2), normal(4, 3, 3, 3), IMAGE, 6),
    "gemm": batch_norm_model(node("Gemm", "x w b", "z"), normal(4, 6), ["N", 4], 6),
    "gemm-transposed": batch_norm_model(node("Gemm", "x w b", "z", transB=1), normal(6, 4), ["N", 4], 6),
    "matmul": batch_norm_model(node("MatMul", "x w", "z"), normal(4, 6), ["N", 4], 6),
    "signal": batch_norm_model(node("Conv", "x w b", "z"), normal(6, 4, 3), ["N", 4, 9], 6),
    "matmul-add": make_model(
        [
            node("MatMul", "x w", "m"),
            node("Add", "b m", "z"),
            node("BatchNormalization", "z scale bias mean var"),
        ],
        {"x": ["N", 4]},
        ["y"],
        {"w": normal(4, 6), "b": normal(6), **norm_constants(6)},
    ),
}


def run(model: Model, example: Example) -> list[Array]:
    session = Session(model)
    return [value for feeds in example.runs(model) for value in session.run(feeds).values()]


def assert_same_outputs(before: Model, after: Model, example: Example) -> None:
    for expected, value in zip(run(before, example), run(after, example), strict=True):
        np.testing.assert_allclose(value, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("proto", BATCH_NORMS.values(), ids=BATCH_NORMS)
def test_batch_norm_vanishes_into_the_layer(proto: onnx.ModelProto) -> None:
    model = load(proto)
    example = Example.made_up(model)
    result = normalise(model, example)
    assert result.notes == ()
    assert [n.op_type for n in result.model.nodes] in (["Conv"], ["ConvTranspose"], ["Gemm"])
    assert_same_outputs(model, result.model, example)


NETS = [(name, dynamo) for name in ("depthwise", "vit", "signal", "residual") for dynamo in (True, False)]


@pytest.mark.parametrize(("name", "dynamo"), NETS)
@pytest.mark.parametrize("rewrite", PASSES, ids=lambda rewrite: rewrite.__name__)
def test_each_pass_keeps_outputs_and_is_idempotent(
    exported: Callable[..., onnx.ModelProto],
    name: str,
    dynamo: bool,
    rewrite: Callable[[Model, Example], Model],
) -> None:
    """The contract of every pass, on nets as they are exported (after the passes in front of it)."""
    model = load(exported(name, dynamo=dynamo))
    example = Example.made_up(model)
    before = normalise(model, example, PASSES[: PASSES.index(rewrite)]).model
    after = rewrite(before, example)
    assert_same_outputs(before, after, example)
    assert rewrite(after, example) is after


@pytest.mark.parametrize(("name", "dynamo"), NETS)
def test_exported_nets_lose_what_is_not_needed(
    exported: Callable[..., onnx.ModelProto],
    name: str,
    dynamo: bool,
) -> None:
    model = load(exported(name, dynamo=dynamo))
    example = Example.made_up(model)
    result = normalise(model, example)
    assert result.notes == ()
    assert_same_outputs(model, result.model, example)
    left = Counter(n.op_type for n in result.model.nodes)
    assert not left.keys() & {"Constant", "BatchNormalization", "Identity", "Dropout"}
    if name == "residual":
        assert not left.keys() & {"Shape", "Gather", "Unsqueeze"}  # x.view(x.size(0), -1)


def test_a_pass_that_changes_outputs_is_refused() -> None:
    """The check decides: a wrong rewrite must not reach the user, and must be reported."""
    model = load(BATCH_NORMS["gemm"])
    example = Example.made_up(model)

    def lie(model: Model, example: Example) -> Model:  # noqa: ARG001
        return model.with_constants({"w": model.constant("w") * np.float32(1.01)})  # type: ignore[operator]

    result = normalise(model, example, (lie,))
    assert result.model is model
    assert len(result.notes) == 1
    assert "lie not applied" in result.notes[0]


def test_shared_weight_is_not_scaled_for_the_other_reader() -> None:
    """Batch norm behind one of two layers that share a weight must leave the other's alone."""
    proto = make_model(
        [
            node("Conv", "x w", "z1"),
            node("BatchNormalization", "z1 scale bias mean var", "n"),
            node("Conv", "x w", "z2"),
            node("Add", "n z2"),
        ],
        {"x": IMAGE},
        ["y"],
        {"w": normal(6, 4, 3, 3), **norm_constants(6)},
    )
    model = load(proto)
    example = Example.made_up(model)
    result = normalise(model, example)
    assert result.notes == ()
    assert_same_outputs(model, result.model, example)
    assert [n.op_type for n in result.model.nodes].count("BatchNormalization") == 0


def test_batch_norm_stays_where_the_sum_in_front_is_read_elsewhere() -> None:
    proto = make_model(
        [node("Conv", "x w", "z"), node("BatchNormalization", "z scale bias mean var", "n"), node("Add", "n z")],
        {"x": IMAGE},
        ["y"],
        {"w": normal(6, 4, 3, 3), **norm_constants(6)},
    )
    model = load(proto)
    result = normalise(model, Example.made_up(model))
    assert "BatchNormalization" in [n.op_type for n in result.model.nodes]


def test_graph_output_keeps_its_name_when_identity_goes() -> None:
    proto = make_model(
        [node("Identity", "x", "a"), node("Relu", "a", "b"), node("Dropout", "b", "c"), node("Identity", "c")],
        {"x": ["N", 3]},
        ["y"],
    )
    model = load(proto)
    result = normalise(model, Example.made_up(model)).model
    assert [n.op_type for n in result.nodes] == ["Relu", "Identity"]
    assert result.outputs == ("y",)


def test_huge_constants_stay_computed() -> None:
    """Expand of a scalar must not turn a small file into gigabytes."""
    size = LARGEST_FOLDED_BYTES // 4 + 1
    proto = make_model(
        [node("Expand", "one size", "big"), node("ReduceSum", "big", "s", keepdims=0), node("Add", "x s")],
        {"x": ["N", 3]},
        ["y"],
        {"one": np.array(1, np.float32), "size": np.array([size], np.int64)},
    )
    model = load(proto)
    result = normalise(model, Example.made_up(model)).model
    assert max(value.nbytes for value in result.weights.values()) <= LARGEST_FOLDED_BYTES if result.weights else True


def interface(model: Model) -> dict[str, tuple[int, list[int | str]]]:
    """Name -> element type and sizes of every input and output."""
    graph = model.skeleton.graph
    kinds = {info.name: info.type.tensor_type for info in (*graph.input, *graph.output)}
    return {n: (t.elem_type, [d.dim_value or d.dim_param for d in t.shape.dim]) for n, t in kinds.items()}


UNDECLARED = [node("MatMul", "x w", "z"), node("Relu", "z", "y"), node("ArgMax", "z", "c", axis=1, keepdims=0)]


@pytest.mark.parametrize(
    ("batch", "expected"), [("N", {"y": (1, ["", 5]), "c": (7, [""])}), (2, {"y": (1, [2, 5]), "c": (7, [2])})]
)
def test_outputs_without_a_type_are_declared_as_measured(
    batch: int | str, expected: dict[str, tuple[int, list[int | str]]]
) -> None:
    """Where the batch is free, its axis stays so."""
    model = load(make_model(UNDECLARED, {"x": [batch, 6]}, ["y", "c"], {"w": normal(6, 5)}))
    result = normalise(model, Example.made_up(model)).model
    assert interface(result) == {"x": (1, [batch, 6]), **expected}
    onnx.checker.check_model(result.to_proto(), full_check=True)


def test_sizes_that_more_than_the_batch_may_change_stay_open() -> None:
    model = load(make_model([node("Relu", "x")], {"x": ["N", 4, "T"]}, ["y"]))
    assert interface(normalise(model, Example.made_up(model)).model)["y"] == (1, ["", "", ""])


def test_an_input_without_a_shape_is_declared_by_its_rank() -> None:
    proto = make_model(UNDECLARED, {"x": ["N", 6]}, ["y", "c"], {"w": normal(6, 5)})
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    model = load(proto)
    result = normalise(model, Example({"x": normal(3, 6)})).model
    assert interface(result)["x"] == (1, ["", ""])
    onnx.checker.check_model(result.to_proto(), full_check=True)


def test_what_is_declared_stays_as_it_is() -> None:
    proto = make_model(UNDECLARED[:2], {"x": ["samples", 6]}, ["y"], {"w": normal(6, 5)})
    proto.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", 1, ["samples", "classes"]))
    model = load(proto)
    result = normalise(model, Example.made_up(model)).model
    assert interface(result) == {"x": (1, ["samples", 6]), "y": (1, ["samples", "classes"])}


@pytest.mark.parametrize(("factor", "accepted"), [(1.0, True), (1e30, False)])
def test_a_pass_that_makes_an_output_infinite_is_refused(factor: float, accepted: bool) -> None:
    """Compared with NaN, no error is larger than the tolerance."""
    model = load(make_model([node("MatMul", "x w")], {"x": ["N", 4]}, ["y"], {"w": np.full((4, 6), 1e25, np.float32)}))

    def scale(model: Model, example: Example) -> Model:  # noqa: ARG001
        with np.errstate(over="ignore"):
            return model.with_constants({"w": model.weight("w") * np.float32(factor)})

    assert (normalise(model, Example.made_up(model), (scale,)).notes == ()) is accepted


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_other_float_types_are_computed_in_float32_and_the_interface_keeps_them(kind: type) -> None:
    """Integer kernels stand between floats of 32 bits; a file has to take and give what the model did."""
    constants: dict[str, Array] = {
        "w": normal(6, 4, 3, 3).astype(kind),
        "b": normal(6).astype(kind),
        "v": normal(6, 3).astype(kind),
    }
    nodes = [node("Conv", "x w b", "c"), node("Relu", "c", "r"), node("GlobalAveragePool", "r", "p")]
    nodes += [node("Flatten", "p", "f"), node("MatMul", "f v")]
    if kind is np.float64:  # onnxruntime's CPU has no convolution of doubles
        nodes, constants = [node("Flatten", "x", "f"), node("MatMul", "f v")], {"v": normal(144, 3).astype(kind)}
    model = load(make_model(nodes, {"x": IMAGE}, ["y"], constants, dtypes={"x": kind}))
    example = Example.made_up(model)
    found = normalise(model, example)
    assert found.notes == ()
    assert all(found.model.weight(t.name).dtype != kind for t in found.model.skeleton.graph.initializer)
    before, after = (Session(m).run(example.feeds)["y"] for m in (model, found.model))
    assert after.dtype == before.dtype == kind
    tolerance = 32 * float(np.finfo(np.float16).eps) if kind is np.float16 else 1e-5
    np.testing.assert_allclose(after, before, atol=tolerance * float(np.abs(before).max()))


@pytest.mark.parametrize("kind", [TensorProto.BFLOAT16, TensorProto.INT4, TensorProto.FLOAT8E5M2], ids=str)
def test_weights_of_small_types_become_float(kind: int) -> None:
    """They stand behind Cast or DequantizeLinear, and onnxruntime takes no arrays of these types."""
    values = np.rint(3 * normal(40, 30)).clip(-7, 7)
    small = numpy_helper.from_array(values.astype(helper.tensor_dtype_to_np_dtype(kind)), "w")
    is_int = kind == TensorProto.INT4
    first = node("DequantizeLinear", "w s", "v") if is_int else node("Cast", "w", "v", to=TensorProto.FLOAT)
    proto = make_model(
        [first, node("MatMul", "x v")], {"x": ["N", 40]}, ["y"], {"s": np.array(0.5, np.float32)}, opset=21
    )
    proto.graph.initializer.append(small)
    proto.ir_version = 10
    model = load(proto)
    found = normalise(model, Example.made_up(model)).model
    expected = values * (0.5 if is_int else 1)
    np.testing.assert_array_equal(found.weight(found.nodes[0].input[1]), expected.astype(np.float32))


def test_text_and_odd_attributes_pass_through() -> None:
    """Labels as strings, an empty list as attribute: neither may be read and written again by a guess of its type."""
    labels = np.array(["cat", "dog", "cow"], object)
    nodes = [
        node("MatMul", "x w", "z"),
        node("Identity", "z", "y"),
        node("ArgMax", "z", "i", axis=1, keepdims=0),
        node("Gather", "labels i", "label"),
        node("Unsqueeze", "i axes", "u"),
        node("Constant", "", "axes", value=numpy_helper.from_array(np.array([1]))),
    ]
    nodes.insert(0, nodes.pop())
    proto = make_model(nodes, {"x": ["N", 20]}, ["y", "label", "u"], {"w": normal(20, 3), "labels": labels})
    model = load(proto)
    example = Example.made_up(model)
    found = normalise(model, example)
    assert found.notes == ()
    assert (
        Session(found.model).run(example.feeds)["label"].tolist() == Session(model).run(example.feeds)["label"].tolist()
    )


def test_a_sparse_weight_becomes_dense() -> None:
    """onnxruntime runs it; a layer's weight is dense."""
    dense = np.zeros((20, 3), np.float32)
    places = RANDOM.permutation(60)[:25].astype(np.int64)
    dense.reshape(-1)[places] = normal(25)
    proto = make_model([node("MatMul", "x w")], {"x": ["N", 20]}, ["y"], {})
    values = numpy_helper.from_array(dense.reshape(-1)[np.sort(places)], "w")
    proto.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, numpy_helper.from_array(np.sort(places), "i"), [20, 3])
    )
    np.testing.assert_array_equal(load(proto).weight("w"), dense)


@pytest.mark.parametrize("source", ["initializer", "Constant", "layer"])
def test_a_constant_that_is_an_output_keeps_its_name_and_value(source: str) -> None:
    """Anchors, a version number, a weight: rewrites must not change them with the weight that they are."""
    w, scale = normal(20, 3), normal(3)
    nodes = [node("MatMul", "x w", "z"), node("Mul", "z s")]
    constants = {"w": w, "s": scale}
    if source == "Constant":
        nodes.insert(0, node("Constant", "", "s", value=numpy_helper.from_array(constants.pop("s"))))
    name = "w" if source == "layer" else "s"
    model = load(make_model(nodes, {"x": ["N", 20]}, ["y", name], constants))
    example = Example.made_up(model)
    found = normalise(model, example)
    assert found.notes == ()
    assert len(found.model.nodes) == 2  # the factor is folded all the same
    np.testing.assert_array_equal(Session(found.model).run(example.feeds)[name], w if source == "layer" else scale)


def test_a_constant_that_nothing_but_an_output_reads_is_no_part_of_what_is_folded() -> None:
    """The values of others are computed without it; it was read there all the same, and the model refused."""
    nodes = [node("Transpose", "v", "w", perm=[1, 0]), node("MatMul", "x w")]
    model = load(make_model(nodes, {"x": ["N", 20]}, ["y", "c"], {"v": normal(3, 20), "c": normal(4)}))
    found = normalise(model, Example.made_up(model))
    assert found.notes == ()
    assert [n.op_type for n in found.model.nodes] == ["Gemm", "Identity"]


def test_types_that_raising_the_opset_wrote_down_are_forgotten_where_floats_are_widened() -> None:
    """onnxruntime refuses a model that says of a tensor in float32 that it is float16."""
    constants = {"w": normal(20, 3).astype(np.float16)}
    nodes = [node("MatMul", "x w", "z"), node("Relu", "z")]
    proto = make_model(nodes, {"x": ["N", 20]}, ["y"], constants, opset=9, dtypes={"x": np.float16})
    proto.graph.output[0].type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT16, ["N", 3]))
    model = load(proto)
    found = normalise(model, Example.made_up(model))
    assert found.notes == ()
    assert found.model.weight("w").dtype == np.float32


def test_contrib_operators_in_half_precision_are_written_out_in_float32() -> None:
    """Their constants are float32; written out before floats were widened, two types met in a product."""
    nodes = [node("MatMul", "x w", "z"), helper.make_node("QuickGelu", ["z"], ["y"], domain="com.microsoft")]
    constants = {"w": normal(20, 3).astype(np.float16)}
    proto = make_model(nodes, {"x": ["N", 20]}, ["y"], constants, dtypes={"x": np.float16})
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model = load(proto)
    found = normalise(model, Example.made_up(model))
    assert found.notes == ()
    assert all(n.domain == "" for n in found.model.nodes)
