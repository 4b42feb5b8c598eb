"""Files whose recurrent weights and tables are codes, held against the float model with the codes' values put in."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_cbq.graph.layers import find_layers
from onnx_cbq.graph.load import load
from onnx_cbq.graph.normalise import normalise
from onnx_cbq.graph.placement import NO_ACTIVATIONS
from onnx_cbq.graph.shapes import Example
from onnx_cbq.model import Array
from onnx_cbq.quantize.weights import quantize_layer
from onnx_cbq.records import Layers
from onnx_cbq.runtime import Session
from onnx_cbq.storage import STORAGES, find_storage
from onnx_cbq.storage.files import write_model
from onnx_cbq.storage.qdq import emit_qdq
from onnx_cbq.system.temporary import temporary_folder
from tests.graphs import make_model, node

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS, INPUTS, HIDDEN = 6, 5, 7
STORED = [storage.name for storage in STORAGES]


def numbers(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * 0.5


def recurrent(operator: str, given: str = "", **attributes: Any) -> onnx.ModelProto:
    """A model of one recurrent node; `given` names its optional inputs by letters: b l(engths) h c p(eepholes)."""
    directions = 2 if attributes.get("direction") == "bidirectional" else 1
    rows = GATES[operator] * HIDDEN
    constants = {
        "lstm.w": numbers(1, directions, rows, INPUTS),
        "lstm.r": numbers(2, directions, rows, HIDDEN),
        "b": numbers(3, directions, 2 * rows),
        "p": numbers(6, directions, 3 * HIDDEN),
        "axes": np.array([0, 1]),
        "fc": numbers(7, HIDDEN, 3),
    }
    inputs: dict[str, list[int | str]] = {"x": ["N", STEPS, INPUTS]}
    dtypes = {}
    if "l" in given:
        inputs["l"], dtypes["l"] = ["N"], np.int32
    for name in set("hc") & set(given):
        inputs[name] = ["N", directions, HIDDEN]
    names = " ".join(name if name in given else "_" for name in "blhcp"[: 5 if operator == "LSTM" else 3])
    nodes = [node("Transpose", "x", "steps", perm=[1, 0, 2])]
    nodes += [node("Transpose", name, f"{name}_first", perm=[1, 0, 2]) for name in "hc" if name in given]
    for name in "hc":
        names = names.replace(name, f"{name}_first")
    nodes.append(node(operator, f"steps lstm.w lstm.r {names}", "states last", hidden_size=HIDDEN, **attributes))
    nodes += [
        node("ReduceSum", "states axes", "sum", keepdims=0),
        node("MatMul", "sum fc", "y"),
        node("Identity", "last", "z"),
    ]
    read = {name for one in nodes for name in one.input}
    return make_model(nodes, inputs, ["y", "z"], {k: v for k, v in constants.items() if k in read}, dtypes=dtypes)


def table(entries: int, *numbers_of_entry: int, axis: int = 0) -> onnx.ModelProto:
    constants = {"emb": numbers(1, entries, *numbers_of_entry), "fc": numbers(2, numbers_of_entry[-1], 3)}
    nodes = [node("Gather", "emb x", "e", axis=axis), node("MatMul", "e fc", "y")]
    return make_model(nodes, {"x": ["N", 4]}, ["y"], constants, dtypes={"x": np.int64})


RECURRENT = {
    "lstm": recurrent("LSTM", "b"),
    "lstm-no-bias": recurrent("LSTM"),
    "lstm-reverse": recurrent("LSTM", "b", direction="reverse"),
    "lstm-both": recurrent("LSTM", "b", direction="bidirectional"),
    "lstm-states": recurrent("LSTM", "bhc", direction="bidirectional"),
    "lstm-lengths": recurrent("LSTM", "blhc", direction="bidirectional"),
    "lstm-peepholes": recurrent("LSTM", "bp"),
    "lstm-forget": recurrent("LSTM", "b", input_forget=1),
    "lstm-clip": recurrent("LSTM", "b", clip=0.3),
    "lstm-activations": recurrent("LSTM", "b", activations=["HardSigmoid", "Relu", "Tanh"]),
    "gru": recurrent("GRU", "b"),
    "gru-no-bias": recurrent("GRU"),
    "gru-late": recurrent("GRU", "b", linear_before_reset=1),
    "gru-both": recurrent("GRU", "bh", direction="bidirectional", linear_before_reset=1),
    "gru-lengths": recurrent("GRU", "blh", direction="reverse"),
    "rnn": recurrent("RNN", "b"),
    "rnn-both": recurrent("RNN", "bh", direction="bidirectional", activations=["Relu", "LeakyRelu"]),
}
TABLES = {
    "entries": table(30, 128),
    "blocks": table(30, 40),
    "last-block-not-full": table(31, 40),
    "fewer-than-a-block": table(2, 8),
    "matrices": table(9, 3, 20),
    "blocks-of-matrices": table(9, 3, 4),
}


def feeds(proto: onnx.ModelProto) -> dict[str, Array]:
    found: dict[str, Array] = {}
    entries = next((tensor.dims[0] for tensor in proto.graph.initializer if tensor.name == "emb"), 0)
    for info in proto.graph.input:
        shape = [size.dim_value or 5 for size in info.type.tensor_type.shape.dim]
        found[info.name] = numbers(11, *shape)
        if info.name == "l":
            found["l"] = np.array([STEPS, 1, 3, STEPS - 1, 2], np.int32)
        elif entries:
            # From the end as well.
            found[info.name] = np.random.default_rng(3).integers(-entries, entries, shape)
    return found


def quantized(proto: onnx.ModelProto, storage: str) -> tuple[dict[str, Array], onnx.ModelProto, Layers]:
    """What a file of random widths gives, the model that it should be, and the layers."""
    source, samples = load(proto), feeds(proto)
    example = Example(samples)
    found = normalise(source, example)
    assert not found.notes
    layers = find_layers(found.model, example.shapes(found.model))
    random = np.random.default_rng(0)
    weights = {}
    expected = onnx.ModelProto()
    expected.CopyFrom(proto)
    for layer in layers:
        value = found.model.weight(layer.weight)
        weights[layer.name] = quantize_layer(layer, value, random.integers(2, 9, layer.channels).astype(np.int8))
        levels = weights[layer.name].codes * np.expand_dims(
            weights[layer.name].scale, [axis for axis in range(value.ndim) if axis != layer.weight_axis]
        )
        for tensor in expected.graph.initializer:
            if tensor.name == layer.name:
                count = int(np.prod(tensor.dims))
                plain = levels.astype(np.float32).reshape(-1)[:count].reshape(tuple(tensor.dims))
                tensor.CopyFrom(numpy_helper.from_array(plain, tensor.name))
    kind = find_storage(storage)()
    output = kind.finish(emit_qdq(found.model, layers, weights, NO_ACTIVATIONS, {}, kind.codes()))
    with temporary_folder() as folder:
        path = folder / "file.onnx"
        write_model(output, path)
        return dict(Session(path).run(samples)), expected, layers


FROM_THE_END = {f"from-the-end-{size}": table(40, size, axis=-2) for size in (16, 200)}
FORMS = {**RECURRENT, **TABLES, **FROM_THE_END}


@pytest.mark.parametrize("storage", STORED)
@pytest.mark.parametrize("proto", FORMS.values(), ids=FORMS)
def test_a_file_is_the_float_model_with_the_values_of_its_codes(proto: onnx.ModelProto, storage: str) -> None:
    """Scales of another direction or gate, or of the block beside it, give numbers that look plausible."""
    found, expected, _ = quantized(proto, storage)
    for name, value in Session(load(expected), "off").run(feeds(proto)).items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=2e-5 * max(1, np.abs(value).max()))


@pytest.mark.parametrize("proto", RECURRENT.values(), ids=RECURRENT)
def test_recurrent_weights_are_layers_with_a_row_per_gate(proto: onnx.ModelProto) -> None:
    """What is in no layer keeps its 32 bits."""
    layers = quantized(proto, "int8")[2]
    shapes = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    for name in ("lstm.w", "lstm.r"):
        directions, rows, width = shapes[name]
        assert layers.by_name[name].weight_shape == (directions * rows, width)
    assert [entry for entry in layers.left_float if entry.weights > 1] == []


@pytest.mark.parametrize("size", [16, 200])
def test_an_axis_from_the_end_is_the_same_axis(size: int) -> None:
    """Such a table stayed float, and the reason was wrong."""
    one, other = (quantized(proto, "int8")[2] for proto in (table(40, size), table(40, size, axis=-2)))
    assert other.by_name["emb"].weight_shape == one.by_name["emb"].weight_shape


def test_rows_of_a_table_are_no_shorter_than_a_scale_is_worth() -> None:
    """A scale of 32 bits for an entry of 8 weights is 4 bits for each of them."""
    found = {name: quantized(proto, "int8")[2].by_name["emb"].weight_shape for name, proto in TABLES.items()}
    assert found == {
        "entries": (30, 128),
        "blocks": (10, 120),
        "last-block-not-full": (11, 120),
        "fewer-than-a-block": (1, 16),
        "matrices": (5, 120),
        "blocks-of-matrices": (1, 108),
    }


def test_codes_of_a_table_stay_integers_until_they_are_looked_up() -> None:
    """A DequantizeLinear of the whole table would be computed on every run."""
    proto = table(30, 40)
    source, example = load(proto), Example(feeds(proto))
    model = normalise(source, example).model
    layers = find_layers(model, example.shapes(model))
    weights = {
        layer.name: quantize_layer(layer, model.weight(layer.weight), np.full(layer.channels, 4, np.int8))
        for layer in layers
    }
    output = emit_qdq(model, layers, weights, NO_ACTIVATIONS, {})
    emb = weights["emb"].codes
    stored = [v for v in map(output.constant, output.weights) if v is not None and v.shape == emb.shape]
    assert [value.dtype for value in stored] == [np.int8]
    assert sum(one.op_type == "DequantizeLinear" for one in output.nodes) == 1


def test_a_table_that_is_the_weight_of_a_product_too_is_one_layer() -> None:
    """Tied embeddings: quantized once, looked up and multiplied with."""
    nodes = [
        node("Gather", "emb x", "e"),
        node("ReduceMean", "e", "m", axes=[1], keepdims=0),
        node("Gemm", "m emb", "y", transB=1),
    ]
    proto = make_model(nodes, {"x": ["N", 4]}, ["y"], {"emb": numbers(1, 30, 40)}, dtypes={"x": np.int64}, opset=17)
    for storage in STORED:
        found, expected, layers = quantized(proto, storage)
        assert [(layer.operator, layer.weight_shape) for layer in layers] == [("Gemm", (30, 40))]
        value = Session(load(expected), "off").run(feeds(proto))["y"]
        np.testing.assert_allclose(found["y"], value, rtol=0, atol=1e-5)
