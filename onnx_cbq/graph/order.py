"""Nodes in an order in which each can run, every tensor made once: what the standard asks for, and not all files have.

onnxruntime sorts a graph by itself, so files with nodes in any order are about and run.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence

from onnx import GraphProto, ModelProto, NodeProto

from onnx_cbq.errors import ModelError


def tidy(proto: ModelProto, label: str) -> ModelProto:
    """The model with its nodes sorted, without nodes that give nothing and constants that nothing reads.

    What comes later takes for granted that a node has an output, and onnxruntime does not find constants again that
    nothing reads.

    Raises:
        ModelError: a tensor is made twice, or needs itself.
    """
    own = ModelProto()
    own.CopyFrom(proto)
    graph = own.graph
    nodes = _sorted([node for node in graph.node if any(node.output)], label)
    read = {name for node in nodes for name in _read_by(node)} | {info.name for info in graph.output}
    _check_names(own, nodes, label)
    for field, content in (("node", nodes), ("initializer", [t for t in graph.initializer if t.name in read])):
        graph.ClearField(field)
        getattr(graph, field).extend(content)
    return own


def _sorted(nodes: Sequence[NodeProto], label: str) -> list[NodeProto]:
    """Each node behind those that it reads from; as they came, where that is an order already."""
    makers = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    needs = [{makers[name] for name in _read_by(node) if name in makers} for node in nodes]
    if all(before < index for index, found in enumerate(needs) for before in found):
        return list(nodes)
    readers: list[list[int]] = [[] for _ in nodes]
    for index, found in enumerate(needs):
        for before in found:
            readers[before].append(index)
    waiting = [len(found) for found in needs]
    ready = deque(index for index, count in enumerate(waiting) if not count)
    order: list[int] = []
    while ready:
        order.append(ready.popleft())
        for reader in readers[order[-1]]:
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    if len(order) < len(nodes):
        node = nodes[min(set(range(len(nodes))) - set(order))]
        name = node.name or next(iter(filter(None, node.output)))
        raise ModelError(f"{label}: node {name!r} ({node.op_type}) needs what it makes itself; export the model again")
    return [nodes[index] for index in order]


def _check_names(proto: ModelProto, nodes: Sequence[NodeProto], label: str) -> None:
    """Whether anything has a name of its own, but for what stands as an input and has a value all the same."""
    graph = proto.graph
    made = [name for node in nodes for name in node.output if name]
    given = {info.name for info in graph.input} | {tensor.name for tensor in graph.initializer}
    given |= {sparse.values.name for sparse in graph.sparse_initializer}
    for kind in (graph.input, graph.initializer, graph.output):
        _check_once([entry.name for entry in kind], label)
    _check_once([*made, *given], label)
    if "" in given:
        raise ModelError(f"{label}: an input or constant has no name; export the model again")


def _check_once(names: Sequence[str], label: str) -> None:
    name, count = next(iter(Counter(names).most_common(1)), ("", 0))
    if count > 1:
        raise ModelError(f"{label}: there are {count} tensors of the name {name!r}; export the model again")


def _read_by(node: NodeProto) -> Iterator[str]:
    """What a node reads, in its subgraphs too; names that these make for themselves are among it."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            yield from _read_in(graph)


def _read_in(graph: GraphProto) -> Iterator[str]:
    own = {info.name for info in (*graph.input, *graph.initializer)} | {n for node in graph.node for n in node.output}
    for node in graph.node:
        yield from (name for name in _read_by(node) if name not in own)
    yield from (info.name for info in graph.output if info.name not in own)
