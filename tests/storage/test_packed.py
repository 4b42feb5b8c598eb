"""Packed codes: the bytes are those of the layout, and every runtime gets the codes back to the last bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from onnx_cbq.model import Array, FreshNames, Model
from onnx_cbq.quantize.grid import quantize_rows
from onnx_cbq.runtime import Session, fused_operators
from onnx_cbq.storage import Packed
from onnx_cbq.storage.codes import PackedCodes
from onnx_cbq.storage.fields import FIELDS, PackedLayer, classify, pack_fields, unpacking_graph
from onnx_cbq.storage.files import write_model
from onnx_cbq.storage.qdq import emit_qdq
from tests.graphs import make_model, node
from tests.storage.emitted import emitted


def codes_of(widths: Array, size: int, seed: int = 0) -> Array:
    """Codes of random rows at these widths, on either grid, int8 [channels, size]."""
    random = np.random.default_rng(seed)
    # Two values of one size are best on a grid without a zero, values near 0 on one with it.
    kinds = np.stack([random.standard_normal(size) * 0.3, np.sign(random.standard_normal(size))])
    rows = kinds[random.integers(0, 2, len(widths))] + 0.1 * random.standard_normal((len(widths), size))
    return quantize_rows(rows.astype(np.float32), widths).codes


def decoder(layers: list[PackedLayer]) -> onnx.ModelProto:
    """A model whose outputs are the codes."""
    nodes, constants = unpacking_graph(layers, FreshNames(layer.name for layer in layers))
    proto = make_model(nodes, {}, [layer.name for layer in layers], constants, opset=13)
    for info, layer in zip(proto.graph.output, layers, strict=True):
        kind = onnx.helper.np_dtype_to_tensor_dtype(layer.rows.dtype)
        info.type.CopyFrom(onnx.helper.make_tensor_type_proto(kind, layer.shape))
    onnx.checker.check_model(proto, full_check=True)
    return proto


def evaluate(proto: onnx.ModelProto) -> list[Array]:
    """The outputs by onnx's own evaluator."""
    return list(ReferenceEvaluator(proto).run(None, {}))


def short_size(written: onnx.NodeProto) -> int:
    """Bytes of a node once the names of its tensors have three letters."""
    names = [*written.input, *written.output]
    return int(written.ByteSize()) - sum(len(name) - 3 for name in names)


def layer_of(name: str, rows: Array, bits: Array, shape: tuple[int, ...] = (), axis: int = 0) -> PackedLayer:
    return PackedLayer(name, rows, bits, shape or rows.shape, axis)


def test_fields_fill_bytes_from_the_lowest_bits() -> None:
    """Files that are out there are read by what is written in them, but tools that look inside rely on the layout."""
    assert pack_fields(np.array([1, 0, 1, 1, 0, 0, 0, 0, 1], np.uint8), 1).tolist() == [0b00001101, 1]
    assert pack_fields(np.array([1, 2, 3], np.uint8), 2).tolist() == [0b111001]
    assert pack_fields(np.array([0xA, 0x5, 0xF], np.uint8), 4).tolist() == [0x5A, 0x0F]
    assert pack_fields(np.array([7, 200], np.uint8), 8).tolist() == [7, 200]


def test_the_streams_of_a_small_layer_are_these() -> None:
    """The golden bytes of the layout: 3 bits mid-tread, 2 bits mid-rise, 0 bits."""
    rows = np.array([[-3, 0, 3], [3, -1, -3], [0, 0, 0]], np.int8)
    nodes, constants = unpacking_graph([layer_of("w", rows, np.array([3, 2, 0], np.int8))], FreshNames(["w"]))
    # u = 0 3 6 with 3 bits: fields of 1 bit 0 1 0, of 2 bits 0 1 3; u = 3 1 0 with 2 bits: fields of 2 bits 3 1 0.
    # In a stream the channel of 2 bits comes first. Its row is 1, after that of 0 bits; rows 2 1 0 take 2 bits.
    streams = [value.tobytes() for value in constants.values() if value.dtype == np.uint8]
    assert streams == [bytes([0b010]), bytes([0b00000111, 0b01101101, 0])]
    assert [n.op_type for n in nodes][-2:] == ["Gather", "Reshape"]


def test_channels_in_order_need_no_rows() -> None:
    """A byte per channel for nothing, in the file of every plan that has one width."""
    rows = np.array([[0, 0, 0], [3, -1, -3], [-3, 0, 3]], np.int8)
    nodes, constants = unpacking_graph([layer_of("w", rows, np.array([0, 2, 3], np.int8))], FreshNames(["w"]))
    streams = [value.tobytes() for value in constants.values() if value.dtype == np.uint8]
    assert streams == [bytes([0b010]), bytes([0b00000111, 0b1101])]
    assert "Gather" not in {n.op_type for n in nodes}


def test_no_operators_but_those_that_every_runtime_folds() -> None:
    """OpenVINO 2026.4 opened no file with others (see the module), and onnxruntime 1.31 computed some on every run."""
    random = np.random.default_rng(0)
    bits = random.permutation(np.tile(np.arange(9), 4)).astype(np.int8)
    layers = [layer_of(f"w{size}", codes_of(bits, size, size), bits, (size, len(bits)), 1) for size in (4, 9)]
    nodes, _ = unpacking_graph(layers, FreshNames(layer.name for layer in layers))
    folded = {"Add", "Cast", "Concat", "Div", "Expand", "Gather", "Mod", "Mul"}
    folded |= {"Reshape", "Split", "Transpose"}
    assert {n.op_type for n in nodes} == folded
    assert {n.domain for n in nodes} == {""}


@pytest.mark.parametrize("channels", [2, 3, 256, 257, 70_000])
def test_rows_of_any_size_come_back(channels: int) -> None:
    """Those of few channels have no digit but a narrow one, those of more than 65,536 have three."""
    bits = np.resize(np.array([2, 1], np.int8), channels)
    rows = codes_of(bits, 2)
    proto = decoder([layer_of("w", rows, bits)])
    np.testing.assert_array_equal(Session(Model.from_proto(proto)).run({})["w"], rows)


@pytest.mark.parametrize("bits", range(9))
def test_every_width_on_every_grid_comes_back(bits: int) -> None:
    """All levels of both grids of a width, by onnxruntime and by onnx's own evaluator."""
    grids = [np.zeros(1, int)] if bits == 0 else []
    if bits > 1:
        grids.append(np.arange(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1)))
    if 0 < bits < 8:
        grids.append(np.arange(1 - 2**bits, 2**bits, 2))
    if bits > 0:
        grids.append(np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)))
    rows = np.stack([np.resize(levels, 257) for levels in grids]).astype(np.int8)
    proto = decoder([layer_of("w", rows, np.full(len(rows), bits, np.int8))])
    np.testing.assert_array_equal(evaluate(proto)[0], rows)
    np.testing.assert_array_equal(Session(Model.from_proto(proto)).run({})["w"], rows)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.sampled_from([1, 3, 9, 16]), st.integers(0, 2)), min_size=1, max_size=5),
    st.integers(0, 2**16),
)
def test_any_mix_of_layers_and_widths_comes_back(sizes: list[tuple[int, int, int]], seed: int) -> None:
    """Rows of one length are decoded together, so an error of one layer's place would show in another."""
    random = np.random.default_rng(seed)
    layers = []
    for i, (channels, size, axis) in enumerate(sizes):
        bits = random.integers(0, 9, channels).astype(np.int8)
        rows = codes_of(bits, size, seed + i)
        bits = np.where(rows.any(axis=1), bits, 0).astype(np.int8)
        shape = [size, 1]
        shape.insert(axis, channels)
        layers.append(layer_of(f"w{i}", rows, bits, tuple(shape), axis))
    found = evaluate(decoder(layers))
    for layer, values in zip(layers, found, strict=True):
        expected = np.moveaxis(layer.rows.reshape(len(layer.rows), *np.delete(layer.shape, layer.axis)), 0, layer.axis)
        np.testing.assert_array_equal(values, expected)


def test_positions_in_a_table_come_back_beside_codes() -> None:
    random = np.random.default_rng(0)
    positions = random.integers(0, 16, (4, 9)).astype(np.uint8)
    bits = np.full(4, 4, np.int8)
    codes = codes_of(bits, 9)
    found = evaluate(decoder([layer_of("p", positions, bits), layer_of("c", codes, bits)]))
    np.testing.assert_array_equal(found[0], positions)
    np.testing.assert_array_equal(found[1], codes)
    assert found[0].dtype == np.uint8


def test_a_stream_takes_the_bits_and_nothing_more() -> None:
    bits = np.tile(np.arange(9), 20).astype(np.int8)
    rows = codes_of(bits, 64)
    _, constants = unpacking_graph([layer_of("w", rows, bits)], FreshNames(["w"]))
    streams = sum(value.nbytes for value in constants.values() if value.dtype == np.uint8)
    # A byte for the row of each of 180 channels; each of the four streams ends in a byte that may not be full.
    least = int(bits.sum()) * 64 // 8 + len(bits)
    assert least <= streams <= least + len(FIELDS)


def test_what_many_channels_take_beside_their_bits_is_little() -> None:
    """A scale and a bias take 8 of the 10 bytes that are left for a channel: rows of 16 bits would take the rest."""
    random = np.random.default_rng(0)
    layers = []
    for i in range(40):
        bits = random.integers(0, 9, 500).astype(np.int8)
        layers.append(layer_of(f"w{i}", codes_of(bits, 8 + i % 20, i), bits))
    nodes, constants = unpacking_graph(layers, FreshNames(layer.name for layer in layers))
    ideal = sum(int(layer.bits.sum()) * layer.rows.shape[1] for layer in layers) / 8
    tensors = (onnx.numpy_helper.from_array(value, "abc").ByteSize() + 3 for value in constants.values())
    # Names of 3 letters, which is more than they have.
    size = sum(tensors) + sum(short_size(n) + 3 for n in nodes)
    assert size - ideal <= 2 * 40 * 500


@pytest.mark.parametrize(("code", "bits"), [(2, 2), (4, 3), (1, 0), (-2, 1)])
def test_codes_that_do_not_fit_are_refused(code: int, bits: int) -> None:
    """Cut off without a word, such a code would come back as another one."""
    with pytest.raises(ValueError, match="do not fit"):
        classify(np.array([[0, code]], np.int8), np.array([bits], np.int8))


@pytest.mark.parametrize("opset", [13, 18, 21])
@pytest.mark.parametrize("transposed", [0, 1])
def test_a_packed_model_gives_the_same_outputs(tmp_path: Path, opset: int, transposed: int) -> None:
    """From the same integer kernels: a node of the decoding that is left over keeps onnxruntime from fusing them."""
    random = np.random.default_rng(1)
    gemm = random.standard_normal((5, 8) if transposed else (8, 5)).astype(np.float32)
    proto = make_model(
        [
            node("Conv", "x w b", "c", pads=[1, 1, 1, 1]),
            node("Relu", "c", "r"),
            node("Conv", "r d", "e", group=8, pads=[1, 1, 1, 1]),
            node("GlobalAveragePool", "e", "g"),
            node("Flatten", "g", "f"),
            node("Gemm", "f m", transB=transposed),
        ],
        {"x": ["N", 3, 8, 8]},
        ["y"],
        {
            "w": random.standard_normal((8, 3, 3, 3)).astype(np.float32),
            "b": random.standard_normal(8).astype(np.float32),
            "d": random.standard_normal((8, 1, 3, 3)).astype(np.float32),
            "m": gemm,
        },
        opset=opset,
    )
    case = emitted(proto, 3)
    packed = emit_qdq(case.original, case.layers, case.weights, case.placement, case.grids, PackedCodes())
    packed = Packed().finish(packed)
    for level in ("all", "off"):
        expected, found = (Session(model, level).run(case.feeds)["y"] for model in (case.model, packed))
        np.testing.assert_array_equal(found, expected)
    write_model(packed, tmp_path / "packed.onnx")
    assert fused_operators(tmp_path / "packed.onnx") == fused_operators(case.save(tmp_path))
    assert packed.outputs == ("y",)
    assert {spec.name for spec in packed.inputs} == {"x"}
