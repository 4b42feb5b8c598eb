"""Models that hold QuantizeLinear and DequantizeLinear when they come.

They are taken as the float models behind them: pairs that round activations are taken out, and weights are what their
codes stand for. A grid that begins at 0 may stand for a Relu, or for a Clip from 0, which tools leave out in front of
it; where no such node is there, a Clip to the range of the grid takes the pair's place.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from onnx_cbq.graph.integer_rules import MOVEMENT
from onnx_cbq.graph.load import LAYER_OPERATORS
from onnx_cbq.model import STANDARD, Array, Model

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
# What they give is never below 0; of a Clip see `_is_positive`.
_POSITIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Abs")


def as_float(model: Model) -> tuple[Model, tuple[str, ...]]:
    """The float model behind a quantized one, and a note of it; a float model as it is."""
    weights = len(list(quantized_layers(model)))
    pairs = [(node, ends) for node in model.nodes if node.op_type == _QUANTIZE and (ends := _ends(model, node))]
    staying = sum(node.op_type == _QUANTIZE for node in model.nodes) - len(pairs)
    if not weights and not pairs and not staying:
        return model, ()
    note = (
        f"the model is quantized already: it is taken as a float model with the values of its {weights} quantized "
        f"weights and without {len(pairs)} grids of its activations"
        + (f"; {staying} others stay beside ours" if staying else "")
        + ("; --keep-quantized leaves such layers as they are" if weights else "; start from the float model")
    )
    return _without(model, pairs) if pairs else model, (note,)


def quantized_layers(model: Model) -> Iterator[NodeProto]:
    """The nodes whose weight is made of stored codes."""
    for node in model.nodes:
        if node.op_type in LAYER_OPERATORS and node.domain in STANDARD and stored_weight(model, node):
            yield node


def stored_weight(model: Model, node: NodeProto) -> str | None:
    """The operand of a layer that is made of stored codes; None where there is none."""
    candidates = (1, 0) if node.op_type == "MatMul" else (1,)
    return next((node.input[i] for i in candidates if is_stored(model, node.input[i])), None)


def is_stored(model: Model, name: str) -> bool:
    """Whether a DequantizeLinear makes it of what does not depend on the samples."""
    producer = model.producers.get(name)
    if producer is None or producer.op_type != _DEQUANTIZE:
        return False
    waiting, seen = [str(producer.input[0])], set[str]()
    while waiting:
        tensor = waiting.pop()
        if tensor in seen or model.is_constant(tensor):
            continue
        seen.add(tensor)
        maker = model.producers.get(tensor)
        if maker is None or maker.op_type == _QUANTIZE:
            return False
        waiting += [other for other in maker.input if other]
    return True


def _ends(model: Model, quantizer: NodeProto) -> list[str]:
    """What is dequantized again of the codes of a QuantizeLinear, on the same grid; nothing where more is done."""
    grid = _grid(model, quantizer)
    if grid is None or grid[0].size != 1:
        return []
    waiting, found = [str(quantizer.output[0])], list[str]()
    while waiting:
        codes = waiting.pop()
        readers = model.consumers.get(codes, [])
        if codes in model.outputs or not readers:
            return []
        for node in readers:
            if node.op_type == _DEQUANTIZE and _same(_grid(model, node), grid) and node.input[0] == codes:
                found.append(str(node.output[0]))
            elif node.op_type in MOVEMENT and node.op_type != "Pad" and node.input[0] == codes:
                waiting += [str(name) for name in node.output if name]
            else:
                return []
    return found


def _grid(model: Model, node: NodeProto) -> tuple[Array, Array] | None:
    """Scale and zero point, uint8 0 where none is written; None where they are computed."""
    scale = model.constant(node.input[1]) if len(node.input) > 1 else None
    written = len(node.input) > 2 and bool(node.input[2])
    zero = model.constant(node.input[2]) if written else np.zeros((), np.uint8)
    return None if scale is None or zero is None else (scale, zero)


def _same(one: tuple[Array, Array] | None, other: tuple[Array, Array]) -> bool:
    return one is not None and all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def _without(model: Model, pairs: list[tuple[NodeProto, list[str]]]) -> Model:
    """The model whose pairs pass on what they are given, or cut it where their grids did."""
    skeleton, fresh = ModelProto(), model.fresh_names()
    skeleton.CopyFrom(model.skeleton)
    skeleton.graph.ClearField("value_info")  # what was codes is floats now
    passing = {name for _, ends in pairs for name in ends} | {quantizer.output[0] for quantizer, _ in pairs}
    cut = {quantizer.output[0]: bounds for quantizer, _ in pairs if (bounds := _cut(model, quantizer)) is not None}
    for node in skeleton.graph.node:
        name = node.output[0] if node.output else ""
        if name in cut:
            ends = [fresh(f"{name}_end") for _ in cut[name]]
            skeleton.graph.initializer.extend(map(numpy_helper.from_array, cut[name], ends))
            node.CopyFrom(helper.make_node("Clip", [node.input[0], *ends], [name], node.name))
        elif name in passing:
            node.CopyFrom(helper.make_node("Identity", node.input[:1], [name], node.name))
    return Model(skeleton, model.weights)


def _cut(model: Model, quantizer: NodeProto) -> tuple[Array, Array] | None:
    """The ends of a grid that begins at 0, where nothing in front of it does; else None."""
    grid, maker = _grid(model, quantizer), model.producers.get(quantizer.input[0])
    assert grid is not None
    scale, zero = grid
    if not np.issubdtype(zero.dtype, np.integer) or maker is None or _is_positive(model, maker):
        return None
    limits = np.iinfo(zero.dtype)
    if int(zero.reshape(-1)[0]) != limits.min:
        return None
    top = np.float32(scale.reshape(-1)[0]) * np.float32(limits.max - limits.min)
    return np.array(0, scale.dtype), np.array(top, scale.dtype)


def _is_positive(model: Model, node: NodeProto) -> bool:
    """Whether what a node gives is never below 0."""
    if node.op_type != "Clip":
        return node.op_type in _POSITIVE
    low = model.constant(node.input[1]) if len(node.input) > 1 and node.input[1] else None
    return low is not None and bool((low >= 0).all())
