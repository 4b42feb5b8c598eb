"""What of a model's weights is in no layer, and so stays float: largest first, each with the reason.

A user who reads "4 bits on average" has to see a loop whose layers hold nearly all weights and keep their 32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeGuard

import numpy as np
from onnx import NodeProto, numpy_helper

from onnx_cbq.graph.laid import root
from onnx_cbq.graph.passes.constants import QUANTIZING
from onnx_cbq.graph.quantized import quantized_layers
from onnx_cbq.model import Array, Model
from onnx_cbq.model.captures import is_sealed, nodes_within
from onnx_cbq.records import GATES, Layer, LeftFloat

# Of weights that are no matrix, those are listed that hold this share of all.
_LISTED = 0.01


def float_weights(model: Model) -> int:
    """How many floating-point numbers the model holds, those in branches among them."""
    outer = (model.constant(tensor.name) for tensor in model.skeleton.graph.initializer)
    return sum(value.size for value in (*outer, *_in_branches(model).values()) if _is_float(value))


def left_float(model: Model, layers: Iterable[Layer], reasons: Mapping[str, str]) -> tuple[LeftFloat, ...]:
    """The nodes that hold weights which are in no layer. `reasons` gives those that are known, by a node's output."""
    taken = {layer.weight for layer in layers} | {use.bias for layer in layers for use in layer.uses}
    total = float_weights(model)
    kept = {node.output[0] for node in quantized_layers(model)}
    found: list[LeftFloat] = []
    for node in model.nodes:
        if node.op_type in QUANTIZING or node.output[0] in kept:
            continue  # scales, and layers that are quantized already
        sizes = []
        # What is laid out belongs to the node that reads it then; the biases of a recurrent node are no weights.
        read = node.input[1:3] if node.op_type in GATES else node.input if root(model, node.output[0]) is None else ()
        for name in dict.fromkeys(filter(None, (root(model, name) for name in read if name))):
            value = None if name in taken else model.constant(name)
            if value is not None and _is_float(value):
                taken.add(name)
                sizes.append(value.size if value.ndim > 1 or value.size >= _LISTED * total else 0)
        if any(sizes) and max(sizes) > 1:
            reason = (
                reasons.get(next(filter(None, node.output)))
                or "its operator is none of those whose weights are quantized"
            )
            found.append(LeftFloat(_title(node), node.op_type, reason, sum(sizes)))
        inner = sum(value.size for value in _in_branches(model, node).values() if _is_float(value))
        if inner:
            found.append(LeftFloat(_title(node), node.op_type, "layers in its branches are not quantized", inner))
    return tuple(sorted(found, key=lambda entry: -entry.weights))


def _title(node: NodeProto) -> str:
    return str(node.name or next(name for name in node.output if name))


def _is_float(value: Array | None) -> TypeGuard[Array]:
    return value is not None and np.issubdtype(value.dtype, np.floating)


def _in_branches(model: Model, only: NodeProto | None = None) -> Mapping[str, Array]:
    """The constants of branches, of one node or of all; the name of the graph stands before that of the tensor."""
    nodes = [only] if only is not None else model.nodes
    return {
        f"{graph.name} {tensor.name}": numpy_helper.to_array(tensor)
        for node in nodes
        if is_sealed(node)
        for _, graph in nodes_within(node)
        for tensor in graph.initializer
    }
