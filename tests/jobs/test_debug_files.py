"""`debug` takes files of any tool: other names, forms and grids are no error."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnx_cbq import CalibrationSet, DebugResult, debug
from onnx_cbq.model import Array
from tests.graphs import make_model, node
from tests.jobs.debugged import BIASES, CLASSES, DATA, WEIGHTS, X, draw, file_of, grids, net
from tests.qdq import coded, grid_of, on_grid, quantized_by_hand


def sound(result: DebugResult, layers: int = 3) -> bool:
    """Whether all layers were found, and all are like those of the float model."""
    ratios = [ratio for layer in result.layers for ratio in (layer.alone_snr, layer.accumulated_snr, layer.weight_snr)]
    assert (len(result.layers), result.unmatched, result.unmatched_in_file) == (layers, (), ())
    return all(ratio is not None and ratio > 25 for ratio in ratios)


def renamed_throughout(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same with a number for every name; nodes have none."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    names: dict[str, str] = {"": ""}
    for each in copy.graph.node:
        each.name = ""
        for field in (each.input, each.output):
            field[:] = [names.setdefault(name, f"t{len(names)}") for name in field]
    for info in (*copy.graph.input, *copy.graph.output, *copy.graph.initializer):
        info.name = names[info.name]
    return copy


def unfolded(*, wrong: float = 1.0) -> onnx.ModelProto:
    """The file of a net whose first Conv has a batch norm behind it still."""
    return file_of(normed(), larger={"w": wrong})


def normed() -> onnx.ModelProto:
    model = net()
    constants: dict[str, Array] = {
        "scale": np.linspace(0.5, 2, 8, dtype=np.float32),
        "shift": 0.1 * draw(7, 8),
        "mean": 0.1 * draw(8, 8),
        "var": np.linspace(0.2, 3, 8, dtype=np.float32),
    }
    model.graph.node[0].output[0] = "u"
    model.graph.node.insert(1, node("BatchNormalization", "u scale shift mean var", "p"))
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return model


def test_names_are_no_matter() -> None:
    result = debug(net(), renamed_throughout(file_of(net())), DATA)
    assert sound(result)
    broken = debug(net(), renamed_throughout(file_of(net(), larger={"v": 3})), DATA)
    assert broken.ranking[0] == broken.layers[1]
    assert broken.ranking[0].cause == "weights x 3.00"


def test_an_input_of_another_name() -> None:
    assert sound(debug(net(), file_of(net(name="pixels")), DATA))


def test_a_fixed_batch_of_the_file_or_of_the_float_model() -> None:
    fixed = file_of(net(batch=3))
    result = debug(net(), fixed, DATA, samples=10)
    assert sound(result)
    assert result.samples == 9
    assert sound(debug(net(batch=4), file_of(net()), DATA))


def test_a_batch_norm_that_was_left_unfolded() -> None:
    """The float model is normalised, so that its Conv has other weights, row by row."""
    result = debug(normed(), unfolded(), DATA)
    assert sound(result)
    assert "weights x" not in result.layers[0].cause
    # Whether weights or output are said to be larger is a matter of which tensor stands for the layer's output.
    broken = debug(normed(), unfolded(wrong=3), DATA).ranking[0]
    assert broken.name == result.layers[0].name
    assert broken.cause in (f"output x {broken.gain:.2f}", f"weights x {broken.weight_gain:.2f}")


@pytest.mark.parametrize("depthwise", [False, True])
def test_channels_that_were_cut_out_are_no_other_layers(*, depthwise: bool) -> None:
    """Ours cut channels of 0 bits out; such layers were not found in the file, and said nothing of."""
    rest, gone = [0, 1, 3, 4, 6, 7], [2, 5]
    whole = {"w": WEIGHTS["w"].copy(), "v": draw(2, 8, 1, 3, 3) if depthwise else draw(2, 8, 8, 3, 3)}
    whole["w"][gone] = 0
    fewer = dict(BIASES, b=BIASES["b"][rest])
    if depthwise:
        whole["v"][gone] = 0
        small = {"w": whole["w"][rest], "v": whole["v"][rest], "g": WEIGHTS["g"][:, rest]}
        # What is cut out is a constant, which the layer behind takes into its bias.
        constant = np.maximum(BIASES["c"][gone], 0)
        fewer |= {"c": BIASES["c"][rest], "d": BIASES["d"] + WEIGHTS["g"][:, gone] @ constant}
    else:
        whole["v"][:, gone] = 0
        small = {"w": whole["w"][rest], "v": whole["v"][:, rest]}
    model, file = (
        chain(weights, biases, groups=len(weights["w"]) if depthwise else 1)
        for weights, biases in ((whole, BIASES), (small, fewer))
    )
    result = debug(model, quantized_by_hand(file, grids(file, ["x", "r", "f"])), DATA)
    assert result.unmatched == result.unmatched_in_file == ()
    assert result.agreement == 100
    assert all((layer.alone_snr or 0) > 25 and (layer.weight_snr or 0) > 25 for layer in result.layers)


def chain(weights: dict[str, Array], biases: dict[str, Array], groups: int = 1) -> onnx.ModelProto:
    """The net of `debugged` with these weights, its second convolution in groups; nodes have names."""
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["p"], "one"),
        helper.make_node("Relu", ["p"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "v", "c"], ["q"], "two", group=groups),
        helper.make_node("Relu", ["q"], ["s"], "relu_1"),
        helper.make_node("GlobalAveragePool", ["s"], ["m"], "pool"),
        helper.make_node("Flatten", ["m"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "g", "d"], ["y"], "last", transB=1),
    ]
    constants = {**WEIGHTS, **biases, **weights}
    return make_model(nodes, {"x": ["N", 3, 6, 6]}, ["y"], constants, opset=17)


def test_a_table_is_not_missed() -> None:
    """It is in the file, only no product: it was listed as a layer that the file does not have."""
    words = np.random.default_rng(0).integers(0, 10, (40, 4))
    table, last = draw(1, 10, 6), draw(2, CLASSES, 6)
    nodes = [
        node("Gather", "table x", "e"),
        node("ReduceMean", "e", "m", axes=[1], keepdims=0),
        node("Gemm", "m v d", transB=1),
    ]
    constants = {"table": table, "v": last, "d": BIASES["d"]}
    model = make_model(nodes, {"x": ["N", 4]}, ["y"], constants, opset=17)
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    file = quantized_by_hand(model, {"m": grid_of(table[words].mean(axis=1))})
    result = debug(model, file, CalibrationSet.from_arrays(words, np.arange(len(words)) % CLASSES))
    assert sound(result, layers=1)
    (note,) = (note for note in result.notes if "figures of the file alone" in note)
    assert note.startswith("recurrent layers and tables are")


def test_a_square_matrix_that_is_stored_the_other_way() -> None:
    """By its shape alone it would be taken for itself, row for row."""
    x = draw(0, 40, 6)
    data = CalibrationSet.from_arrays(x, np.arange(len(x)) % CLASSES)
    square, last = draw(1, 6, 6), draw(2, CLASSES, 6)

    def dense(weight: Array, transposed: int) -> onnx.ModelProto:
        nodes = [
            node("Gemm", "x w b", "h", transB=transposed),
            node("Relu", "h", "r"),
            node("Gemm", "r v d", transB=1),
        ]
        constants = {"w": weight, "b": 0.1 * draw(3, 6), "v": last, "d": BIASES["d"]}
        return make_model(nodes, {"x": ["N", 6]}, ["y"], constants, opset=17)

    scales = {"x": grid_of(x), "r": grid_of(np.maximum(x @ square.T + 0.1 * draw(3, 6), 0))}
    result = debug(dense(square, 1), quantized_by_hand(dense(np.ascontiguousarray(square.T), 0), scales), data)
    assert sound(result, layers=2)


def test_a_layer_that_stayed_float_costs_nothing() -> None:
    model = net()
    result = debug(model, quantized_by_hand(model, grids(model, ["x", "f"]), left_float=["v"]), DATA)
    layer = result.layers[1]
    assert (layer.weight_type, layer.input_type, layer.cause) == ("float", "float", "")
    assert (layer.weight_snr, layer.input_snr, layer.divergence) == (110, None, 0)
    assert (layer.integer, layer.reason) == (False, "its weight is float")
    assert result.layers[0].divergence


def test_a_weight_that_is_turned_round_behind_its_grid() -> None:
    """Tools that cut weights into blocks put a Reshape behind DequantizeLinear: the layer is there all the same."""
    model = net()
    file = file_of(model)
    reader = next(i for i, each in enumerate(file.graph.node) if "v_dq" in each.input)
    file.graph.node[reader].input[1] = "v_shaped"
    file.graph.node.insert(reader, helper.make_node("Reshape", ["v_dq", "shape"], ["v_shaped"]))
    file.graph.initializer.append(numpy_helper.from_array(np.array(WEIGHTS["v"].shape), "shape"))
    result, plain = debug(model, file, DATA), debug(model, file_of(model), DATA)
    assert sound(result)
    layer = result.layers[1]
    assert (layer.weight_type, layer.reason, layer.cause) == ("float", "its weight is float", plain.layers[1].cause)
    assert layer.alone_snr == pytest.approx(plain.layers[1].alone_snr)
    assert layer.weight_snr == pytest.approx(plain.layers[1].weight_snr)


def test_an_input_on_a_grid_beside_a_float_weight() -> None:
    model = net()
    layer = debug(model, quantized_by_hand(model, grids(model, ["x", "r", "f"]), left_float=["v"]), DATA).layers[1]
    assert (layer.weight_type, layer.input_type, layer.cause) == ("float", "uint8", "input")
    assert layer.weight_alone_snr == 110
    assert layer.input_alone_snr == layer.alone_snr
    assert layer.alone_snr is not None
    assert 30 < layer.alone_snr < 60


def test_a_grid_of_several_scales_is_said_not_to_count() -> None:
    model = net()
    file = quantized_by_hand(model, grids(model, ["x", "r", "f"]))
    for each in file.graph.node:
        if each.op_type in ("QuantizeLinear", "DequantizeLinear") and each.input[1] == "x_scale":
            each.input[1:] = ["scales", "zeros"]
            each.attribute.append(helper.make_attribute("axis", 1))
    scales, zeros = np.full(3, grid_of(X)[0], np.float32), np.full(3, grid_of(X)[1], np.uint8)
    file.graph.initializer.extend([numpy_helper.from_array(scales, "scales"), numpy_helper.from_array(zeros, "zeros")])
    result = debug(model, file, DATA)
    assert (result.layers[0].input_type, result.layers[0].input_snr) == ("uint8", None)
    assert [note.partition(" is on")[0] for note in result.notes] == [f"what is read by {result.layers[0].name}"]
    assert result.layers[1].input_snr is not None


def test_a_grid_that_stands_for_the_relu() -> None:
    """A zero point of 0 cuts off what a Relu would: tools leave it out, and the product makes negative numbers."""
    model = net()
    known = grids(model, ["x", "r", "f"])
    without = quantized_by_hand(model, known)
    relu = next(each for each in without.graph.node if each.op_type == "Relu")
    for each in without.graph.node:
        if relu.output[0] in each.input:
            each.input[0] = relu.input[0]
    without.graph.node.remove(relu)
    assert known["r"][1] == 0
    assert sound(debug(model, without, DATA))


def blocked(model: onnx.ModelProto, weight: str, size: int) -> onnx.ModelProto:
    """The file with codes of 4 bits in blocks along the inputs of a MatMul."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    values = numpy_helper.to_array(next(t for t in copy.graph.initializer if t.name == weight))
    blocks = values.reshape(-1, size, values.shape[1])
    scale = (np.abs(blocks).max(axis=1) / 7).astype(np.float32)
    codes = np.rint(blocks / scale[:, None]).reshape(values.shape)
    kept = [t for t in copy.graph.initializer if t.name != weight]
    del copy.graph.initializer[:]
    packed = helper.make_tensor("codes", onnx.TensorProto.INT4, values.shape, codes.astype(int).reshape(-1).tolist())
    copy.graph.initializer.extend([*kept, packed, numpy_helper.from_array(scale, "scales")])
    reader = next(i for i, each in enumerate(copy.graph.node) if weight in each.input)
    copy.graph.node[reader].input[1] = "wide"
    unpack = helper.make_node("DequantizeLinear", ["codes", "scales"], ["wide"], axis=0, block_size=size)
    copy.graph.node.insert(reader, unpack)
    copy.opset_import[0].version = 21
    copy.ir_version = 10
    return copy


def test_weights_of_four_bits_in_blocks() -> None:
    x = 2 * draw(0, 24, 32)
    data = CalibrationSet.from_arrays(x, np.arange(24) % CLASSES)
    w, v = draw(1, 32, 16), draw(2, 16, CLASSES)
    nodes = [node("MatMul", "x w", "h"), node("Relu", "h", "r"), node("MatMul", "r v")]
    model = make_model(nodes, {"x": ["N", 32]}, ["y"], {"w": w, "v": v})
    result = debug(model, blocked(model, "w", 8), data)
    first, second = result.layers
    assert (first.weight_type, first.input_type, first.reason) == ("int4", "float", "what it reads is float")
    blocks = w.reshape(4, 8, 16)
    scale = (np.abs(blocks).max(axis=1, keepdims=True) / 7).astype(np.float32)
    found = (np.rint(blocks / scale) * scale).reshape(w.shape)
    expected = 10 * np.log10(np.square(w).sum() / np.square(w - found).sum())
    assert first.weight_snr == pytest.approx(expected, abs=1e-3)
    assert first.cause == "weights"
    assert second.weight_type == "float"


def test_a_layer_that_is_used_twice_is_named_by_its_tensors() -> None:
    w, v = draw(1, 6, 6), draw(2, 6, CLASSES)
    nodes = [
        node("MatMul", "x w", "h"),
        node("Relu", "h", "r"),
        node("MatMul", "r w", "k"),
        node("Relu", "k", "s"),
        node("MatMul", "s v"),
    ]
    model = make_model(nodes, {"x": ["N", 6]}, ["y"], {"w": w, "v": v})
    x = 2 * draw(0, 24, 6)
    r = np.maximum(x @ w, 0)
    known = {"x": grid_of(x), "r": (grid_of(r)[0] * 8, 0), "s": grid_of(np.maximum(r @ w, 0))}
    result = debug(model, quantized_by_hand(model, known), CalibrationSet.from_arrays(x, np.arange(24) % CLASSES))
    assert [layer.name for layer in result.layers][:2] == ["h", "k"]
    assert (result.ranking[0].name, result.ranking[0].cause) == ("k", "input")
    # Each use is measured by itself.
    expected = 10 * np.log10(np.square(r).sum() / np.square(r - on_grid(r, *known["r"])).sum())
    assert result.layers[1].input_snr == pytest.approx(expected, abs=1e-3)


def test_half_precision() -> None:
    half = {name: value.astype(np.float16) for name, value in {**WEIGHTS, **BIASES}.items()}
    model = net(weights=half)
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    result = debug(model, file_of(net()), CalibrationSet.from_arrays(X.astype(np.float16), np.arange(len(X)) % CLASSES))
    assert sound(result)


def test_what_runs_in_float_has_a_reason() -> None:
    """A bias that is not on the scale of the sums, a MatMul whose input is float, and a Pad between codes."""
    model = net()
    model.graph.node[2].attribute.extend([helper.make_attribute("pads", [0, 0, 0, 0])])
    known = grids(model, ["x", "r"])
    file = quantized_by_hand(model, known)
    biased(file, "c", known["r"][0] * coded(WEIGHTS["v"])[1] * 2)
    result = debug(model, file, DATA)
    reasons = [layer.reason for layer in result.layers]
    assert reasons[1].startswith("c_codes: expected the scale s_x s_w")
    assert reasons[2] == "what it reads is float"


def biased(file: onnx.ModelProto, bias: str, scale: float) -> None:
    """The bias as int32 codes."""
    tensor = next(t for t in file.graph.initializer if t.name == bias)
    codes = np.rint(numpy_helper.to_array(tensor) / scale).astype(np.int32)
    constants: dict[str, Array] = {f"{bias}_codes": codes, f"{bias}_scale": np.array(scale, np.float32)}
    file.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    reader = next(i for i, each in enumerate(file.graph.node) if bias in each.input)
    file.graph.node[reader].input[2] = f"{bias}_dq"
    file.graph.node.insert(reader, helper.make_node("DequantizeLinear", list(constants), [f"{bias}_dq"]))
