"""What the written model computes, that onnxruntime fuses it, and that it is plain ONNX."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnx_cbq.model import Array
from onnx_cbq.records.grids import fits_bits
from onnx_cbq.runtime import Session, fused_operators
from tests.exports import NETS
from tests.graphs import make_model, node
from tests.storage.emitted import distance, emitted, simulate

# Only float32 sums in another order; one activation on the neighbouring level would move an output by 1e-4 or more.
TOLERANCE = 1e-5


def weights(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def classifier(
    nodes: list[onnx.NodeProto], shape: list[int | str], constants: dict[str, Array], opset: int = 18
) -> onnx.ModelProto:
    """A model from `x` to `y` whose output has a declared type, as exporters write it."""
    proto = make_model(nodes, {"x": shape}, ["y"], constants, opset=opset)
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5]))
    return proto


def conv_net(opset: int = 18) -> onnx.ModelProto:
    """Conv, ReLU, MaxPool, Transpose, Flatten, Gemm: all on integers from end to end."""
    nodes = [
        node("Conv", "x w b", "a", pads=[1, 1, 1, 1]),
        node("Relu", "a", "c"),
        node("MaxPool", "c", "d", kernel_shape=[2, 2], strides=[2, 2]),
        node("Transpose", "d", "e", perm=[0, 3, 2, 1]),
        node("Flatten", "e", "f"),
        node("Gemm", "f v u", transB=1),
    ]
    constants = {"w": weights(4, 3, 3, 3), "b": weights(4), "v": weights(5, 64), "u": weights(5)}
    return classifier(nodes, ["N", 3, 8, 8], constants, opset)


def time_major_net() -> onnx.ModelProto:
    """MatMuls that are not written as Gemm, since their batch is the second axis."""
    nodes = [
        node("Transpose", "x", "t", perm=[1, 0, 2]),
        node("MatMul", "t w", "a"),
        node("Relu", "a", "b"),
        node("MatMul", "b v", "c"),
        node("Transpose", "c", "d", perm=[1, 0, 2]),
        node("Flatten", "d", "e"),
        node("Gemm", "e g"),
    ]
    return classifier(nodes, ["N", 6, 4], {"w": weights(4, 7), "v": weights(7, 3), "g": weights(18, 5)})


def corner_nodes(weight_node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """A layer between integer convolutions, in a residual block."""
    return [
        node("Conv", "x k", "s"),
        weight_node,
        node("Conv", "a k2", "c"),
        node("Add", "s c", "e"),
        node("Relu", "e", "f"),
        node("Flatten", "f", "h"),
        node("Gemm", "h g"),
    ]


BETWEEN = {"k": weights(3, 2, 1, 1), "k2": weights(3, 2, 1, 1, seed=1), "g": weights(60, 5)}
PADS = np.array([0, 0, 1, 1, 0, 0, 1, 1])
MADE: dict[str, onnx.ModelProto] = {
    "conv": conv_net(),
    "time-major": time_major_net(),
    "matmul-batched": classifier(
        corner_nodes(node("MatMul", "x w", "a")), ["N", 2, 5, 4], {"w": weights(2, 4, 4)} | BETWEEN
    ),
    "matmul-left": classifier(corner_nodes(node("MatMul", "w x", "a")), ["N", 2, 5, 4], {"w": weights(5, 5)} | BETWEEN),
    "transposed": classifier(
        corner_nodes(node("ConvTranspose", "x w", "a")), ["N", 2, 5, 4], {"w": weights(2, 2, 1, 1)} | BETWEEN
    ),
    "padded": classifier(
        [
            node("Conv", "x w", "a"),
            node("Pad", "a pads", "p"),
            node("Conv", "p v", "c"),
            node("Relu", "c", "d"),
            node("GlobalAveragePool", "d", "e"),
            node("Flatten", "e", "f"),
            node("Gemm", "f g", beta=1.0),
        ],
        ["N", 3, 4, 4],
        {"w": weights(4, 3, 1, 1), "v": weights(4, 4, 3, 3), "pads": PADS, "g": weights(4, 5)},
    ),
    "relu6": classifier(
        [
            node("Conv", "x w", "a"),
            node("Clip", "a low high", "c"),
            node("Flatten", "c", "f"),
            node("Gemm", "f g u"),
        ],
        ["N", 3, 4, 4],
        {
            "w": 9 * weights(4, 3, 1, 1),
            "g": weights(64, 5),
            "u": weights(1),
            "low": np.array(0, np.float32),
            "high": np.array(6, np.float32),
        },
    ),
    "shared": classifier(
        [
            node("Conv", "x w b", "a"),
            node("Relu", "a", "c"),
            node("Conv", "c w b", "d"),
            node("Flatten", "d", "f"),
            node("Gemm", "f g"),
        ],
        ["N", 3, 4, 4],
        {"w": weights(3, 3, 1, 1), "b": weights(3), "g": weights(48, 5)},
    ),
}


@pytest.mark.parametrize("activations", [True, False], ids=["integers", "float-activations"])
@pytest.mark.parametrize("bits", [1, 3, 6, 8])
@pytest.mark.parametrize("name", MADE)
def test_hand_made_models_compute_what_the_simulation_does(name: str, bits: int, activations: bool) -> None:
    case = emitted(MADE[name], bits, activations=activations)
    expected = simulate(case)["y"]
    assert distance(Session(case.model, "off").run(case.feeds)["y"], expected) < TOLERANCE


@pytest.mark.parametrize("name", MADE)
def test_fused_hand_made_models_compute_the_same(name: str, tmp_path: Path) -> None:
    """At 6 bits no integer kernel saturates, whatever the processor: 2 x 255 x 63 fits into 16 bits."""
    case = emitted(MADE[name], 6)
    assert distance(Session(case.save(tmp_path)).run(case.feeds)["y"], simulate(case)["y"]) < TOLERANCE


@pytest.mark.parametrize("activation_bits", range(2, 8))
@pytest.mark.parametrize("name", MADE)
def test_narrow_activations_compute_the_same_fused_or_not(name: str, activation_bits: int, tmp_path: Path) -> None:
    """The integers have room for 256 levels; a runtime that saturates there would give something else."""
    case = emitted(MADE[name], 6, activation_bits=activation_bits)
    expected = simulate(case)["y"]
    path = case.save(tmp_path)
    assert distance(Session(path, "off").run(case.feeds)["y"], expected) < TOLERANCE
    assert distance(Session(path).run(case.feeds)["y"], expected) < TOLERANCE


@pytest.mark.parametrize("activation_bits", [2, 3, 5])
@pytest.mark.parametrize("name", MADE)
def test_no_narrow_activation_takes_more_levels_than_it_has(name: str, activation_bits: int) -> None:
    """Also on samples three times as large as those that the ranges come from."""
    case = emitted(MADE[name], 6, activation_bits=activation_bits)
    quantizers = [entry for entry in case.model.nodes if entry.op_type == "QuantizeLinear"]
    made_by = {entry.output[0]: entry for entry in case.model.nodes}
    integers = [entry.output[0] for entry in quantizers]
    found = Session(case.model.with_graph(outputs=integers)).run({n: 3 * x for n, x in case.feeds.items()})
    narrow = 0
    for entry in quantizers:
        clip, zero = made_by.get(entry.input[0]), int(case.model.weight(entry.input[2]))
        scale, codes = float(case.model.weight(entry.input[1])), found[entry.output[0]]
        assert codes.dtype == np.uint8
        if entry.input[0] in case.feeds:
            continue
        narrow += 1
        top = 2**activation_bits - 1
        assert clip is not None
        assert clip.op_type == "Clip"
        ends = [float(case.model.weight(end)) for end in clip.input[1:]]
        assert ends == pytest.approx([-zero * scale, (top - zero) * scale])
        assert codes.max() <= top
    assert narrow == len(case.placement.measured) - len(case.feeds)


def test_activations_of_8_bits_need_no_clip() -> None:
    """The integers saturate just there."""
    for name in ("conv", "shared", "time-major"):
        assert "Clip" not in {entry.op_type for entry in emitted(MADE[name], 6).model.nodes}


@pytest.mark.parametrize("activation_bits", [2, 4])
@pytest.mark.parametrize("name", NETS)
def test_narrow_activations_of_exported_nets_agree_with_the_simulation(
    exported: Callable[..., onnx.ModelProto], name: str, activation_bits: int, tmp_path: Path
) -> None:
    case = emitted(exported(name, dynamo=False), 6, activation_bits=activation_bits)
    expected = simulate(case)["logits"]
    path = case.save(tmp_path)
    assert distance(Session(path, "off").run(case.feeds)["logits"], expected) < TOLERANCE
    assert distance(Session(path).run(case.feeds)["logits"], expected) < TOLERANCE


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize("name", NETS)
def test_exported_nets_compute_what_the_simulation_does(
    exported: Callable[..., onnx.ModelProto], name: str, dynamo: bool, tmp_path: Path
) -> None:
    case = emitted(exported(name, dynamo=dynamo), 6)
    expected = simulate(case)["logits"]
    path = case.save(tmp_path)
    assert distance(Session(path, "off").run(case.feeds)["logits"], expected) < TOLERANCE
    assert distance(Session(path).run(case.feeds)["logits"], expected) < TOLERANCE


def test_the_simulation_is_not_the_float_model() -> None:
    """Else the tests above would pass on a model that was not quantized at all."""
    case = emitted(MADE["conv"], 6)
    float_outputs = Session(case.original).run(case.feeds)["y"]
    assert 0.001 < distance(simulate(case)["y"], float_outputs) < 0.1


def test_the_onnx_standard_agrees(tmp_path: Path) -> None:
    """Another implementation of the operators than onnxruntime, which users deploy to as well."""
    case = emitted(conv_net(21), 4)
    proto = onnx.load(case.save(tmp_path))
    values = dict(zip(case.model.outputs, ReferenceEvaluator(proto).run(None, dict(case.feeds)), strict=True))
    assert distance(values["y"], simulate(case)["y"]) < TOLERANCE


def operators(case_name: str, folder: Path) -> Counter[str]:
    return fused_operators(emitted(MADE[case_name], 4).save(folder))


def test_a_conv_net_runs_on_integers_from_end_to_end(tmp_path: Path) -> None:
    """One conversion at the start and none after it: pooling and reshaping take integers as they are."""
    found = operators("conv", tmp_path)
    kept = {"QuantizeLinear": 1, "QLinearConv": 1, "NhwcMaxPool": 1, "QGemm": 1}
    assert {name: found[name] for name in kept} == kept
    assert set(found) <= kept.keys() | {"Transpose", "Reshape", "Flatten"}


def test_matmuls_run_on_integers(tmp_path: Path) -> None:
    found = operators("time-major", tmp_path)
    assert found == Counter(QuantizeLinear=1, QLinearMatMul=2, QGemm=1, Transpose=2, Flatten=1)


def test_padding_with_zero_and_global_pooling_run_on_integers(tmp_path: Path) -> None:
    found = operators("padded", tmp_path)
    assert (found["QLinearConv"], found["QLinearGlobalAveragePool"], found["QGemm"]) == (2, 1, 1)
    assert (found["QuantizeLinear"], found["DequantizeLinear"], found["Relu"]) == (1, 0, 0)


def test_a_relu6_is_left_to_the_grid(tmp_path: Path) -> None:
    found = operators("relu6", tmp_path)
    assert (found["QLinearConv"], found["Clip"], found["DequantizeLinear"]) == (1, 0, 0)


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
def test_a_residual_net_is_fused_as_a_whole(
    exported: Callable[..., onnx.ModelProto], dynamo: bool, tmp_path: Path
) -> None:
    """Both exports: six convolutions, two residual additions, pooling and the classifier, all on integers."""
    found = fused_operators(emitted(exported("residual", dynamo=dynamo), 4).save(tmp_path))
    kept = {"QuantizeLinear": 1, "QLinearConv": 6, "QLinearAdd": 2, "QLinearAveragePool": 1, "QGemm": 1}
    assert {name: found[name] for name in kept} == kept
    assert set(found) <= kept.keys() | {"Transpose", "Reshape", "Flatten"}


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("depthwise", {"QLinearConv": 6, "QLinearAdd": 1, "QLinearMul": 2, "QLinearGlobalAveragePool": 2, "QGemm": 1}),
        ("vit", {"QLinearConv": 1, "QGemm": 9}),
        ("signal", {"QLinearConv": 2, "QLinearLeakyRelu": 1, "QGemm": 1}),
    ],
)
def test_layers_of_exported_nets_are_fused(
    exported: Callable[..., onnx.ModelProto], name: str, dynamo: bool, expected: dict[str, int], tmp_path: Path
) -> None:
    """Every layer with an integer kernel runs on it; no float Conv, Gemm or MatMul of a weight is left."""
    found = fused_operators(emitted(exported(name, dynamo=dynamo), 4).save(tmp_path))
    assert {operator: found[operator] for operator in expected} == expected
    assert found["Conv"] == found["Gemm"] == 0


@pytest.mark.parametrize("name", MADE)
def test_weights_are_int8_in_raw_data_with_a_zero_point_of_0(name: str) -> None:
    """INT4 or typed fields would not fuse or not load; the codes of each channel fit its bits along the right axis."""
    case = emitted(MADE[name], 3)
    proto = case.model.to_proto()
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    assert all(tensor.HasField("raw_data") for tensor in constants.values())
    seen = 0
    for dequantize in proto.graph.node:
        codes = constants.get(dequantize.input[0]) if dequantize.op_type == "DequantizeLinear" else None
        if codes is None or codes.data_type != TensorProto.INT8:
            continue
        seen += 1
        assert all(not np.any(numpy_helper.to_array(constants[zero])) for zero in dequantize.input[2:])
        scale = numpy_helper.to_array(constants[dequantize.input[1]])
        axis = next((a.i for a in dequantize.attribute), 0)
        if scale.ndim:
            assert scale.shape == (codes.dims[axis],)
            rows = np.moveaxis(numpy_helper.to_array(codes), axis, 0)
            assert all(fits_bits(row.reshape(-1), 3) for row in rows)
    assert seen == len(case.layers)


def test_no_float_weight_stays_in_the_file() -> None:
    case = emitted(conv_net(), 3)
    proto = case.model.to_proto()
    assert not {"w", "v", "b", "u"} & {tensor.name for tensor in proto.graph.initializer}
    floats = [t for t in proto.graph.initializer if t.data_type == TensorProto.FLOAT]
    assert max(int(np.prod(t.dims)) for t in floats) == 5  # scales per channel


def test_with_float_activations_only_weights_are_quantized() -> None:
    case = emitted(conv_net(), 3, activations=False)
    counts = Counter(entry.op_type for entry in case.model.nodes)
    assert (counts["QuantizeLinear"], counts["DequantizeLinear"]) == (0, 2)
    assert "b" in {t.name for t in case.model.skeleton.graph.initializer}  # float biases


@pytest.mark.parametrize("opset", [11, 13, 18, 21])
def test_any_opset_is_written_as_valid_onnx(opset: int, tmp_path: Path) -> None:
    """A scale per channel needs opset 13; later operator sets are kept."""
    case = emitted(conv_net(opset), 4)
    path = case.save(tmp_path)
    onnx.checker.check_model(str(path), full_check=True)
    versions = {entry.domain: entry.version for entry in onnx.load(path).opset_import}
    assert versions == {"": max(opset, 13)}


def test_a_quantized_graph_output_keeps_its_name() -> None:
    """A feature map that is an output as well as read further must stay one, under its own name."""
    proto = conv_net()
    proto.graph.output.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, ["N", 4, 8, 8]))
    case = emitted(proto, 6)
    assert case.model.outputs == ("y", "c")
    values, expected = Session(case.model, "off").run(case.feeds), simulate(case)
    assert distance(values["c"], expected["c"]) < TOLERANCE
    assert distance(values["y"], expected["y"]) < TOLERANCE
