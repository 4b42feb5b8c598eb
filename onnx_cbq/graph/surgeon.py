"""`Model` <-> onnx-graphsurgeon: rewrites work on the graph, the weights are never copied.

onnx-graphsurgeon turns attributes into Python values and guesses their types on the way back, which it cannot do for an
empty list, bytes or several tensors. So it only sees those that it gives back as they were; of the others it sees a
number under which they wait.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto, helper
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.logger import G_LOGGER

from onnx_cbq.model import Array, Model, can_stand_outside, is_weight, read_only, stub

G_LOGGER.severity = G_LOGGER.ERROR
_WAITING = "waiting:"


def to_surgeon(model: Model) -> Any:
    """`model` as a `gs.Graph` of its own; its constants share the model's arrays."""
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(model.skeleton)
    # It cannot write sequences and the like again; those of the model stay as they are all the same.
    for info in (*skeleton.graph.input, *skeleton.graph.output):
        if info.type.WhichOneof("value") != "tensor_type":
            info.ClearField("type")
    waiting: list[AttributeProto] = []
    for node in skeleton.graph.node:
        for attribute in node.attribute:
            if not _is_plain(attribute):
                waiting.append(AttributeProto.FromString(attribute.SerializeToString()))
                attribute.CopyFrom(helper.make_attribute(_WAITING + attribute.name, len(waiting) - 1))
    graph = gs.import_onnx(skeleton)
    setattr(graph, _WAITING, waiting)
    for name, tensor in graph.tensors().items():
        if name in model.weights:
            tensor.values, tensor.data_location = model.weights[name], None
    return graph


def from_surgeon(graph: Any, model: Model) -> Model:
    """`graph`, cleaned up and sorted, as a model with the inputs, outputs and opsets of `model`."""
    graph.cleanup(remove_unused_graph_inputs=False).toposort()
    weights: dict[str, Array] = {}
    for name, tensor in graph.tensors().items():
        value = constant_value(tensor)
        if value is not None and is_weight(value):
            weights[name] = read_only(value)
            tensor.values = LazyValues(stub(name, weights[name]))
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(model.skeleton)
    exported = gs.export_onnx(graph, do_type_check=False).graph
    waiting = getattr(graph, _WAITING)
    for node in exported.node:
        for attribute in node.attribute:
            if attribute.name.startswith(_WAITING):
                attribute.CopyFrom(waiting[attribute.i])
    for field in ("node", "initializer"):
        skeleton.graph.ClearField(field)
        getattr(skeleton.graph, field).extend(getattr(exported, field))
    return Model(skeleton, weights)


def constant_value(tensor: Any) -> Array | None:
    """The value of a constant tensor, or None; None too for text and for numbers of types that NumPy does not have."""
    if not isinstance(tensor, gs.Constant):
        return None
    # The attribute, since the property would read the value, and text cannot be written again.
    lazy = tensor._values  # noqa: SLF001
    if isinstance(lazy, LazyValues) and not can_stand_outside(helper.tensor_dtype_to_np_dtype(lazy.tensor.data_type)):
        return None
    return np.asarray(tensor.values)


def _is_plain(attribute: AttributeProto) -> bool:
    if attribute.type in (AttributeProto.INTS, AttributeProto.FLOATS):
        return bool(attribute.ints or attribute.floats)
    if attribute.type == AttributeProto.STRING:
        return attribute.s.isascii()
    return attribute.type in (AttributeProto.INT, AttributeProto.FLOAT)


def only_reader(graph: Any, tensor: Any) -> Any | None:
    """The one node that reads `tensor`, or None if there are several or if it is a graph output."""
    if len(tensor.outputs) != 1 or any(tensor is output for output in graph.outputs):
        return None
    return tensor.outputs[0]


def set_constant(node: Any, index: int, value: Array) -> None:
    """Give `node` a constant of its own as input `index`; other readers of the old one keep it."""
    old = node.inputs[index] if index < len(node.inputs) else None
    alone = isinstance(old, gs.Constant) and len(old.outputs) == 1
    name = old.name if old is not None and alone else f"{node.outputs[0].name}_constant_{index}"
    fresh = gs.Constant(name, np.ascontiguousarray(value))
    if old is None:
        node.inputs.append(fresh)
    else:
        node.inputs[index] = fresh


def take_output(node: Any, later: Any) -> None:
    """`node` makes the first output of `later` instead of its own; `later` is left without outputs, to be removed."""
    result = later.outputs[0]
    later.outputs.clear()
    node.outputs = [result]


def bypass(graph: Any, node: Any) -> bool:
    """Let the readers of a node's first output read its first input; False if a graph output's name forbids it."""
    source, result = node.inputs[0], node.outputs[0]
    if any(result is output for output in graph.outputs):
        return False
    for reader in list(result.outputs):
        for index, tensor in enumerate(reader.inputs):
            if tensor is result:
                reader.inputs[index] = source
    node.outputs.clear()
    return True
