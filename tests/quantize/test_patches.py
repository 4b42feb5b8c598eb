"""Rows under windows: rows times weights must be what onnxruntime computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnx_cbq.graph.layers import find_layers
from onnx_cbq.graph.load import load
from onnx_cbq.graph.shapes import Example
from onnx_cbq.model import Array, Model
from onnx_cbq.quantize.patches import has_rows, input_rows, mean_output, output_rows, position_count
from onnx_cbq.records import Layer
from onnx_cbq.runtime import Session
from tests.graphs import make_model, node

SAMPLES = 3
EVERYTHING = 10**6


def weight(*shape: int) -> Array:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def one_layer(operator: str, x: tuple[int, ...], w: tuple[int, ...], **attributes: Any) -> onnx.ModelProto:
    return make_model([node(operator, "x w", **attributes)], {"x": ["N", *x]}, ["y"], {"w": weight(*w)})


def in_between(nodes: list[onnx.NodeProto], x: tuple[int, ...], w: tuple[int, ...]) -> onnx.ModelProto:
    return make_model(nodes, {"x": ["N", *x]}, ["y"], {"w": weight(*w)})


CASES: dict[str, onnx.ModelProto] = {
    "conv-1d": one_layer("Conv", (3, 11), (4, 3, 3), strides=[2], pads=[1, 0]),
    "conv-2d": one_layer("Conv", (3, 6, 5), (4, 3, 3, 2)),
    "conv-3d": one_layer("Conv", (2, 4, 5, 3), (3, 2, 2, 3, 1), strides=[1, 2, 1], pads=[1, 0, 0, 0, 2, 1]),
    "conv-1x1": one_layer("Conv", (3, 4, 4), (5, 3, 1, 1)),
    "conv-strided": one_layer("Conv", (3, 9, 8), (4, 3, 3, 3), strides=[2, 3], pads=[1, 1, 1, 1]),
    "conv-dilated": one_layer("Conv", (2, 9, 9), (3, 2, 3, 2), dilations=[2, 3]),
    "conv-asymmetric": one_layer("Conv", (2, 7, 6), (3, 2, 3, 4), pads=[0, 3, 2, 1], strides=[2, 1]),
    "conv-upper": one_layer("Conv", (2, 7, 6), (3, 2, 4, 3), auto_pad="SAME_UPPER", strides=[2, 2]),
    "conv-lower": one_layer("Conv", (2, 7, 6), (3, 2, 4, 3), auto_pad="SAME_LOWER", strides=[2, 2]),
    "conv-valid": one_layer("Conv", (2, 7, 6), (3, 2, 4, 3), auto_pad="VALID"),
    "conv-grouped": one_layer("Conv", (6, 5, 5), (9, 2, 3, 3), group=3, pads=[1, 1, 1, 1]),
    "conv-depthwise": one_layer("Conv", (4, 5, 5), (8, 1, 3, 3), group=4, pads=[1, 0, 1, 0]),
    "transposed-1d": one_layer("ConvTranspose", (3, 6), (3, 4, 4), strides=[2], pads=[1, 1]),
    "transposed-2d": one_layer("ConvTranspose", (3, 4, 5), (3, 4, 3, 2), strides=[2, 3], pads=[1, 0, 0, 1]),
    "transposed-output-padding": one_layer(
        "ConvTranspose", (3, 4, 4), (3, 2, 3, 3), strides=[2, 3], pads=[1, 1, 1, 1], output_padding=[1, 2]
    ),
    "transposed-output-shape": one_layer(
        "ConvTranspose", (3, 4, 4), (3, 2, 3, 3), strides=[2, 2], output_shape=[8, 9], auto_pad="SAME_UPPER"
    ),
    "transposed-dilated": one_layer("ConvTranspose", (2, 4, 4), (2, 3, 3, 3), dilations=[2, 1], strides=[2, 2]),
    "transposed-depthwise": one_layer("ConvTranspose", (4, 4, 4), (4, 1, 2, 2), group=4, strides=[2, 2]),
    "gemm": one_layer("Gemm", (6,), (6, 4)),
    "gemm-transposed": one_layer("Gemm", (6,), (4, 6), transB=1),
    "matmul": one_layer("MatMul", (6,), (6, 4)),
    "matmul-right": one_layer("MatMul", (2, 5, 6), (6, 4)),
    "matmul-left": in_between([node("MatMul", "w x")], (2, 6, 5), (4, 6)),
    "matmul-left-batch-last": in_between(
        [node("Transpose", "x", "t", perm=[1, 0]), node("MatMul", "w t", "a"), node("Transpose", "a", perm=[1, 0])],
        (6,),
        (4, 6),
    ),
    "matmul-time-major": in_between(
        [
            node("Transpose", "x", "t", perm=[1, 0, 2]),
            node("MatMul", "t w", "a"),
            node("Transpose", "a", perm=[1, 0, 2]),
        ],
        (5, 6),
        (6, 4),
    ),
    "merged-batch": make_model(
        [node("Reshape", "x rows", "t"), node("Gemm", "t w", "a"), node("Reshape", "a back")],
        {"x": ["N", 5, 6]},
        ["y"],
        {"w": weight(6, 4), "rows": np.array([-1, 6]), "back": np.array([-1, 5, 4])},
    ),
}


def read(proto: onnx.ModelProto) -> tuple[Layer, Model, Array, Array]:
    """The layer, the model, the layer's input and its output [samples, positions, channels]."""
    model = load(proto)
    shape = [size or SAMPLES for size in model.inputs[0].shape or ()]
    example = Example({"x": np.random.default_rng(9).standard_normal(shape).astype(np.float32)})
    (layer,) = find_layers(model, example.shapes(model))
    (use,) = layer.uses
    inner = [name for name in (use.activation, use.output) if name != "x"]
    values = {**example.feeds, **Session(model.with_graph(outputs=inner)).run(example.feeds)}
    z = np.moveaxis(values[use.output], (use.batch_axis, use.channel_axis), (0, -1))
    return layer, model, np.asarray(values[use.activation]), z.reshape(SAMPLES, -1, z.shape[-1])


def outputs(layer: Layer, model: Model, rows: Array) -> Array:
    """What the weights make of rows [groups, rows, n]: [samples, positions, channels]."""
    weights = layer.rows(model.weight(layer.weight)).reshape(len(rows), -1, rows.shape[2])
    return (rows @ weights.swapaxes(1, 2)).transpose(1, 0, 2).reshape(SAMPLES, -1, layer.channels)


@pytest.mark.parametrize("case", CASES)
def test_rows_times_weights_are_the_layer_s_outputs(case: str) -> None:
    layer, model, x, expected = read(CASES[case])
    before = x.copy()
    assert has_rows(layer)
    rows = input_rows(layer, layer.uses[0], x, EVERYTHING, np.random.default_rng(0))
    assert rows.shape == (layer.groups, expected.shape[0] * expected.shape[1], layer.weights_per_channel)
    assert position_count(layer.uses[0], SAMPLES) == expected.shape[1]
    np.testing.assert_allclose(outputs(layer, model, rows), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("case", [case for case in CASES if case not in {"gemm", "gemm-transposed", "matmul"}])
@pytest.mark.parametrize("positions", [1, 3])
def test_a_part_of_the_positions_is_the_same_part_for_every_sample_and_tensor(case: str, positions: int) -> None:
    """Moments of a float and a quantized input only belong together if both come from the same positions."""
    layer, model, x, expected = read(CASES[case])
    total = expected.shape[1]
    positions = min(positions, total)
    rows = input_rows(layer, layer.uses[0], x, positions, np.random.default_rng(5))
    found = outputs(layer, model, rows)
    assert found.shape[1] == positions
    distances = np.abs(found[:, :, None] - expected[:, None]).max(axis=(0, 3))
    assert (distances.min(axis=1) < 1e-4).all()
    assert len(set(distances.argmin(axis=1).tolist())) == positions
    again = input_rows(layer, layer.uses[0], 2 * x, positions, np.random.default_rng(5))
    np.testing.assert_array_equal(again, 2 * rows)


@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("transposed")])
@pytest.mark.parametrize("positions", [1, 3, EVERYTHING])
def test_output_rows_stand_beside_the_rows_they_are_made_of(case: str, positions: int) -> None:
    """What the other branch of a block lacks belongs to the positions that its layer's inputs are taken from."""
    layer, model, x, expected = read(CASES[case])
    (use,) = layer.uses
    shape = [size or SAMPLES for size in model.inputs[0].shape or ()]
    feeds = {"x": np.random.default_rng(9).standard_normal(shape).astype(np.float32)}
    z = Session(model.with_graph(outputs=[use.output])).run(feeds)[use.output]
    rows = input_rows(layer, use, x, positions, np.random.default_rng(5))
    found = output_rows(layer, use, z, positions, np.random.default_rng(5))
    assert found.shape == (layer.groups, rows.shape[1], layer.channels // layer.groups)
    weights = layer.rows(model.weight(layer.weight)).reshape(len(rows), -1, rows.shape[2])
    np.testing.assert_allclose(found, rows @ weights.swapaxes(1, 2), rtol=1e-4, atol=1e-5)
    counted = np.random.default_rng(0).uniform(0, 2, SAMPLES).astype(np.float32)
    wanted = np.average(expected.mean(axis=1), axis=0, weights=counted)
    np.testing.assert_allclose(mean_output(layer, use, z, counted).reshape(-1), wanted, rtol=1e-4, atol=1e-5)


def test_another_batch_has_other_positions() -> None:
    """Always the same few positions of a picture would say nothing about the others."""
    layer, _, x, _ = read(CASES["conv-2d"])
    one, other = (input_rows(layer, layer.uses[0], x, 4, np.random.default_rng(seed)) for seed in (0, 1))
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(
    "proto",
    [
        one_layer("MatMul", (2, 5, 6), (2, 6, 4)),
        one_layer("ConvTranspose", (4, 4, 4), (4, 2, 2, 2), group=2),
        one_layer("ConvTranspose", (4, 4, 4), (4, 1, 2, 2), group=2),
    ],
    ids=["stack-of-matrices", "groups-share-scales", "one-channel-per-group"],
)
def test_layers_whose_channels_read_different_rows_have_none(proto: onnx.ModelProto) -> None:
    model = load(proto)
    shape = [size or SAMPLES for size in model.inputs[0].shape or ()]
    example = Example({"x": np.ones(shape, np.float32)})
    (layer,) = find_layers(model, example.shapes(model))
    assert not has_rows(layer)
