"""The whole way from a float model to a quantized one, on models as users export them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnx_cbq
from onnx_cbq import CalibrationSet, ModelError, QuantizeConfig, Result, evaluate, quantize, score
from onnx_cbq.graph.load import load
from onnx_cbq.methods.rate_distortion import SearchReport
from onnx_cbq.model import Array
from onnx_cbq.runtime import Session, fused_operators
from onnx_cbq.verification.verify import check_codes
from tests.conftest import random_set
from tests.exports import CLASSES, NETS, export, make_net, sklearn_classifier
from tests.graphs import make_model, node
from tests.storage.emitted import distance

UNIFORM = QuantizeConfig(bits=8, method="uniform")
CBQ = QuantizeConfig(bits=4, method="cbq")
DEFAULT = QuantizeConfig(bits=3.3)
SHAPES: dict[str, tuple[int, ...]] = {name: make_net(name).example_shape for name in NETS}  # type: ignore[misc]


def assert_plan_is_in_the_file(result: Result) -> None:
    """The codes that were written fit the bits that the result reports, channel by channel."""
    codes = {tensor.name: tensor for tensor in result.proto.graph.initializer}
    assert [layer.name for layer in result.layers] == list(result.plan.bits)
    for layer in result.layers:
        stored = numpy_helper.to_array(codes[f"{layer.weight}_q"])
        assert stored.dtype == np.int8
        rows = np.moveaxis(stored, layer.weight_axis, 0)
        stay = np.delete(result.plan.bits[layer.name], result.removal.removed.get(layer.name, ()))
        assert len(rows) == len(stay)
        check_codes(layer.name, rows.reshape(len(rows), -1), stay)


def output_error(source: onnx.ModelProto, result: Result, feeds: dict[str, Array], output: str) -> float:
    expected = Session(load(source)).run(feeds)[output]
    return distance(Session(result.model).run(feeds)[output], expected)


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize("name", NETS)
def test_exported_nets_at_8_bits_stay_near_float(
    exported: Callable[..., onnx.ModelProto], name: str, dynamo: bool
) -> None:
    """Weights of 127 levels either side and activations of 256: an error of a percent or so at the outputs."""
    proto = exported(name, dynamo=dynamo)
    before = proto.SerializeToString()
    data = random_set(SHAPES[name])
    result = quantize(proto, data, UNIFORM)
    assert output_error(proto, result, {"input": data.source.read("x", range(40))}, "logits") < 0.03
    assert result.average_bits == 8
    assert_plan_is_in_the_file(result)
    assert proto.SerializeToString() == before


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("config", [CBQ, DEFAULT], ids=["cbq", "default"])
def test_exported_nets_meet_the_average_that_was_asked_for(
    exported: Callable[..., onnx.ModelProto], config: QuantizeConfig, name: str, dynamo: bool
) -> None:
    result = quantize(exported(name, dynamo=dynamo), random_set(SHAPES[name]), config)
    assert config.bits - 0.05 < result.average_bits <= config.bits
    assert_plan_is_in_the_file(result)
    assert len({width for bits in result.plan.bits.values() for width in bits.tolist()}) > 1
    assert result.scores is not None
    stages = {
        "load", "trial", "equalize", "statistics", "activations", "search", "rounding", "removal", "emit", "verify",
    }  # fmt: skip
    assert set(result.seconds) == stages


def test_both_exports_of_a_net_give_the_same_bits(exported: Callable[..., onnx.ModelProto]) -> None:
    """They name and write things differently; what is quantized is the same net."""
    results = [quantize(exported("residual", dynamo=dynamo), random_set(SHAPES["residual"]), CBQ) for dynamo in (1, 0)]
    one, other = (np.concatenate(list(result.plan.bits.values())) for result in results)
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("config", [UNIFORM, CBQ], ids=["uniform", "cbq"])
@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch_gives_what_a_dynamic_one_does(
    exported: Callable[..., onnx.ModelProto], batch: int, config: QuantizeConfig
) -> None:
    """The last batch is filled up with samples that must not count, in scores, ranges or accuracies."""
    data = random_set(SHAPES["residual"], 42)
    fixed = quantize(export(make_net("residual"), dynamo=False, dynamic_batch=False, batch=batch), data, config)
    dynamic = quantize(exported("residual", dynamo=False), data, config)
    assert load(fixed.proto).inputs[0].shape == (batch, *SHAPES["residual"])
    for one, other in zip(fixed.plan.bits.values(), dynamic.plan.bits.values(), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(fixed.reference.confusion, dynamic.reference.confusion)
    assert fixed.quantized.samples == 42


def test_a_path_and_a_proto_give_the_same_model(exported: Callable[..., onnx.ModelProto], tmp_path: Path) -> None:
    proto = exported("signal", dynamo=False)
    onnx.save(proto, tmp_path / "model.onnx")
    data = random_set(SHAPES["signal"])
    results = [quantize(source, data, CBQ) for source in (proto, tmp_path / "model.onnx", str(tmp_path / "model.onnx"))]
    assert results[0].proto == results[1].proto == results[2].proto
    assert results[1].reference.bytes == (tmp_path / "model.onnx").stat().st_size


@pytest.mark.parametrize("config", [UNIFORM, CBQ, DEFAULT], ids=["uniform", "cbq", "default"])
def test_the_saved_file_is_evaluated_to_the_last_digit(
    exported: Callable[..., onnx.ModelProto], config: QuantizeConfig, tmp_path: Path
) -> None:
    """What the result claims is what the file does."""
    data = random_set(SHAPES["residual"], 230)
    proto = exported("residual", dynamo=True)
    result = quantize(proto, data, config)
    size = result.save(tmp_path / "quantized.onnx")
    assert result.quantized.bytes == size == (tmp_path / "quantized.onnx").stat().st_size
    found = evaluate(tmp_path / "quantized.onnx", data, reference=proto)
    for one, other in ((found.model, result.quantized), (found.reference, result.reference)):
        assert one is not None
        np.testing.assert_array_equal(one.confusion, other.confusion)
        assert (one.top1, one.top5, one.per_class) == (other.top1, other.top5, other.per_class)
    assert found.agreement == result.agreement
    assert found.model.bytes == size


@pytest.mark.parametrize("config", [CBQ, DEFAULT], ids=["cbq", "default"])
def test_a_second_run_gives_the_same_file(exported: Callable[..., onnx.ModelProto], config: QuantizeConfig) -> None:
    """Nothing may depend on the clock, on threads or on the order of a set."""
    proto, data = exported("depthwise", dynamo=False), random_set(SHAPES["depthwise"])
    assert quantize(proto, data, config).proto == quantize(proto, data, config).proto


def test_with_float_activations_only_weights_are_quantized(
    exported: Callable[..., onnx.ModelProto], tmp_path: Path
) -> None:
    config = QuantizeConfig(bits=8, method="uniform", activation_bits=0)
    proto, data = exported("residual", dynamo=True), random_set(SHAPES["residual"])
    result = quantize(proto, data, config)
    result.save(tmp_path / "quantized.onnx")
    found = fused_operators(tmp_path / "quantized.onnx")
    assert found["QuantizeLinear"] == found["QLinearConv"] == 0
    feeds = {"input": data.source.read("x", range(40))}
    # Of two sources of error one is gone; 8-bit weights alone give a few thousandths.
    assert output_error(proto, result, feeds, "logits") < 0.01
    assert_plan_is_in_the_file(result)


@pytest.mark.parametrize("criterion", ["mse", "percentile", "minmax"])
@pytest.mark.parametrize("bits", [2, 5])
def test_narrow_activations_are_those_that_layers_multiply(
    exported: Callable[..., onnx.ModelProto], bits: int, criterion: str
) -> None:
    """Each saturates in a Clip of its own; the model's input keeps 8 bits."""
    config = QuantizeConfig(bits=4, method="uniform", activation_bits=bits, activation_range=criterion)
    proto, data = exported("residual", dynamo=False), random_set(SHAPES["residual"])
    result = quantize(proto, data, config)
    assert_plan_is_in_the_file(result)
    made_by = {name: entry.op_type for entry in result.proto.graph.node for name in entry.output}
    sources = [entry.input[0] for entry in result.proto.graph.node if entry.op_type == "QuantizeLinear"]
    assert "input" in sources
    read = {use.activation for layer in result.layers for use in layer.uses} - {"input"}
    assert sum(made_by.get(source) == "Clip" for source in sources) == len(read)


def test_a_model_that_does_not_declare_its_outputs_works(tmp_path: Path) -> None:
    """Some converters leave types and shapes out; the quantized model has them, and passes its check."""
    proto = make_model([node("Gemm", "x w", "a"), node("Relu", "a", "b"), node("Gemm", "b v")], {"x": ["N", 6]}, ["y"])
    for name, shape in (("w", (6, 9)), ("v", (9, CLASSES))):
        proto.graph.initializer.append(numpy_helper.from_array(weight(*shape), name))
    result = quantize(proto, random_set((6,)), DEFAULT)
    result.save(tmp_path / "quantized.onnx")
    (output,) = onnx.load(tmp_path / "quantized.onnx").graph.output
    assert (output.type.tensor_type.elem_type, output.type.tensor_type.shape.dim[1].dim_value) == (1, CLASSES)


def weight(*shape: int) -> Array:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def two_by_two() -> onnx.ModelProto:
    """Two inputs, an image and a vector, and two heads that could both be class scores."""
    proto = make_model(
        [
            node("Conv", "image w", "a"),
            node("Relu", "a", "b"),
            node("GlobalAveragePool", "b", "c"),
            node("Flatten", "c", "d"),
            node("Gemm", "vector v", "e"),
            node("Concat", "d e", "f", axis=1),
            node("Gemm", "f g", "kind"),
            node("Gemm", "f h", "colour"),
        ],
        {"image": ["N", 3, 6, 6], "vector": ["N", 7]},
        ["kind", "colour"],
        {"w": weight(8, 3, 3, 3), "v": weight(7, 8), "g": weight(16, CLASSES), "h": weight(16, 3)},
    )
    for info, classes in zip(proto.graph.output, (CLASSES, 3), strict=True):
        info.CopyFrom(helper.make_tensor_value_info(info.name, TensorProto.FLOAT, ["N", classes]))
    return proto


def pairs(count: int, classes: int) -> CalibrationSet:
    random = np.random.default_rng(0)
    images, vectors = random.standard_normal((count, 3, 6, 6)), random.standard_normal((count, 7))
    return CalibrationSet.from_arrays({"image": images, "vector": vectors}, np.arange(count) % classes)


@pytest.mark.parametrize(("logits", "classes"), [("kind", CLASSES), ("colour", 3)])
@pytest.mark.parametrize("method", ["uniform", "cbq", "rate-distortion"])
def test_several_inputs_and_outputs(logits: str, classes: int, method: str) -> None:
    """An array for each input by its name; the scores of the head that was named; both outputs count, unless told."""
    proto, data = two_by_two(), pairs(30, classes)
    other = {"kind": "colour", "colour": "kind"}[logits]
    config = QuantizeConfig(bits=6, method=method, logits=logits)
    result = quantize(proto, data, config)
    assert result.model.outputs == ("kind", "colour")
    assert len(result.class_names) == classes
    assert_plan_is_in_the_file(result)
    feeds = {name: data.source.read(name, range(30)).astype(np.float32) for name in ("image", "vector")}
    assert all(output_error(proto, result, feeds, name) < 0.1 for name in ("kind", "colour"))
    assert [found.output for found in result.outputs] == [other]
    assert result.outputs[0].relative is not None
    assert 0 < result.outputs[0].relative < 0.2
    if method != "uniform":
        ignoring = quantize(proto, data, replace(config, ignore_outputs=(other,)))
        assert ignoring.scores is not None
        assert ignoring.scores.by_layer[{"kind": "h", "colour": "g"}[logits]].gamma.max() == 0
        assert json.loads(ignoring.to_json())["outputs"][other]["ignored"]
        assert output_error(proto, ignoring, feeds, other) > 0.3
    expected = Session(load(proto)).run(feeds)[logits].argmax(axis=1)
    assert result.reference.top1 == pytest.approx(100 * np.mean(expected == np.arange(30) % classes))


def test_without_a_name_several_heads_are_an_error() -> None:
    with pytest.raises(ModelError, match=r"several outputs of shape .*name the class scores with --logits"):
        quantize(two_by_two(), pairs(30, CLASSES), UNIFORM)


def test_a_scikit_learn_classifier(tmp_path: Path) -> None:
    """Labels and probabilities come out as before, and nearly the same ones."""
    proto, x, y = sklearn_classifier()
    result = quantize(proto, CalibrationSet.from_arrays(x, y), CBQ)
    assert 3.5 < result.average_bits <= 4.0
    assert_plan_is_in_the_file(result)
    assert result.model.outputs == tuple(info.name for info in proto.graph.output)
    assert result.reference.top1 > 90
    assert result.quantized.top1 > result.reference.top1 - 5
    result.save(tmp_path / "quantized.onnx")
    assert evaluate(tmp_path / "quantized.onnx", CalibrationSet.from_arrays(x, y)).model.top1 == result.quantized.top1


def test_a_zipmap_is_read_by_its_keys(tmp_path: Path) -> None:
    """skl2onnx's default gives a list of dictionaries: what they hold are the same scores as without it."""
    plain, x, y = sklearn_classifier()
    proto, _, _ = sklearn_classifier({"zipmap": True})
    data = CalibrationSet.from_arrays(x, y)
    expected, result = quantize(plain, data, CBQ), quantize(proto, data, CBQ)
    assert result.reference.top1 == expected.reference.top1
    np.testing.assert_array_equal(result.quantized.confusion, expected.quantized.confusion)
    result.save(tmp_path / "quantized.onnx")
    assert evaluate(tmp_path / "quantized.onnx", data).model.top1 == result.quantized.top1


def test_scores_alone_are_those_of_the_whole_run(exported: Callable[..., onnx.ModelProto]) -> None:
    """`score` sees all drawn samples, `quantize` keeps a quarter of each class back to measure plans on."""
    proto, data = exported("residual", dynamo=False), random_set(SHAPES["residual"])
    layers, scores = score(proto, data)
    result = quantize(proto, data, CBQ)
    assert result.scores is not None
    assert scores.samples == (8,) * CLASSES
    assert result.scores.samples == (6,) * CLASSES
    assert [layer.name for layer in layers] == [layer.name for layer in result.layers]


def test_uniform_needs_no_gradients() -> None:
    """An operator without a rule stops `cbq` with that advice, which must then be right."""
    nodes = [node("Gemm", "x w", "a"), node("Hardmax", "a", "b"), node("Mul", "b a", "c"), node("Gemm", "c v")]
    proto = make_model(nodes, {"x": ["N", 6]}, ["y"], {"w": weight(6, 9), "v": weight(9, CLASSES)})
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", CLASSES]))
    with pytest.raises(onnx_cbq.UnsupportedOperatorError, match="--method uniform"):
        quantize(proto, random_set((6,)), CBQ)
    assert quantize(proto, random_set((6,)), UNIFORM).average_bits == 8
    # The default has criteria that need none, and says that it used them.
    result = quantize(proto, random_set((6,)), QuantizeConfig(bits=4))
    assert any("Hardmax has no gradient rule: widths are chosen by the noise" in note for note in result.notes)
    assert isinstance(result.method, SearchReport)
    assert set(result.method.measured) == {"noise", "noise, measured per layer"}
    assert result.average_bits <= 4


def spectrogram() -> tuple[onnx.ModelProto, CalibrationSet]:
    """Power in bands of a signal, its logarithm, a head with the mean of each class; tones in noise, loud and soft."""
    random = np.random.default_rng(0)
    steps = np.arange(64) * 2 * np.pi / 64
    angles = np.outer(np.arange(33), steps)
    fourier = np.concatenate([np.cos(angles), np.sin(angles)])[:, None] * np.hanning(64)
    bands = np.maximum(1 - np.abs(np.arange(33) - np.linspace(4, 28, CLASSES)[:, None]) / 4, 0)
    labels = np.arange(200) % CLASSES
    pitch = np.linspace(4, 28, CLASSES)[labels] + random.uniform(-1.5, 1.5, 200)
    x = np.sin(pitch[:, None] * np.arange(512) * 2 * np.pi / 64) + random.normal(0, 0.3, (200, 512))
    x *= 10 ** random.uniform(-2, 1, (200, 1))
    head = 2 * (np.eye(CLASSES) - 1 / CLASSES)
    nodes = [node("Conv", "x fourier", "s", strides=[32]), node("Mul", "s s", "p"), node("Conv", "p bands", "m")]
    nodes += [node("Add", "m least", "a"), node("Log", "a", "l"), node("ReduceMean", "l axes", "t", keepdims=0)]
    constants = {"fourier": fourier, "bands": np.tile(bands, 2)[..., None], "least": np.array(1e-3), "head": head}
    constants = {name: value.astype(np.float32) for name, value in constants.items()} | {"axes": np.array([2])}
    proto = make_model([*nodes, node("Gemm", "t head", "y")], {"x": ["N", 1, 512]}, ["y"], constants)
    return proto, CalibrationSet.from_arrays(x[:, None].astype(np.float32), labels)


@pytest.mark.parametrize("storage", ["int8", "archive"])
def test_a_spectrogram_in_the_graph_keeps_its_predictions(storage: str) -> None:
    """Sums below 0 in front of a logarithm ended in an exception; its input at 8 bits made soft tones all alike."""
    proto, data = spectrogram()
    result = quantize(proto, data, QuantizeConfig(bits=4, storage=storage))
    assert result.reference.top1 > 90
    assert result.agreement >= 97
