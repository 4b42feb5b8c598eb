"""Our files are fit for their targets, and whatever a target cannot take is found and named."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper

from onnx_cbq.graph.load import load
from onnx_cbq.model import Array
from onnx_cbq.runtime import Session
from onnx_cbq.targets import TARGETS, find_target
from onnx_cbq.targets.lint import RULES, lint
from onnx_cbq.targets.target import Fact
from tests.graphs import make_model, node
from tests.targets.files import copy, facts, found_in, give, made, maker, net, nodes_of, pair_at, regrid, value

NAMES = [target.name for target in TARGETS]


@pytest.mark.parametrize("name", NAMES)
def test_our_files_are_fit_for_their_target(name: str) -> None:
    assert [str(violation) for violation in found_in(made(name), name)] == []


@pytest.mark.parametrize("name", NAMES)
def test_our_files_compute_what_the_float_model_does(name: str) -> None:
    """In the plain graph, which is what a target's own kernels compute."""
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    session, reference = Session(load(made(name)), "off"), Session(load(net()))
    one, other = session.run({"x": x})["y"], reference.run({"x": x})["y"]
    coarse = 0.25 if name == "vitis" else 0.1
    assert np.abs(one - other).max() < coarse * np.abs(other).max()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "vnni"])
def test_every_file_but_one_for_vnni_is_pair_safe(name: str) -> None:
    """So that what is verified on any x86 machine is what the target computes."""
    assert "pairs" not in facts(made(name), "cpu")
    assert "pairs" not in facts(made(name), "openvino")


def test_a_file_for_vnni_is_wrong_elsewhere() -> None:
    found = found_in(made("vnni"), "cpu")
    assert {violation.finding.fact for violation in found} == {"pairs"}
    assert all(violation.effect == "wrong" for violation in found)
    assert len(found) >= 3


def test_the_depthwise_convolution_may_have_any_codes() -> None:
    proto = copy(made("cpu"))
    weight = maker(proto, maker(proto, "c4").input[1])
    give(proto, weight, 0, np.full((8, 1, 3, 3), 127, np.int8))
    assert facts(proto, "cpu") == set()


def test_fewer_activation_bits_have_room_for_any_codes() -> None:
    """A Clip in front of a QuantizeLinear says how large codes can be; it belongs to the file."""
    proto = copy(made("vnni"))
    for quantizer in nodes_of(proto, "QuantizeLinear"):
        scale, zero = (value(proto, quantizer.input[i]) for i in (1, 2))
        ends = [np.float32((code - int(zero)) * float(scale)) for code in (0, 127)]
        clip = helper.make_node("Clip", [quantizer.input[0], "", ""], [f"{quantizer.output[0]}_cut"])
        for index, end in enumerate(ends, 1):
            give(proto, clip, index, np.array(end, np.float32))
        quantizer.input[0] = clip.output[0]
        proto.graph.node.insert(list(proto.graph.node).index(quantizer), clip)
    assert "pairs" not in facts(proto, "cpu")


Change = Callable[[onnx.ModelProto], None]


def large_codes(proto: onnx.ModelProto) -> None:
    weight = maker(proto, maker(proto, "c2").input[1])
    codes = value(proto, weight.input[0]).copy()
    codes[3, :2, 1, 1] = 100, 29
    give(proto, weight, 0, codes)


def lowest_codes(proto: onnx.ModelProto) -> None:
    weight = maker(proto, maker(proto, "c2").input[1])
    codes = np.zeros((8, 8, 3, 3), np.int8)
    codes[1, [0, 2], 0, 0] = -128
    give(proto, weight, 0, codes)


def other_axis(proto: onnx.ModelProto) -> None:
    weight = maker(proto, maker(proto, "c2").input[1])
    next(a for a in weight.attribute if a.name == "axis").i = 1


def own_bias_scale(proto: onnx.ModelProto) -> None:
    bias = maker(proto, maker(proto, "c2").input[2])
    give(proto, bias, 1, value(proto, bias.input[1]) * np.float32(1.5))


def float_weight(proto: onnx.ModelProto) -> None:
    give(proto, maker(proto, "c2"), 1, np.ones((8, 8, 3, 3), np.float32))


def uint8_weight(proto: onnx.ModelProto) -> None:
    weight = maker(proto, maker(proto, "c2").input[1])
    give(proto, weight, 0, (value(proto, weight.input[0]).astype(np.int16) + 128).astype(np.uint8))
    give(proto, weight, 2, np.full(8, 128, np.uint8))


def moved_weight(proto: onnx.ModelProto) -> None:
    weight = maker(proto, maker(proto, "c2").input[1])
    give(proto, weight, 2, np.full(value(proto, weight.input[1]).shape, 3, np.int8))


def scale_of_zero(proto: onnx.ModelProto) -> None:
    weight = maker(proto, maker(proto, "c2").input[1])
    give(proto, weight, 1, np.zeros_like(value(proto, weight.input[1])))


def scale_per_channel(proto: onnx.ModelProto) -> None:
    weight = maker(proto, maker(proto, "h").input[1])
    give(proto, weight, 1, np.full(12, 0.01, np.float32))
    give(proto, weight, 2, np.zeros(12, np.int8))
    weight.attribute.append(helper.make_attribute("axis", 0))


def unread_output(proto: onnx.ModelProto) -> None:
    """Somebody reads the product of a convolution in float."""
    proto.graph.node.append(helper.make_node("Exp", [nodes_of(proto, "Conv")[1].output[0]], ["seen"]))
    proto.graph.output.append(helper.make_empty_tensor_value_info("seen"))


def relu_above_the_grid(proto: onnx.ModelProto) -> None:
    conv = maker(proto, "c2")
    quantizer = next(n for n in nodes_of(proto, "QuantizeLinear") if n.input[0] in (conv.output[0], "r2"))
    regrid(proto, str(quantizer.input[0]), zero=np.array(7, value(proto, quantizer.input[2]).dtype))
    if quantizer.input[0] == conv.output[0]:
        relu = helper.make_node("Relu", [conv.output[0]], ["kept"])
        proto.graph.node.insert(list(proto.graph.node).index(conv) + 1, relu)
        quantizer.input[0] = "kept"


def unlike_pool(proto: onnx.ModelProto) -> None:
    regrid(proto, "p1", scale=np.array(0.5, np.float32))


def unlike_join(proto: onnx.ModelProto) -> None:
    regrid(proto, "j", scale=np.array(0.5, np.float32))


def huge_ratio(proto: onnx.ModelProto) -> None:
    weight = maker(proto, maker(proto, "c2").input[1])
    give(proto, weight, 1, np.full(8, 1e6, np.float32))


def tiny_range(proto: onnx.ModelProto) -> None:
    regrid(proto, "x", scale=np.array(1e-7, np.float32))


def uneven_scale(proto: onnx.ModelProto) -> None:
    regrid(proto, "x", scale=np.array(0.3, np.float32))


def middle_zero_point(proto: onnx.ModelProto) -> None:
    regrid(proto, "x", zero=np.array(5, np.int8))


def unsigned(proto: onnx.ModelProto) -> None:
    regrid(proto, "x", zero=np.array(0, np.uint8))


def signed(proto: onnx.ModelProto) -> None:
    regrid(proto, "x", zero=np.array(0, np.int8))


def channel_scales(proto: onnx.ModelProto) -> None:
    kind = value(proto, pair_at(proto, "x")[0].input[2]).dtype
    regrid(proto, "x", scale=np.full(3, 0.1, np.float32), zero=np.zeros(3, kind))


def no_zero_point(proto: onnx.ModelProto) -> None:
    quantizer, _ = pair_at(proto, "x")
    del quantizer.input[2]


def other_domain(proto: onnx.ModelProto) -> None:
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    pair_at(proto, "x")[0].domain = "com.microsoft"


def open_batch(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"


def two_samples(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def later_opset(proto: onnx.ModelProto) -> None:
    proto.opset_import[0].version = 27


def later_version(proto: onnx.ModelProto) -> None:
    proto.ir_version = 20


def missing_constant(proto: onnx.ModelProto) -> None:
    name = maker(proto, "c2").input[2]
    name = maker(proto, name).input[0]
    kept = [tensor for tensor in proto.graph.initializer if tensor.name != name]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)


def defaults(proto: onnx.ModelProto) -> None:
    conv = maker(proto, "c2")
    kept = [attribute for attribute in conv.attribute if attribute.name != "strides"]
    del conv.attribute[:]
    conv.attribute.extend(kept)


def quantized_branch(proto: onnx.ModelProto) -> None:
    add = maker(proto, "a")
    scale, zero = "branch_scale", "branch_zero"
    quantizer = helper.make_node("QuantizeLinear", ["c3", "", ""], ["c3_q"])
    give(proto, quantizer, 1, np.array(0.1, np.float32))
    give(proto, quantizer, 2, np.array(0, np.int8))
    scale, zero = quantizer.input[1], quantizer.input[2]
    dequantizer = helper.make_node("DequantizeLinear", ["c3_q", scale, zero], ["c3_dq"])
    at = list(proto.graph.node).index(add)
    for new in (dequantizer, quantizer):
        proto.graph.node.insert(at, new)
    add.input[list(add.input).index("c3")] = "c3_dq"


FOUND: list[tuple[str, Change, Fact]] = [
    *((name, large_codes, "pairs") for name in ("cpu", "openvino")),
    *((name, lowest_codes, "lowest code") for name in ("cpu", "arm64", "xnnpack")),
    *((name, other_axis, "axis") for name in ("cpu", "vnni", "arm64", "openvino", "tensorrt", "xnnpack", "qnn")),
    *((name, own_bias_scale, "bias scale") for name in ("cpu", "arm64", "qnn", "xnnpack")),
    *((name, float_weight, "float weight") for name in ("cpu", "tensorrt", "qnn", "vitis")),
    *((name, uint8_weight, "weight type") for name in ("arm64", "openvino", "tensorrt", "vitis")),
    *((name, moved_weight, "weight zero point") for name in ("openvino", "tensorrt", "qnn", "xnnpack", "vitis")),
    *((name, scale_of_zero, "scale") for name in ("tensorrt", "xnnpack")),
    *((name, scale_per_channel, "per tensor") for name in ("qnn", "vitis")),
    *((name, unread_output, "output") for name in ("cpu", "qnn", "vitis")),
    *((name, relu_above_the_grid, "relu") for name in ("cpu", "arm64", "qnn", "xnnpack")),
    *((name, unlike_pool, "equal grids") for name in ("qnn", "xnnpack", "vitis")),
    *((name, channel_scales, "one scale") for name in ("cpu", "openvino", "tensorrt", "qnn", "vitis")),
    *((name, later_opset, "opset") for name in ("cpu", "openvino", "tensorrt", "qnn")),
    *((name, other_domain, "domain") for name in ("tensorrt", "vitis")),
    *((name, defaults, "attributes") for name in ("tensorrt", "vitis")),
    *((name, middle_zero_point, "zero point") for name in ("tensorrt", "vitis")),
    *((name, unsigned, "activation type") for name in ("tensorrt", "vitis")),
    *((name, open_batch, "sizes") for name in ("qnn", "vitis")),
    ("qnn", signed, "activation type"),
    ("qnn", tiny_range, "range"),
    ("vitis", unlike_join, "one grid"),
    ("vitis", uneven_scale, "power of two"),
    ("vitis", two_samples, "samples"),
    ("xnnpack", huge_ratio, "requantization"),
    ("xnnpack", uint8_weight, "same type"),
    ("tensorrt", no_zero_point, "zero point written"),
    ("tensorrt", quantized_branch, "residual"),
    ("cpu", later_version, "ir"),
    ("cpu", missing_constant, "loads"),
]


@pytest.mark.parametrize(("name", "change", "fact"), FOUND, ids=lambda value: getattr(value, "__name__", value))
def test_what_a_target_cannot_take_is_found(name: str, change: Change, fact: Fact) -> None:
    proto = copy(made(name))
    change(proto)
    found = [violation for violation in found_in(proto, name) if violation.finding.fact == fact]
    assert found
    for violation in found:
        at = violation.finding
        assert at.node
        assert at.tensor
        assert at.expected != at.found
        assert str(violation).startswith(f"{violation.effect}: {at.node}: {at.tensor}: expected ")
        assert "\n" not in str(violation)


OTHERS: list[tuple[str, str, set[Fact]]] = [
    ("cpu", "tensorrt", {"activation type", "zero point", "bias", "on integers", "residual", "attributes"}),
    ("cpu", "qnn", {"sizes", "per tensor", "on integers", "output"}),
    ("cpu", "vitis", {"activation type", "power of two", "per tensor", "bias", "sizes", "attributes"}),
    ("cpu", "xnnpack", {"same type"}),
    ("tensorrt", "vitis", {"power of two", "bias", "per tensor", "sizes"}),
]


@pytest.mark.parametrize(("made_for", "name", "expected"), OTHERS)
def test_a_file_for_another_target_is_not_fit(made_for: str, name: str, expected: set[Fact]) -> None:
    assert expected <= facts(made(made_for), name)


def test_every_demand_has_a_test() -> None:
    """A rule that nothing can break would not be missed."""
    tested = {(name, fact) for name, _, fact in FOUND} | {(name, fact) for _, name, wanted in OTHERS for fact in wanted}
    known = {fact for _, fact in tested}
    assert {fact for target in TARGETS for fact in target.demands} - known <= {"float activation"}
    for target in TARGETS:
        assert not target.demands or any(name == target.name for name, _ in tested), target.name


def test_findings_that_are_refused_come_first() -> None:
    proto = copy(made("tensorrt"))
    quantized_branch(proto)
    middle_zero_point(proto)
    effects = [violation.effect for violation in found_in(proto, "tensorrt")]
    assert effects == sorted(effects, key=("refused", "wrong", "slow").index)
    assert len(set(effects)) > 1


def test_a_float_model_has_nothing_to_find() -> None:
    """But for what every file needs: TensorRT and the others want all of it quantized."""
    for target in TARGETS:
        found = {violation.finding.fact for violation in lint(load(net()), target)}
        assert found <= {"sizes", "attributes"}
    assert len(RULES) == len(set(RULES))
    assert find_target("cpu").lanes


@pytest.mark.parametrize("operator", ["Gemm", "MatMul"])
@pytest.mark.parametrize("quantized", [True, False])
def test_a_float_weight_is_named_only_where_onnxruntime_quantizes_it(operator: str, quantized: bool) -> None:
    """Files were refused for weights that onnxruntime leaves alone: what it makes of a file is the oracle."""
    nodes = [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "d"), node(operator, "d w", "p")]
    nodes += (
        [node("QuantizeLinear", "p s z", "r"), node("DequantizeLinear", "r s z")] if quantized else [node("Tanh", "p")]
    )
    constants: dict[str, Array] = {
        "w": np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32),
        "s": np.array(0.02, np.float32),
        "z": np.array(128, np.uint8),
    }
    proto = make_model(nodes, {"x": ["N", 7]}, ["y"], constants)
    content, model = proto.SerializeToString(), load(proto)
    x = {"x": np.random.default_rng(1).uniform(-2, 2, (64, 7)).astype(np.float32)}
    changed = np.abs(Session(content).run(x)["y"] - Session(content, "off").run(x)["y"]).max() > 1e-4
    assert changed == any(violation.finding.fact == "float weight" for violation in lint(model, find_target("cpu")))
