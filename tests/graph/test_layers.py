"""Which nodes are layers, along which axis their channels lie, and why others stay float."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnx_cbq.errors import ModelError
from onnx_cbq.graph.layers import find_layers
from onnx_cbq.graph.load import load
from onnx_cbq.graph.shapes import Example
from onnx_cbq.records import Layer, Layers
from tests.graphs import make_model, node


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def layers_of(proto: onnx.ModelProto) -> Layers:
    model = load(proto)
    return find_layers(model, Example.made_up(model).shapes(model))


def single(nodes: list[onnx.NodeProto], shape: list[int | str], weight: np.ndarray) -> Layer:
    return layers_of(make_model(nodes, {"x": shape}, ["y"], {"w": weight})).layers[0]


LAYERS = {
    "conv1d": (node("Conv", "x w"), ["N", 4, 9], (6, 4, 3), 0, 6, 1),
    "conv2d": (node("Conv", "x w"), ["N", 4, 9, 9], (6, 4, 3, 3), 0, 6, 1),
    "conv3d": (node("Conv", "x w"), ["N", 4, 5, 5, 5], (6, 4, 3, 3, 3), 0, 6, 1),
    "conv-grouped": (node("Conv", "x w", group=2), ["N", 4, 9, 9], (6, 2, 3, 3), 0, 6, 1),
    "conv-depthwise": (node("Conv", "x w", group=4), ["N", 4, 9, 9], (4, 1, 3, 3), 0, 4, 1),
    "transpose": (node("ConvTranspose", "x w"), ["N", 4, 5, 5], (4, 6, 3, 3), 1, 6, 1),
    "transpose-grouped": (node("ConvTranspose", "x w", group=2), ["N", 4, 5, 5], (4, 3, 3, 3), 1, 3, 2),
    "transpose-depthwise": (node("ConvTranspose", "x w", group=4), ["N", 4, 5, 5], (4, 1, 3, 3), 0, 4, 1),
    "gemm": (node("Gemm", "x w"), ["N", 4], (4, 6), 1, 6, 1),
    "gemm-transposed": (node("Gemm", "x w", transB=1), ["N", 4], (6, 4), 0, 6, 1),
    "matmul-right": (node("MatMul", "x w"), ["N", 5, 4], (4, 6), 1, 6, 1),
    "matmul-left": (node("MatMul", "w x"), ["N", 4, 5], (6, 4), 0, 6, 1),
    "matmul-batched": (node("MatMul", "x w"), ["N", 2, 5, 4], (2, 4, 6), 2, 6, 1),
}


@pytest.mark.parametrize(
    ("operator", "shape", "weight_shape", "axis", "channels", "repeats"), LAYERS.values(), ids=LAYERS
)
def test_channels_lie_along_the_right_axis(
    operator: onnx.NodeProto,
    shape: list[int | str],
    weight_shape: tuple[int, ...],
    axis: int,
    channels: int,
    repeats: int,
) -> None:
    """A wrong axis gives every scale to the wrong weights."""
    layer = single([operator], shape, weights(*weight_shape))
    assert (layer.weight_axis, layer.channels, layer.repeats) == (axis, channels, repeats)
    use = layer.uses[0]
    assert use.output_shape[use.channel_axis] == channels * repeats
    weight = weights(*weight_shape)
    rows = layer.rows(weight)
    assert rows.shape == (channels, weight.size // channels)
    np.testing.assert_array_equal(rows[1], np.take(weight, 1, axis).reshape(-1))
    np.testing.assert_array_equal(layer.unrows(rows), weight)


def test_output_channels_of_a_grouped_transpose_belong_to_their_position_in_the_group() -> None:
    layer = single([LAYERS["transpose-grouped"][0]], ["N", 4, 5, 5], weights(4, 3, 3, 3))
    np.testing.assert_array_equal(layer.per_channel(np.arange(6)), [[0, 3], [1, 4], [2, 5]])


def test_a_shared_weight_is_one_layer_with_two_uses() -> None:
    proto = make_model(
        [node("Conv", "x w", "a"), node("Relu", "a", "b"), node("Conv", "b w")],
        {"x": ["N", 4, 5, 5]},
        ["y"],
        {"w": weights(4, 4, 1, 1)},
    )
    found = layers_of(proto)
    assert len(found) == 1
    assert [use.output for use in found.layers[0].uses] == ["a", "y"]


BESIDE = {
    "branch": ([node("Add", "z s", "t")], "s"),
    "branch-first": ([node("Add", "s z", "t")], "s"),
    "behind-a-bias": ([node("Add", "z b", "u"), node("Sum", "u s", "t")], "s"),
    "itself": ([node("Add", "z z", "t")], None),
    "read-elsewhere": ([node("Add", "z s", "u"), node("Add", "u z", "t")], None),
    "broadcast": ([node("ReduceMean", "s", "m", axes=[2, 3]), node("Add", "z m", "t")], None),
    "multiplied": ([node("Mul", "z s", "t")], None),
    "three": ([node("Sum", "z s x", "t")], None),
}


@pytest.mark.parametrize(("nodes", "expected"), BESIDE.values(), ids=BESIDE)
def test_the_other_branch_is_what_alone_is_added(nodes: list[onnx.NodeProto], expected: str | None) -> None:
    proto = make_model(
        [node("Relu", "x", "s"), node("Conv", "x w", "z"), *nodes, node("Relu", "t", "y")],
        {"x": ["N", 4, 5, 5]},
        ["y"],
        {"w": weights(4, 4, 1, 1), "b": weights(1, 4, 1, 1)},
        opset=13,
    )
    (layer,) = layers_of(proto)
    assert layer.uses[0].beside == expected


def test_an_output_that_users_see_is_not_changed_for_a_branch() -> None:
    """It would be off by what the branch lacks."""
    nodes = [node("Relu", "x", "s"), node("Conv", "x w", "z"), node("Add", "z s", "y")]
    proto = make_model(nodes, {"x": ["N", 4, 5, 5]}, ["y", "z"], {"w": weights(4, 4, 1, 1)})
    assert layers_of(proto).layers[0].uses[0].beside is None


def with_layer(
    nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], shape: list[int | str]
) -> onnx.ModelProto:
    """Nodes that make `z` besides a plain layer, so that there is something to quantize."""
    tail = [node("Flatten", "x", "f"), node("Gemm", "f g", "y")]
    size = int(np.prod([int(side) for side in shape[1:]]))
    return make_model([*nodes, *tail], {"x": shape}, ["y", "z"], {**constants, "g": weights(size, 2)})


LEFT = {
    "double": (
        [node("Cast", "x", "d", to=onnx.TensorProto.DOUBLE), node("MatMul", "d w", "z")],
        {"w": weights(5, 3).astype(np.float64)},
        ["N", 4, 5],
        "only float32",
    ),
    "two-axes": (
        [node("MatMul", "x w", "a"), node("MatMul", "w a", "z")],
        {"w": weights(5, 5)},
        ["N", 5, 5],
        "do not agree",
    ),
    "other-reader": (
        [node("MatMul", "x w", "a"), node("Gather", "w i", "b"), node("Add", "a b", "z")],
        {"w": weights(5, 5), "i": np.array([0])},
        ["N", 5, 5],
        "also read by Gather",
    ),
    "vector": ([node("MatMul", "x w", "z")], {"w": weights(5)}, ["N", 4, 5], "no output channels"),
    "mixes-samples": ([node("Gemm", "x w", "z", transA=1)], {"w": weights(3, 2)}, [3, 3], "mixes the samples"),
}


@pytest.mark.parametrize(("nodes", "constants", "shape", "reason"), LEFT.values(), ids=LEFT)
def test_what_stays_float_is_listed_with_the_reason(
    nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], shape: list[int | str], reason: str
) -> None:
    found = layers_of(with_layer(nodes, constants, shape))
    assert [layer.weight for layer in found] == ["g"]
    assert found.left_float
    assert all(reason in entry.reason for entry in found.left_float)


def test_a_model_without_layers_is_explained() -> None:
    with pytest.raises(ModelError, match="no layer to quantize: expected one of Conv"):
        layers_of(make_model([node("Relu", "x")], {"x": ["N", 3]}, ["y"]))
    with pytest.raises(ModelError, match=r"no layer to quantize: MatMul_y \(MatMul\): its weight is computed"):
        layers_of(make_model([node("MatMul", "x x")], {"x": ["N", 3, 3]}, ["y"]))


def test_layers_are_named_after_readable_weights() -> None:
    proto = make_model(
        [node("Gemm", "x features.0.weight", "a"), node("Gemm", "a onnx::Gemm_7", "y")],
        {"x": ["N", 4]},
        ["y"],
        {"features.0.weight": weights(4, 4), "onnx::Gemm_7": weights(4, 4)},
    )
    assert [layer.name for layer in layers_of(proto)] == ["features.0", "Gemm_y"]


def test_products_of_two_activations_are_not_listed() -> None:
    """Attention has no weights there: nothing stays float that could have been small."""
    nodes = [node("Transpose", "x", "t", perm=[0, 2, 1]), node("MatMul", "x t", "z")]
    assert layers_of(with_layer(nodes, {}, ["N", 4, 5])).left_float == ()


def test_weights_of_other_operators_are_listed_largest_first() -> None:
    """An LSTM that holds nearly all weights must not hide behind the average bits of the rest."""
    nodes = [
        node("Gather", "table i", "e"),
        node("ReduceSum", "e", "s", keepdims=0),
        node("LSTM", "x w r", "a", hidden_size=7),
        node("Add", "a s", "z"),
    ]
    constants = {"table": weights(9, 3), "i": np.array([0]), "w": weights(1, 28, 5), "r": weights(1, 28, 7)}
    # The samples are its steps: what it does with one depends on the others.
    found = layers_of(with_layer(nodes, constants, ["N", 4, 5]))
    assert [(entry.operator, entry.weights) for entry in found.left_float] == [
        ("LSTM", 28 * 5 + 28 * 7),
        ("Gather", 27),
    ]


def test_names_of_layers_are_unique() -> None:
    """Names of nodes and of tensors are separate in ONNX: a weight may be called as another layer's node is."""
    proto = make_model(
        [node("Flatten", "x", "f"), node("Gemm", "f dense", "h"), node("Gemm", "h onnx::1")],
        {"x": ["N", 4]},
        ["y"],
        {"dense": weights(4, 4), "onnx::1": weights(4, 2)},
    )
    proto.graph.node[2].name = "dense"
    assert [layer.name for layer in layers_of(proto)] == ["dense", "dense_1"]


FILTERS = [node("Conv", "x v", "s"), node("Mul", "s s", "p"), node("Conv", "p w", "m")]
BEHIND = {
    "a logarithm": ([node("Log", "m", "y")], True),
    "a constant, and another shape": (
        [node("Add", "m e", "a"), node("Transpose", "a", "b", perm=[0, 2, 1]), node("Log", "b", "y")],
        True,
    ),
    "a root": ([node("Clip", "m e", "a"), node("Sqrt", "a", "y")], True),
    "a Relu": ([node("Relu", "m", "a"), node("Log", "a", "y")], False),
    "what else varies": ([node("Mul", "m x", "a"), node("Log", "a", "y")], False),
    "nothing": ([node("Exp", "m", "y")], False),
}


@pytest.mark.parametrize("kind", BEHIND)
@pytest.mark.parametrize("lowest", [0.0, -0.1])
def test_filters_in_front_of_a_logarithm_must_stay_positive(kind: str, lowest: float) -> None:
    """And only those that are: where weights below 0 stand, sums below 0 are the model's own."""
    behind, wanted = BEHIND[kind]
    constants = {"v": weights(3, 3, 1), "w": np.abs(weights(3, 3, 1)), "e": np.array(1e-3, np.float32)}
    constants["w"][0, 0] = lowest
    found = layers_of(make_model([*FILTERS, *behind], {"x": ["N", 3, 9]}, ["y"], constants))
    assert [layer.positive for layer in found.layers] == [False, wanted and lowest == 0]


def test_a_bias_below_zero_asks_for_nothing() -> None:
    constants = {"w": np.abs(weights(3, 3, 1)), "b": np.array([0, 0, -1], np.float32)}
    found = layers_of(
        make_model([node("Conv", "x w b", "m"), node("Log", "m", "y")], {"x": ["N", 3, 9]}, ["y"], constants)
    )
    assert not found.layers[0].positive
