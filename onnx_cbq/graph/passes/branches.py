"""Take the branch of an If whose condition is known, so that its layers stand where they can be quantized.

Exporters that trace with scripts leave such conditions in, on the rank of a tensor or on a flag; once constants are
folded and shapes are known they have one value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx
from onnx import GraphProto, NodeProto

from onnx_cbq.graph.shapes import Example
from onnx_cbq.model import FreshNames, Model
from onnx_cbq.model.captures import is_sealed, seal, unsealed


def take_branches(model: Model, example: Example) -> Model:
    """`model` with the nodes of the branch that is taken in place of each If with a constant condition."""
    decided = [node for node in model.nodes if _condition(model, node) is not None]
    if not decided:
        return model
    fresh = model.fresh_names()
    proto = onnx.ModelProto()
    proto.CopyFrom(model.skeleton)
    proto.graph.ClearField("node")
    for node in model.nodes:
        condition = _condition(model, node)
        if condition is None:
            proto.graph.node.append(node)
            continue
        name = "then_branch" if condition else "else_branch"
        taken = next(a.g for a in unsealed(node).attribute if a.name == name)
        names = _names(taken, node, fresh)
        for tensor in taken.initializer:
            kept = proto.graph.initializer.add()
            kept.CopyFrom(tensor)
            kept.name = names[tensor.name]
        proto.graph.node.extend(_renamed(taken, node, names))
    return Model.from_proto(proto, model.weights)


def _condition(model: Model, node: NodeProto) -> bool | None:
    """What is known of an If's condition; None of other nodes, and where it depends on the samples."""
    if node.op_type != "If" or not is_sealed(node):
        return None
    value = model.constant(node.input[0])
    return None if value is None or value.size != 1 else bool(value.item())


def _names(graph: GraphProto, node: NodeProto, fresh: FreshNames) -> Mapping[str, str]:
    """New names for what the branch makes, of its outputs those of the If."""
    made = [name for inner in graph.node for name in inner.output if name]
    names = {name: fresh(name) for name in (*made, *(tensor.name for tensor in graph.initializer))}
    outputs = dict(zip((info.name for info in graph.output), node.output, strict=True))
    return names | {inner: outer for inner, outer in outputs.items() if inner in made and outer}


def _renamed(graph: GraphProto, node: NodeProto, names: Mapping[str, str]) -> Iterator[NodeProto]:
    for inner in graph.node:
        copy = NodeProto()
        # Sealed, a node with branches of its own names what they read among its inputs.
        copy.CopyFrom(seal(inner))
        copy.input[:] = [names.get(name, name) for name in copy.input]
        copy.output[:] = [names.get(name, name) for name in copy.output]
        yield copy
    made = {name for inner in graph.node for name in inner.output}
    for info, outer in zip(graph.output, node.output, strict=True):
        # An initializer of the branch, what stands around it, or one tensor as two outputs.
        if outer and (info.name not in made or names[info.name] != outer):
            yield onnx.helper.make_node("Identity", [names.get(info.name, info.name)], [outer])
