"""Models that are quantized when they come: taken as float ones, or with their layers left as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from onnx_cbq import (
    CalibrationSet,
    ConfigError,
    DataFreeConfig,
    ModelError,
    QuantizeConfig,
    RefineConfig,
    quantize,
    quantize_without_data,
)
from onnx_cbq.graph.load import load
from onnx_cbq.graph.quantized import as_float, quantized_layers
from onnx_cbq.model import Array, Model
from onnx_cbq.runtime import Session
from tests.command import Command
from tests.graphs import make_model, node

SHAPES = {"w1": (16, 6), "w2": (12, 16), "w3": (4, 12)}
LABELS = np.arange(80) % 4
X = (np.random.default_rng(1).standard_normal((80, 6)) + LABELS[:, None]).astype(np.float32)
DATA = CalibrationSet.from_arrays(X, LABELS)


def net(*quantized: str, relu: bool = True, top: int = 60) -> onnx.ModelProto:
    """Three Gemms, some of them with codes up to `top` and a grid in front; without `relu` only the grids cut at 0."""
    random = np.random.default_rng(0)
    constants: dict[str, Array] = {}
    nodes, source = [], "x"
    for number, (name, shape) in enumerate(SHAPES.items(), 1):
        weight = random.standard_normal(shape).astype(np.float32)
        constants[f"b{number}"] = random.standard_normal(shape[0]).astype(np.float32)
        if name in quantized:
            scale = (np.abs(weight).max(axis=1) / top).astype(np.float32)
            constants[f"{name}_codes"] = np.rint(weight / scale[:, None]).astype(np.int8)
            constants[f"{name}_scale"], constants[f"{name}_zero"] = scale, np.zeros(shape[0], np.int8)
            constants[f"s{number}"] = np.array(0.05, np.float32)
            constants[f"z{number}"] = np.array(128 if number == 1 else 0, np.uint8)
            nodes += [
                node("DequantizeLinear", f"{name}_codes {name}_scale {name}_zero", name, axis=0),
                node("QuantizeLinear", f"{source} s{number} z{number}", f"q{number}"),
                node("DequantizeLinear", f"q{number} s{number} z{number}", f"d{number}"),
            ]
            source = f"d{number}"
        else:
            constants[name] = weight
        nodes.append(node("Gemm", f"{source} {name} b{number}", "y" if number == 3 else f"a{number}", transB=1))
        source = f"a{number}"
        if number < 3 and relu:
            nodes.append(node("Relu", source, f"r{number}"))
            source = f"r{number}"
    return make_model(nodes, {"x": ["N", 6]}, ["y"], constants, opset=19)


def weights_of(proto: onnx.ModelProto) -> dict[str, Array]:
    """Each layer's weight, computed from its codes by hand where it has some."""
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    return {
        name: found[name] if name in found else found[f"{name}_codes"] * found[f"{name}_scale"][:, None]
        for name in SHAPES
    }


def by_hand(proto: onnx.ModelProto, *, low: float = 0.0, high: float = np.inf) -> Array:
    """The float net, its hidden values cut to a range."""
    biases = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    value = X.astype(np.float64)
    for number, weight in enumerate(weights_of(proto).values(), 1):
        value = value @ weight.T.astype(np.float64) + biases[f"b{number}"]
        value = value.clip(low, high) if number < 3 else value
    return value


def operators(model: Model) -> list[str]:
    return [one.op_type for one in model.nodes]


def test_grids_are_taken_out() -> None:
    """What is left computes with the weights that the codes stand for, and rounds nothing else."""
    proto = net("w1", "w2", "w3")
    model, notes = as_float(Model.from_proto(proto))
    assert "QuantizeLinear" not in operators(model)
    assert "Clip" not in operators(model)
    np.testing.assert_allclose(Session(model).run({"x": X})["y"], by_hand(proto), rtol=1e-4, atol=1e-4)
    (note,) = notes
    assert "is quantized already: it is taken as a float model with the values of its 3 quantized weights" in note
    assert "without 3 grids" in note


def test_a_grid_that_stands_for_a_relu_still_cuts() -> None:
    """onnxruntime's tool leaves out a Relu in front of a grid that begins at 0."""
    proto = net("w1", "w2", "w3", relu=False)
    model, _ = as_float(Model.from_proto(proto))
    assert operators(model).count("Clip") == 2
    np.testing.assert_allclose(Session(model).run({"x": X})["y"], by_hand(proto, high=0.05 * 255), rtol=1e-4, atol=1e-4)


def test_float_models_and_grids_of_which_more_is_made_stay() -> None:
    model = Model.from_proto(net())
    assert as_float(model) == (model, ())
    constants: dict[str, Array] = {"s": np.array(0.1, np.float32), "t": np.array(0.2, np.float32)}
    constants["z"] = np.array(0, np.uint8)
    for last in ("t", "s"):
        nodes = [node("QuantizeLinear", "x s z", "q"), node("MaxPool", "q", "p", kernel_shape=[2])]
        nodes.append(node("DequantizeLinear", f"p {last} z"))
        grids = Model.from_proto(make_model(nodes, {"x": ["N", 2, 6]}, ["y"], constants))
        found, (note,) = as_float(grids)
        assert ("QuantizeLinear" in operators(found)) == (last == "t")
        assert ("1 others stay beside ours" in note) == (last == "t")


def test_a_quantized_model_is_quantized_again() -> None:
    """With float activations its own grids stood in the file, whose target then refused it."""
    result = quantize(net("w1", "w2", top=127), DATA, QuantizeConfig(bits=5, activation_bits=0))
    assert list(result.plan.bits) == list(SHAPES)
    assert "QuantizeLinear" not in operators(result.model)
    assert any("is quantized already" in note for note in result.notes)
    free = quantize_without_data(net("w1", "w2", top=127), DataFreeConfig(5))
    assert "QuantizeLinear" not in operators(free.model)
    assert any("is quantized already" in note for note in free.notes)


def kept_parts(proto: onnx.ModelProto) -> dict[str, Array]:
    """What belongs to the layer `w2` and the grid in front of it."""
    names = ("w2_codes", "w2_scale", "w2_zero", "s2", "z2")
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer if t.name in names}


@pytest.mark.parametrize("activation_bits", [0, 8])
def test_layers_that_are_kept_are_written_as_they_came(activation_bits: int) -> None:
    """And the rest of the file is the model that came, with the weights that were chosen."""
    proto = net("w2")
    result = quantize(proto, DATA, QuantizeConfig(bits=4, activation_bits=activation_bits, keep_quantized=True))
    assert list(result.plan.bits) == ["w1", "w3"]
    assert result.layers.size == 96 + 48
    assert [(entry.name, entry.weights) for entry in result.layers.kept] == [("Gemm_a2", 192)]
    assert result.layers.left_float == ()
    assert any(note.startswith("--keep-quantized: 1 layers with 192 weights stay") for note in result.notes)
    for name, value in kept_parts(proto).items():
        np.testing.assert_array_equal(kept_parts(result.proto)[name], value)
    own = [(n.op_type, list(n.input)) for n in result.proto.graph.node]
    for one in proto.graph.node:
        if one.output[0] in ("w2", "d2"):
            assert (one.op_type, list(one.input)) in own
    check_outputs(proto, result.proto, exact=activation_bits == 0)


@pytest.mark.parametrize("storage", ["int8", "packed"])
def test_layers_are_kept_without_data_too(storage: str) -> None:
    proto = net("w2", top=127)
    result = quantize_without_data(proto, DataFreeConfig(4, keep_quantized=True, storage=storage))
    assert list(result.plan.bits) == ["w1", "w3"]
    assert result.notes == ("--keep-quantized: 1 layers with 192 weights stay as they are: Gemm_a2",)
    check_outputs(proto, result.proto, exact=True)


def check_outputs(proto: onnx.ModelProto, written: onnx.ModelProto, *, exact: bool) -> None:
    """Hold a file against the model that came, with what the file's other layers multiply with."""
    gemms = [one for one in written.graph.node if one.op_type == "Gemm"]
    read = [name for gemm in gemms for name in gemm.input[1:]]
    values = Session(Model.from_proto(written).with_graph(outputs=dict.fromkeys(read)), "off").run({"x": X})
    expected = onnx.ModelProto()
    expected.CopyFrom(proto)
    for number, gemm in enumerate(gemms, 1):
        for tensor in expected.graph.initializer:
            if tensor.name in (f"w{number}", f"b{number}"):
                value = values[gemm.input[1 if tensor.name[0] == "w" else 2]]
                tensor.CopyFrom(numpy_helper.from_array(value.reshape(tensor.dims), tensor.name))
    runs: list[Any] = [ReferenceEvaluator(one).run(None, {"x": X}) for one in (expected, written)]
    wanted, given = (run[0] for run in runs)
    tolerance = 1e-4 if exact else 0.03
    # A value in the middle of two codes may become either, in a few samples.
    apart = np.abs(given - wanted).max(axis=1) / np.abs(wanted).max()
    assert np.mean(apart <= tolerance) > 0.9


def test_layers_that_the_target_would_not_have_made_are_kept_with_a_note() -> None:
    """Codes up to 127 may saturate on processors without VNNI; that is how the model came."""
    for storage in ("int8", "packed"):
        config = QuantizeConfig(bits=4, keep_quantized=True, storage=storage, run_check=False)
        result = quantize(net("w2", top=127), DATA, config)
        assert any("layers that stay as they are" in note and "wrong: " in note for note in result.notes)


def test_keeping_is_refused_where_it_means_nothing(tmp_path: Path, command: Command) -> None:
    with pytest.raises(ConfigError, match="--keep-quantized: expected a layer whose weight"):
        quantize(net(), DATA, QuantizeConfig(keep_quantized=True))
    with pytest.raises(ConfigError, match="--keep-quantized: expected a layer whose weight"):
        quantize_without_data(net(), DataFreeConfig(keep_quantized=True))
    with pytest.raises(ConfigError, match="--keep-quantized: expected nothing that trains"):
        QuantizeConfig(keep_quantized=True, refine=RefineConfig())
    with pytest.raises(ModelError, match="all 3 are quantized already, and kept; leave out --keep-quantized"):
        quantize_without_data(net(*SHAPES), DataFreeConfig(keep_quantized=True))
    onnx.save(net("w1"), tmp_path / "half.onnx")
    settings = tmp_path / "settings.toml"
    settings.write_text("keep-quantized = true\nbits = 4\n")
    out = tmp_path / "out.onnx"
    command("quantize", tmp_path / "half.onnx", "--data-free", "--config", settings, "-o", out)
    assert len(list(quantized_layers(load(out)))) == 3
    assert np.array_equal(load(out).weight("w1_codes"), load(tmp_path / "half.onnx").weight("w1_codes"))


@pytest.mark.parametrize(("low", "cuts"), [(-1.0, True), (0.0, False), (0.5, False)])
def test_a_clip_below_0_does_not_stand_for_the_grid_that_cuts_at_0(low: float, *, cuts: bool) -> None:
    """The grid's own cut was left out behind any Clip, and the float model gave other answers."""
    nodes = [
        node("Clip", "x low high", "c"),
        node("QuantizeLinear", "c s z", "q"),
        node("DequantizeLinear", "q s z", "d"),
        node("Identity", "d"),
    ]
    ends: dict[str, Array] = {"low": np.array(low, np.float32), "high": np.array(1, np.float32)}
    grid: dict[str, Array] = {"s": np.array(1 / 255, np.float32), "z": np.array(0, np.uint8)}
    model = load(make_model(nodes, {"x": ["N", 6]}, ["y"], {**ends, **grid}))
    found, _ = as_float(model)
    assert ("Clip" in operators(found)[1:]) is cuts
    given, wanted = (Session(one).run({"x": X})["y"] for one in (found, model))
    np.testing.assert_allclose(given, wanted, atol=0.5 / 255 + 1e-6)


def test_declared_types_of_codes_go_with_the_codes() -> None:
    """Raising the operator set leaves them, and onnxruntime refused floats that are declared as uint8."""
    proto = net("w1", "w2")
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("q2", onnx.TensorProto.UINT8, ["N", 16]))
    model = Model.from_proto(proto)
    found, _ = as_float(model)
    assert Session(found).run({"x": X})["y"].shape == (80, 4)
