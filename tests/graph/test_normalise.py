"""Every pass keeps the outputs and, applied twice, changes nothing more; what it is for is gone afterwards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import pytest

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
