"""All tensors and all nodes of a model, wherever they stand: in graphs, subgraphs, attributes and functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper


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


def with_constant_types(proto: ModelProto) -> ModelProto:
    """A copy with the types of initializers among the value infos, where alone onnx's inliner looks for types."""
    typed = ModelProto()
    typed.CopyFrom(proto)
    known = {info.name for info in (*typed.graph.value_info, *typed.graph.input, *typed.graph.output)}
    missing = (t for t in typed.graph.initializer if t.name not in known)
    typed.graph.value_info.extend(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in missing)
    return typed


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
