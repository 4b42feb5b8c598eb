"""All tensors and all nodes of a model, wherever they stand: in graphs, subgraphs, attributes and functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from onnx import GraphProto, ModelProto, NodeProto, TensorProto


def every_node(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """`nodes`, and those in their subgraphs."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from every_node(graph.node)


def every_tensor(proto: ModelProto) -> Iterator[TensorProto]:
    """The initializers of the graph, and `inner_tensors`."""
    yield from proto.graph.initializer
    yield from inner_tensors(proto)


def inner_tensors(proto: ModelProto) -> Iterator[TensorProto]:
    """Halves of sparse tensors, tensors of attributes, initializers of subgraphs, and what functions have of these."""
    yield from _inside(proto.graph)
    for function in proto.functions:
        yield from _of_nodes(function.node)


def _inside(graph: GraphProto) -> Iterator[TensorProto]:
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for graph in (attribute.g, *attribute.graphs):
                yield from graph.initializer
                yield from _inside(graph)
