"""Models as other tools write them go the whole way: what they take and give stays, and what they compute nearly so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnx_cbq
from onnx_cbq.graph.load import load
from onnx_cbq.graph.shapes import Example
from onnx_cbq.methods.rate_distortion import SearchReport
from onnx_cbq.model import Array
from onnx_cbq.runtime import Session
from tests.graphs import make_model, node

RANDOM = np.random.default_rng(11)
EIGHT = onnx_cbq.QuantizeConfig(method="uniform", bits=8, rounding="nearest", equalize=False)


def normal(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


@dataclass(frozen=True)
class Case:
    """A model, samples of it, and what a user feeds it afterwards besides."""

    model: onnx.ModelProto
    x: Mapping[str, Array]
    others: tuple[Mapping[str, Array], ...] = ()
    note: str = ""
    scores: str = "y"
    fields: Mapping[str, str] = field(default_factory=dict)


def dense(kind: type = np.float32, *, outputs: tuple[str, ...] = ("y",), opset: int = 18) -> onnx.ModelProto:
    nodes = [node("MatMul", "x w", "h"), node("Relu", "h", "r"), node("Gemm", "r v b")]
    constants: dict[str, Array] = {
        "w": normal(12, 20).astype(kind),
        "v": normal(20, 3).astype(kind),
        "b": normal(3).astype(kind),
    }
    return make_model(nodes, {"x": ["N", 12]}, list(outputs), constants, dtypes={"x": kind}, opset=opset)


def text(length: int | str) -> onnx.ModelProto:
    """[N, T, 6] -> MatMul -> mean over T -> scores."""
    nodes = [
        node("MatMul", "x w", "m"),
        node("Add", "m a", "h"),
        node("Relu", "h", "r"),
        node("ReduceMean", "r axes", "p", keepdims=0),
        node("Gemm", "p v"),
    ]
    constants: dict[str, Array] = {"w": normal(6, 20), "a": normal(20), "axes": np.array([1]), "v": normal(20, 3)}
    return make_model(nodes, {"x": ["N", length, 6]}, ["y"], constants)


def optimized(proto: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimized.onnx")


def conv_net() -> onnx.ModelProto:
    nodes = [
        node("Conv", "x w1 b1", "c", pads=[1] * 4),
        node("LeakyRelu", "c", "r", alpha=0.2),
        node("GlobalAveragePool", "r", "p"),
        node("Flatten", "p", "f"),
        node("Gemm", "f v b", "z"),
        node("Softmax", "z"),
    ]
    constants = {"w1": normal(8, 3, 3, 3), "b1": normal(8), "v": normal(8, 3), "b": normal(3)}
    return make_model(nodes, {"x": ["N", 3, 6, 6]}, ["y"], constants)


def with_default() -> onnx.ModelProto:
    proto = dense()
    proto.graph.node.insert(2, node("Mul", "r t", "s"))
    proto.graph.node[3].input[0] = "s"
    proto.graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "t"))
    proto.graph.input.append(helper.make_tensor_value_info("t", TensorProto.FLOAT, []))
    return proto


def cases(folder: Path) -> dict[str, Case]:
    rows, images = {"x": normal(30, 12)}, {"x": normal(30, 3, 6, 6)}
    words = {"x": normal(30, 5, 6)}
    longer = tuple({"x": normal(4, length, 6)} for length in (1, 3, 10, 17))
    half, double = ({"x": rows["x"].astype(kind)} for kind in (np.float16, np.float64))
    named = dense()
    named.metadata_props.add(key="names", value="{0: 'cat'}")
    named.opset_import.append(helper.make_opsetid("my.lib", 1))
    quantized = onnx_cbq.quantize(dense(), onnx_cbq.CalibrationSet.from_arrays(rows, np.arange(30) % 3), EIGHT)
    return {
        "dynamic-length": Case(text("T"), words, longer),
        "fixed-length": Case(text(5), words),
        "half": Case(dense(np.float16), half),
        "double": Case(dense(np.float64), double),
        "input-as-output": Case(dense(outputs=("y", "x")), rows),
        "weight-as-output": Case(dense(outputs=("y", "v")), rows),
        "optimized": Case(optimized(conv_net(), folder), images),
        "default-value": Case(with_default(), rows, note="input 't' had a default value"),
        "metadata": Case(named, rows, fields={"names": "{0: 'cat'}"}),
        "quantized": Case(quantized.model.to_proto(), rows, note="is quantized already"),
    }


CASES = ["dynamic-length", "fixed-length", "half", "double", "input-as-output", "weight-as-output", "optimized"]
CASES += ["default-value", "metadata", "quantized"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    return cases(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("name", CASES)
def test_a_model_is_quantized_and_keeps_what_it_takes_and_gives(made: dict[str, Case], name: str) -> None:
    case = made[name]
    data = onnx_cbq.CalibrationSet.from_arrays(case.x, np.arange(30) % 3)
    result = onnx_cbq.quantize(case.model, data, EIGHT)
    assert case.note in " ".join(result.notes)
    written = result.model.to_proto()
    onnx.checker.check_model(written, full_check=True)
    given = {tensor.name for tensor in case.model.graph.initializer}
    inputs = [info for info in case.model.graph.input if info.name not in given]
    assert [info.name for info in written.graph.input] == [info.name for info in inputs]
    assert [info.type for info in written.graph.input] == [info.type for info in inputs]
    assert [info.name for info in written.graph.output] == [info.name for info in case.model.graph.output]
    kept = {entry.key: entry.value for entry in written.metadata_props}
    assert {key: kept.get(key) for key in case.fields} == dict(case.fields)
    source, found = Session(load(case.model), "off"), Session(written.SerializeToString())
    for feeds in (case.x, *case.others):
        expected = source.run(feeds)
        for output, value in found.run(feeds).items():
            assert (value.shape, value.dtype) == (expected[output].shape, expected[output].dtype)
            if feeds is not case.x:  # at another length the grids may not reach as far
                continue
            # Two grids of 256 steps over what a normal distribution of a thousand reaches, and 8-bit weights.
            distance = np.linalg.norm(value.astype(float) - expected[output].astype(float))
            assert distance < 0.03 * np.linalg.norm(expected[output].astype(float))


def test_the_default_method_differentiates_what_an_optimizer_wrote(made: dict[str, Case]) -> None:
    case = made["optimized"]
    assert {n.domain for n in case.model.graph.node} == {"", "com.microsoft"}
    data = onnx_cbq.CalibrationSet.from_arrays(case.x, np.arange(30) % 3)
    result = onnx_cbq.quantize(case.model, data, onnx_cbq.QuantizeConfig(bits=4))
    assert len(result.layers) == 2
    assert isinstance(result.method, SearchReport)
    assert "sensitivity" in result.method.measured


def test_a_quantized_model_is_differentiated_as_the_float_model_behind_it(made: dict[str, Case]) -> None:
    case = made["quantized"]
    data = onnx_cbq.CalibrationSet.from_arrays(case.x, np.arange(30) % 3)
    result = onnx_cbq.quantize(case.model, data, onnx_cbq.QuantizeConfig(bits=4))
    assert isinstance(result.method, SearchReport)
    assert "sensitivity" in result.method.measured
    assert result.average_bits <= 4


def test_made_up_inputs_have_a_length_that_the_model_runs_with() -> None:
    """A window of a sound is longer than a word: reflecting 40 samples of 16 is an error."""
    nodes = [
        node("Pad", "x pads", "p", mode="reflect"),
        node("Conv", "p w", "c", strides=[8]),
        node("GlobalAveragePool", "c", "g"),
        node("Flatten", "g", "f"),
        node("Gemm", "f v"),
    ]
    constants = {"pads": np.array([0, 0, 40, 0, 0, 40]), "w": normal(4, 1, 16), "v": normal(4, 2)}
    model = load(make_model(nodes, {"x": ["N", 1, "T"]}, ["y"], constants))
    example = Example.made_up(model)
    assert Session(model).run(example.feeds)["y"].shape == (3, 2)
    elsewhere = example.at_another_size(model)
    assert elsewhere is not None
    assert elsewhere["x"].shape[2] == 2 * example.feeds["x"].shape[2]


def test_functions_behind_operators_that_onnx_does_not_know_are_expanded() -> None:
    """The inliner wants a type for what it is given, and infers none behind another domain."""
    nodes = [node("MatMul", "x w", "h"), node("Inverse", "h", "i"), node("HardSwish", "i", "s")]
    nodes[1].domain = "com.microsoft"
    nodes += [node("Flatten", "s", "f"), node("Gemm", "f v")]
    proto = make_model(nodes, {"x": ["N", 4, 4]}, ["y"], {"w": normal(4, 4), "v": normal(16, 3)})
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    data = onnx_cbq.CalibrationSet.from_arrays({"x": normal(24, 4, 4)}, np.arange(24) % 3)
    result = onnx_cbq.quantize(proto, data, onnx_cbq.QuantizeConfig(bits=4, rounding="nearest"))
    assert any("com.microsoft.Inverse has no gradient rule" in note for note in result.notes)


def test_an_input_that_is_one_number_is_no_list_of_samples() -> None:
    nodes = [node("MatMul", "x w", "h"), node("Mul", "h t", "s"), node("Gemm", "s v")]
    proto = make_model(nodes, {"x": ["N", 12], "t": []}, ["y"], {"w": normal(12, 20), "v": normal(20, 3)})
    assert len(onnx_cbq.quantize_without_data(proto).layers) == 2


def test_padding_of_signed_codes_is_checked_as_this_processor_runs_it() -> None:
    """A file for ARM has int8 activations; onnxruntime makes them uint8 here, and the code that fills with them."""
    nodes = [
        node("Pad", "x pads", "p"),
        node("Conv", "p w b", "c"),
        node("Relu", "c", "r"),
        node("GlobalAveragePool", "r", "g"),
        node("Flatten", "g", "f"),
        node("Gemm", "f v"),
    ]
    constants: dict[str, Array] = {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "w": normal(8, 3, 3, 3), "b": normal(8)}
    proto = make_model(nodes, {"x": ["N", 3, 6, 6]}, ["y"], constants | {"v": normal(8, 3)})
    data = onnx_cbq.CalibrationSet.from_arrays({"x": normal(24, 3, 6, 6)}, np.arange(24) % 3)
    found = onnx_cbq.quantize(proto, data, replace(EIGHT, target="arm64"))
    assert "Pad" in {n.op_type for n in found.model.nodes}
