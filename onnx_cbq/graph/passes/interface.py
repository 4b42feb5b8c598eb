"""Give every output of a graph a node of its own that makes it.

An output may be an initializer, or be computed from constants and read by layers too. A rewrite that replaces, renames
or leaves out that constant would then change what the model gives.
"""

from __future__ import annotations

import onnx
from onnx import helper

from onnx_cbq.graph.shapes import Example
from onnx_cbq.model import Model


def own_outputs(model: Model, example: Example) -> Model:
    """An Identity behind every constant that is an output: `c` -> nodes and the output  becomes  `c_value` -> `c`."""
    constant = {name for name in model.outputs if model.is_constant(name)}
    computed = {n for node in model.nodes if not any(node.input) for n in node.output if model.consumers.get(n)}
    wanted = [name for name in model.outputs if name in constant | computed]
    if not wanted:
        return model
    fresh = model.fresh_names()
    names = {name: fresh(f"{name}_value") for name in wanted}
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(model.skeleton)
    for node in skeleton.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for tensor in skeleton.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    skeleton.graph.node.extend(helper.make_node("Identity", [value], [name]) for name, value in names.items())
    return Model(skeleton, {names.get(name, name): value for name, value in model.weights.items()})
