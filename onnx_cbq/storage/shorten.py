"""Leave out of a graph what only people read: long names, names of nodes, attributes that state the default."""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping
from itertools import count, product

from onnx import AttributeProto, ModelProto, helper

from onnx_cbq.model import Model
from onnx_cbq.model.captures import inner_names

# What operators take an attribute for that is left out; a list of any length of one number stands as that number.
_DEFAULTS: Mapping[str, Mapping[str, object]] = {
    "Conv": {"auto_pad": b"NOTSET", "dilations": 1, "group": 1, "pads": 0, "strides": 1},
    "MaxPool": {"auto_pad": b"NOTSET", "dilations": 1, "pads": 0, "strides": 1, "ceil_mode": 0, "storage_order": 0},
    "AveragePool": {"auto_pad": b"NOTSET", "dilations": 1, "pads": 0, "strides": 1, "ceil_mode": 0},
    "Gemm": {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0},
    "Reshape": {"allowzero": 0},
}


def shorten(model: Model) -> Model:
    """The same graph with the shortest names for all tensors but the graph's inputs and outputs."""
    skeleton = ModelProto()
    skeleton.CopyFrom(model.skeleton)
    graph = skeleton.graph
    kept = {info.name for info in (*graph.input, *graph.output)}.union(*map(inner_names, graph.node))
    tensors = (name for node in graph.node for name in (*node.input, *node.output))
    ordered = [name for name in dict.fromkeys((*tensors, *(t.name for t in graph.initializer))) if name]
    short = (name for name in _short_names() if name not in kept)
    names = {name: name if name in kept else next(short) for name in ordered} | {"": ""}
    for node in graph.node:
        for field in (node.input, node.output):
            field[:] = [names[name] for name in field]
        node.ClearField("name")
        defaults = _DEFAULTS.get(node.op_type, {})
        stated = [a for a in node.attribute if a.name not in defaults or not _is(a, defaults[a.name])]
        if node.op_type == "Conv":
            # The weight has the same shape.
            stated = [a for a in stated if a.name != "kernel_shape"]
        del node.attribute[:]
        node.attribute.extend(stated)
    for tensor in graph.initializer:
        tensor.name = names[tensor.name]
    return Model(skeleton, {names[name]: value for name, value in model.weights.items()})


def _short_names() -> Iterator[str]:
    letters = string.ascii_letters
    return ("".join(chosen) for length in count(1) for chosen in product(letters, repeat=length))


def _is(attribute: AttributeProto, default: object) -> bool:
    value = helper.get_attribute_value(attribute)
    return all(item == default for item in value) if isinstance(value, list) else bool(value == default)
