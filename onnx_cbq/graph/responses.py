"""What a net makes of a tensor number by number before others read it: a SiLU behind a Conv, the Sigmoid of a gate.

An error in such a tensor counts by what becomes of it: on the flat side of a SiLU it is nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnx_cbq.model import Array, Model
from onnx_cbq.runtime import Session

# Each number of the output depends on one number of each input.
_NUMBER_BY_NUMBER = frozenset(
    ("Abs", "Add", "Celu", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity")
    + ("LeakyRelu", "Max", "Min", "Mish", "Mul", "Neg", "PRelu", "Pow", "QuickGelu", "Reciprocal", "Relu", "Selu")
    + ("Sigmoid", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tanh", "ThresholdedRelu")
)
# Longer chains are taken for what they begin with.
_MOST_NODES = 32


def find_response(model: Model, name: str) -> Callable[[Array], Array] | None:
    """What others read of tensor `name` as a function of its numbers; None where they read `name` itself.

    Nodes belong to it that compute number by number, from `name` and scalars alone, if others read one tensor of
    theirs. Cost: a session of a few nodes.
    """
    nodes = _nodes_behind(model, name)
    inside = {id(node) for node in nodes}
    made = (name, *(output for node in nodes for output in node.output))
    read = [
        one for one in made if one in model.outputs or any(id(n) not in inside for n in model.consumers.get(one, ()))
    ]
    return _function(model, name, nodes, read[0]) if len(read) == 1 and read[0] != name else None


def _nodes_behind(model: Model, name: str) -> list[NodeProto]:
    """The nodes that depend on `name` and scalars alone, in topological order."""
    made = {name}
    nodes: list[NodeProto] = []
    pending = list(model.consumers.get(name, ()))
    while pending and len(nodes) < _MOST_NODES:
        node = pending.pop(0)
        known = all(one in made or _is_scalar(model, one) for one in node.input if one)
        if node.op_type in _NUMBER_BY_NUMBER and known and node.output[0] not in made:
            nodes.append(node)
            made |= set(node.output)
            pending += model.consumers.get(node.output[0], ())
    return nodes


def _is_scalar(model: Model, name: str) -> bool:
    value = model.constant(name)
    return value is not None and value.size == 1


def _function(model: Model, name: str, nodes: list[NodeProto], end: str) -> Callable[[Array], Array]:
    scalars = {one: model.weight(one).reshape(()) for node in nodes for one in node.input if model.is_constant(one)}
    graph = helper.make_graph(
        nodes,
        "response",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"])],
        [helper.make_empty_tensor_value_info(end)],
        [numpy_helper.from_array(value, one) for one, value in scalars.items()],
    )
    proto = helper.make_model(graph, opset_imports=model.skeleton.opset_import, ir_version=model.skeleton.ir_version)
    session = Session(proto.SerializeToString())

    def response(values: Array) -> Array:
        found = session.run({name: values.reshape(-1).astype(np.float32)})[end]
        return found.reshape(values.shape).astype(np.float64)

    return response
