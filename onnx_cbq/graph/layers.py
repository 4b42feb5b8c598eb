"""Find the layers: every constant weight that a node multiplies with, and every table whose entries a node looks up.

A weight that several nodes share is one layer with several uses. What stays float is listed with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from onnx import NodeProto

from onnx_cbq.errors import ModelError
from onnx_cbq.graph.integer_rules import ON_CODES
from onnx_cbq.graph.laid import laid_uses, readers
from onnx_cbq.graph.leftover import left_float
from onnx_cbq.graph.load import LAYER_OPERATORS
from onnx_cbq.graph.quantized import stored_weight
from onnx_cbq.graph.shapes import Shapes
from onnx_cbq.graph.windows import find_windows
from onnx_cbq.model import STANDARD, Array, FreshNames, Model, attributes, is_generated_name
from onnx_cbq.model.captures import is_sealed, nodes_within
from onnx_cbq.records import GATES, TABLES, KeptQuantized, Layer, Layers, Use, Windows, kind_of

# What takes no number below 0.
_WANTING = frozenset({"Log", "Sqrt"})
# What a sum passes through on its way there; of Add, Mul and Div the other operand is a constant.
_PASSING = frozenset(
    {
        *("Add", "Mul", "Div", "Clip", "Max", "Identity", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"),
        *("Slice", "Split", "ReduceSum", "ReduceMean", "AveragePool"),
    }
)


def find_layers(model: Model, shapes: Shapes) -> Layers:
    """The layers of `model` in the order in which they run.

    Raises:
        ModelError: there is no layer that can be quantized.
    """
    uses: dict[str, list[tuple[NodeProto, Use]]] = {}
    reasons: dict[str, str] = {}
    kept: list[KeptQuantized] = []
    for node in model.nodes:
        if node.domain not in STANDARD:
            continue
        stored = stored_weight(model, node) if node.op_type in LAYER_OPERATORS else None
        if stored is not None:
            kept.append(KeptQuantized(node.name or node.output[0], node.op_type, math.prod(shapes[stored])))
            continue
        for name, use in _uses_of(model, shapes, node):
            if isinstance(use, str):
                reasons[next(filter(None, node.output))] = use
            else:
                uses.setdefault(name, []).append((node, use))
    for name, found in uses.items():
        # A matrix whose rows are looked up as well is the layer of those who multiply with it.
        products = [(node, use) for node, use in found if use.lookup is None]
        uses[name] = products or found
    layers: list[Layer] = []
    titles = FreshNames(())
    for name, found in uses.items():
        weight = model.constant(name)
        assert weight is not None
        reason = _conflict(model, weight, name, found)
        if reason:
            reasons |= {node.output[0]: reason for node, _ in found}
            continue
        layer = _layer(weight, name, found, shapes.batch, titles)
        layers.append(replace(layer, positive=_must_stay_positive(model, layer)))
    if not layers:
        raise ModelError(f"the model has no layer to quantize: {_why_none(model, reasons, kept)}")
    return Layers(tuple(layers), left_float(model, layers, reasons), tuple(kept))


def _uses_of(model: Model, shapes: Shapes, node: NodeProto) -> list[tuple[str, Use | str]]:
    """The constant weights that `node` uses, and how, or the reason why one stays float."""
    if node.op_type not in LAYER_OPERATORS:
        return laid_uses(model, shapes, node)
    use = _use(model, shapes, node)
    return [("" if isinstance(use, str) else node.input[use.weight_index], use)]


def _use(model: Model, shapes: Shapes, node: NodeProto) -> Use | str:
    """How `node` uses its constant weight, or the reason why it stays float."""
    candidates = (1, 0) if node.op_type == "MatMul" else (1,)
    index = next((i for i in candidates if model.is_constant(node.input[i])), None)
    if index is None:
        return "its weight is computed, not constant"
    output, rank = node.output[0], len(shapes[node.output[0]])
    matrix_axis = rank - 2 if index == 0 else rank - 1
    channel_axis = matrix_axis if node.op_type in ("Gemm", "MatMul") else 1
    batch_axis = shapes.batch_axis[output]
    bias = node.input[2] if len(node.input) > 2 and _is_vector(model, node.input[2]) else None
    if reason := _unfit(model, shapes, node, index, channel_axis):
        return reason
    assert batch_axis is not None
    sizes = _windows(node, shapes) if node.op_type in ("Conv", "ConvTranspose") else None
    beside = _beside(model, shapes, output) if node.op_type != "ConvTranspose" else None
    return Use(
        output, node.input[1 - index], index, bias, channel_axis, batch_axis, shapes[output], sizes, beside=beside
    )


def _beside(model: Model, shapes: Shapes, tensor: str) -> str | None:
    """What is added to a tensor that nothing else reads, of the same shape; constants may be added in front."""
    readers = model.consumers.get(tensor, ())
    if len(readers) != 1 or tensor in model.outputs or readers[0].op_type not in ("Add", "Sum"):
        return None
    total, others = readers[0].output[0], [name for name in readers[0].input if name != tensor]
    if len(others) != 1 or shapes[total] != shapes[tensor]:
        return None
    if model.is_constant(others[0]):
        return _beside(model, shapes, total)
    return others[0] if shapes[others[0]] == shapes[tensor] else None


def _is_vector(model: Model, name: str) -> bool:
    value = model.constant(name)
    return value is not None and value.ndim == 1


def _windows(node: NodeProto, shapes: Shapes) -> Windows:
    inputs, outputs = shapes[node.input[0]][2:], shapes[node.output[0]][2:]
    if node.op_type == "ConvTranspose":
        inputs, outputs = outputs, inputs
    return find_windows(node.op_type, attributes(node), shapes[node.input[1]][2:], inputs, outputs)


def _unfit(model: Model, shapes: Shapes, node: NodeProto, index: int, channel_axis: int) -> str | None:
    """Why a node with a constant operand `index` is no layer, or None."""
    batch_axis = shapes.batch_axis[node.output[0]]
    if model.is_constant(node.input[1 - index]) or batch_axis is None:
        return "it does not depend on the samples"
    if node.op_type == "Gemm" and attributes(node).get("transA", 0):
        return "Gemm with transA mixes the samples"
    if len(shapes[node.input[index]]) < 2:
        return "MatMul with a vector has no output channels"
    return "the samples lie on its channel axis" if batch_axis == channel_axis else None


def _conflict(model: Model, weight: Array, name: str, found: list[tuple[NodeProto, Use]]) -> str | None:
    """Why one weight's uses cannot be one layer, or None."""
    if not weight.size:
        return "its weight is empty"
    if weight.dtype != np.float32:
        return f"its weight is {weight.dtype}; only float32 weights are quantized"
    if len({_weight_axis(node, use, weight.shape) for node, use in found}) > 1:
        return "the nodes that share its weight do not agree on the output channels"
    if (
        len({(node.op_type, use.weight_index, use.lookup) for node, use in found if kind_of(node.op_type) != "product"})
        > 1
    ):
        return "the nodes that share its weight use it in different ways"
    users = {node.output[0] for node, _ in found}
    looked_up = TABLES if weight.ndim == 2 and _weight_axis(*found[0], weight.shape) == 0 else ()
    others = [
        node.op_type
        for node in readers(model, name)
        if node.output[0] not in users and not (node.op_type in looked_up and not attributes(node).get("axis", 0))
    ]
    return f"its weight is also read by {others[0]}" if others else None


def _layer(weight: Array, name: str, found: list[tuple[NodeProto, Use]], samples: int, titles: FreshNames) -> Layer:
    node, use = found[0]
    title = (node.name or use.output) if is_generated_name(name) else name.removesuffix(".weight")
    if node.op_type in GATES and is_generated_name(name):
        title = f"{title}.{'WR'[use.weight_index - 1]}"
    groups = attributes(node).get("group", 1)
    if node.op_type in GATES and use.weight_index == 2:
        groups = len(weight) // (GATES[node.op_type] * weight.shape[1])  # each direction has states of its own
    return Layer(
        name=titles(title),
        operator=node.op_type,
        weight=name,
        weight_shape=tuple(weight.shape),
        weight_axis=_weight_axis(node, use, weight.shape),
        groups=int(groups),
        uses=tuple(use for _, use in found),
        samples=samples,
    )


def _weight_axis(node: NodeProto, use: Use, shape: tuple[int, ...]) -> int:
    """The axis of the weight along which the output channels lie."""
    if node.op_type == "Conv" or kind_of(node.op_type) != "product":
        return 0
    if node.op_type == "ConvTranspose":
        depthwise = shape[1] == 1 and shape[0] == attributes(node).get("group", 1)
        return 0 if depthwise else 1
    if node.op_type == "Gemm":
        return 0 if attributes(node).get("transB", 0) else 1
    return len(shape) - 1 if use.weight_index == 1 else len(shape) - 2


def _must_stay_positive(model: Model, layer: Layer) -> bool:
    """Whether no weight and no bias of a layer is below 0, and a logarithm or a root is taken of what it gives.

    A bank of filters over a power spectrum is such a layer: were one weight rounded to less than 0, the sum of a quiet
    moment could be, and its logarithm no number.
    """
    if layer.kind != "product" or bool((model.weight(layer.weight) < 0).any()):
        return False
    biases = [model.weight(use.bias) for use in layer.uses if use.bias is not None]
    if any(bool((bias < 0).any()) for bias in biases):
        return False
    return any(_is_wanted(model, use.output) for use in layer.uses)


def _is_wanted(model: Model, tensor: str) -> bool:
    """Whether a logarithm or a root is taken of a tensor, perhaps behind constants, or in another shape."""
    waiting, seen = [tensor], {tensor}
    while waiting:
        for node in model.consumers.get(waiting.pop(), ()):
            if node.op_type in _WANTING:
                return True
            varying = [name for name in node.input if name and not model.is_constant(name)]
            if node.op_type in _PASSING and len(varying) == 1:
                found = [name for name in node.output if name and name not in seen]
                seen.update(found)
                waiting += found
    return False


def _why_none(model: Model, reasons: Mapping[str, str], kept: Sequence[KeptQuantized]) -> str:
    if kept:
        return f"all {len(kept)} are quantized already, and kept; leave out --keep-quantized"
    if reasons:
        nodes = [(model.producers[output], reason) for output, reason in list(reasons.items())[:3]]
        return "; ".join(f"{node.name or node.output[0]} ({node.op_type}): {reason}" for node, reason in nodes)
    inside = [
        n for node in model.nodes if is_sealed(node) for n, _ in nodes_within(node) if n.op_type in LAYER_OPERATORS
    ]
    if inside:
        return (
            f"its {len(inside)} layers stand in branches of If, Loop or Scan, where they stay float; export the model "
            f"without control flow (trace it with a fixed path)"
        )
    codes = next((node.op_type for node in model.nodes if node.op_type in (*ON_CODES, "MatMulNBits")), None)
    if codes is not None:
        return f"it multiplies integers already ({codes}); start from the float model"
    known = ", ".join((*LAYER_OPERATORS, *GATES, *TABLES))
    return f"expected one of {known} with a constant weight, found none"
