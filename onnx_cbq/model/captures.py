"""What a branch reads from the graph around it, as inputs of the node that has the branch.

The branches of If, Loop and Scan read tensors of the graph around them by name, which nothing that looks at nodes and
their inputs sees: such a tensor is renamed or left out, and the file is broken. So inside this package a node with
branches is *sealed*: the tensors that its branches read stand behind its own inputs, and the branches lie in attributes
as bytes that nobody looks into. `unseal` makes ordinary ONNX of it, the tensors under the names that they have by then.

    If [c], then_branch reads w and x    <->    If [c, w, x], captured = ("w", "x"), sealed:then_branch = bytes
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, helper, numpy_helper

_CAPTURED = "captured"
_SEALED = "sealed:"
_BRANCHES = (AttributeProto.GRAPH, AttributeProto.GRAPHS)


def branches(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs in a node's attributes, sealed or not."""
    for attribute in node.attribute:
        yield from (_opened(attribute) if attribute.name.startswith(_SEALED) else _graphs(attribute))


def is_sealed(node: NodeProto) -> bool:
    """Whether branches are hidden in the node."""
    return any(attribute.name == _CAPTURED for attribute in node.attribute)


def seal(node: NodeProto) -> NodeProto:
    """`node` with what its branches read among its inputs; a node without branches is given back as it is."""
    if not any(attribute.type in _BRANCHES for attribute in node.attribute):
        return node
    captured = list(dict.fromkeys(name for graph in branches(node) for name in _reads(graph)))
    sealed = NodeProto()
    sealed.CopyFrom(node)
    sealed.input.extend(captured)
    del sealed.attribute[:]
    for attribute in node.attribute:
        graphs = list(_graphs(attribute))
        if not graphs:
            sealed.attribute.append(attribute)
            continue
        contents = [np.frombuffer(graph.SerializeToString(), np.uint8) for graph in graphs]
        tensors = [numpy_helper.from_array(content) for content in contents]
        value = tensors[0] if attribute.type == AttributeProto.GRAPH else tensors
        sealed.attribute.append(helper.make_attribute(_SEALED + attribute.name, value))
    sealed.attribute.append(
        helper.make_attribute(_CAPTURED, [name.encode() for name in captured], attr_type=AttributeProto.STRINGS)
    )
    return sealed


def unseal(proto: ModelProto) -> ModelProto:
    """`proto` as ONNX says it; itself where nothing is sealed."""
    if not any(is_sealed(node) for node in proto.graph.node):
        return proto
    plain = ModelProto()
    plain.CopyFrom(proto)
    for node in plain.graph.node:
        if is_sealed(node):
            _unseal(node)
    return plain


def unsealed(node: NodeProto) -> NodeProto:
    """A sealed node as ONNX says it."""
    plain = NodeProto()
    plain.CopyFrom(node)
    _unseal(plain)
    return plain


def inner_names(node: NodeProto) -> set[str]:
    """Every name that is used in a node's branches: a new tensor around them must not have one of these."""
    return {name for graph in branches(node) for name in _all_names(graph)}


def nodes_within(node: NodeProto) -> Iterator[tuple[NodeProto, GraphProto]]:
    """The nodes in a node's branches and in theirs, each with the graph that it stands in."""
    for graph in branches(node):
        for inner in graph.node:
            yield inner, graph
            yield from nodes_within(inner)


def _unseal(node: NodeProto) -> None:
    found = next(attribute for attribute in node.attribute if attribute.name == _CAPTURED)
    own = len(node.input) - len(found.strings)
    names = {old.decode(): new for old, new in zip(found.strings, node.input[own:], strict=True) if old.decode() != new}
    del node.input[own:]
    attributes: list[AttributeProto] = []
    for attribute in node.attribute:
        if attribute.name.startswith(_SEALED):
            graphs = list(_opened(attribute))
            for graph in graphs:
                _rename_reads(graph, names)
            value = graphs[0] if attribute.type == AttributeProto.TENSOR else graphs
            attributes.append(helper.make_attribute(attribute.name.removeprefix(_SEALED), value))
        elif attribute.name != _CAPTURED:
            attributes.append(attribute)
    del node.attribute[:]
    node.attribute.extend(attributes)


def _graphs(attribute: AttributeProto) -> Iterable[GraphProto]:
    return [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs


def _opened(attribute: AttributeProto) -> Iterator[GraphProto]:
    tensors = [attribute.t] if attribute.type == AttributeProto.TENSOR else attribute.tensors
    for tensor in tensors:
        yield GraphProto.FromString(numpy_helper.to_array(tensor).tobytes())


def _defined(graph: GraphProto) -> set[str]:
    made = {name for node in graph.node for name in node.output}
    sparse = {tensor.values.name for tensor in graph.sparse_initializer}
    return made | sparse | {entry.name for entry in (*graph.input, *graph.initializer)}


def _reads(graph: GraphProto) -> Iterator[str]:
    """Names that a graph reads and does not make itself."""
    own = _defined(graph)
    for node in graph.node:
        for name in (*node.input, *(n for inner in branches(node) for n in _reads(inner))):
            if name and name not in own:
                yield name
    yield from (info.name for info in graph.output if info.name not in own)


def _rename_reads(graph: GraphProto, names: Mapping[str, str]) -> None:
    own = _defined(graph)
    names = {old: new for old, new in names.items() if old not in own}
    if not names:
        return
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        for attribute in node.attribute:
            for inner in _graphs(attribute):
                _rename_reads(inner, names)
    for info in graph.output:
        info.name = names.get(info.name, info.name)


def _all_names(graph: GraphProto) -> Iterator[str]:
    yield from _defined(graph)
    for node in graph.node:
        yield from node.input
        for inner in branches(node):
            yield from _all_names(inner)
