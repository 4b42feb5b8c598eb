"""Layers whose weight lies as a matrix of rows behind a Reshape (`passes.rows`): recurrent nodes, and tables."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import NodeProto

from onnx_cbq.graph.shapes import Shapes
from onnx_cbq.model import Model, attributes
from onnx_cbq.records import GATES, TABLES, Lookup, Use

_LAYING = ("Reshape", "Slice")


def root(model: Model, name: str) -> str | None:
    """The constant that `name` is, or is laid out from; None if it is computed."""
    while not model.is_constant(name):
        producer = model.producers.get(name)
        if producer is None or producer.op_type not in _LAYING or not all(map(model.is_constant, producer.input[1:])):
            return None
        name = producer.input[0]
    return name


def readers(model: Model, name: str) -> Iterator[NodeProto]:
    """The nodes that read a constant as it is or as it is laid out."""
    for node in model.consumers.get(name, ()):
        if node.op_type in _LAYING and node.input[0] == name and root(model, node.output[0]) is not None:
            yield from readers(model, node.output[0])
        else:
            yield node


def laid_uses(model: Model, shapes: Shapes, node: NodeProto) -> list[tuple[str, Use | str]]:
    """The weights that a recurrent node or a Gather uses, and how, or the reason why they stay float."""
    if node.op_type in GATES:
        return _recurrent(model, shapes, node)
    if node.op_type in TABLES:
        return _table(model, shapes, node)
    return []


def _recurrent(model: Model, shapes: Shapes, node: NodeProto) -> list[tuple[str, Use | str]]:
    """The uses of W, which multiplies the input, and of R, which multiplies the hidden states."""
    weights = {index: root(model, node.input[index]) for index in (1, 2)}
    output, source = node.output[0], node.input[0]
    reason = None
    if None in weights.values():
        reason = "its weight is computed, not constant"
    elif shapes.batch_axis[source] is None:
        reason = "it does not depend on the samples"
    elif shapes.batch_axis[source] != 1 or attributes(node).get("layout", 0):
        reason = "the samples do not lie on its second axis"
    elif any(len(shapes[str(name)]) != 2 for name in weights.values()):
        reason = "its weights are not laid out as rows"
    elif not all(np.isfinite(model.weight(str(name))).all() for name in weights.values()):
        reason = "its weight holds NaN or infinity"
    if reason:
        return [("", reason)]
    steps, samples = shapes[source][:2]
    sums = (steps, samples, shapes[node.input[1]][0] * shapes[node.input[1]][1])
    activations = {1: source, 2: output}
    return [(str(name), Use(output, activations[index], index, None, 2, 1, sums)) for index, name in weights.items()]


def _table(model: Model, shapes: Shapes, node: NodeProto) -> list[tuple[str, Use | str]]:
    """The use of a table; of what is no table, and of a weight whose rows are looked up as well, there is none."""
    name, indices, output = root(model, node.input[0]), node.input[1], node.output[0]
    value = None if name is None else model.constant(name)
    if name is None or value is None or value.dtype != np.float32 or model.is_constant(indices):
        return []
    shape = shapes[node.input[0]]
    batch_axis = shapes.batch_axis[output]
    reason = None
    if len(shape) < 2:
        reason = "it holds single numbers"
    elif attributes(node).get("axis", 0) != 0:
        reason = "its entries do not lie along the first axis"
    elif batch_axis is None:
        reason = "it does not depend on the samples"
    elif not np.isfinite(value).all():
        reason = "it holds NaN or infinity"
    if reason or batch_axis is None:
        return [("", str(reason))]
    together = value.size // len(value) // int(np.prod(shape[1:]))
    lookup = Lookup(shape[0], together)
    axis = len(shapes[indices])
    return [(name, Use(output, indices, 0, None, axis, batch_axis, shapes[output], lookup=lookup))]
