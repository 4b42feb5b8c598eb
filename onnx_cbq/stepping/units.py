"""Units: channels that belong to the same subnet, found by following them through the graph.

A channel of a hidden layer is tied to what it is added to, multiplied with, pooled into or flattened to, to its
depthwise filter, and to the channels of its group in a grouped convolution. All channels tied together are one unit.
What depends on nothing but the model's inputs is unit 0, which is there from the start. The layer that makes the class
scores has no units: every subnet has all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from onnx import NodeProto
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onnx_cbq.errors import ModelError, UnsupportedOperatorError
from onnx_cbq.graph.layers import find_layers
from onnx_cbq.graph.logits import Logits
from onnx_cbq.graph.remove.build import Channels, find_channels
from onnx_cbq.graph.remove.links import Flattened, Joined, Link, Opaque, Product, Same, Widened
from onnx_cbq.graph.shapes import Shapes
from onnx_cbq.model import Array, Model
from onnx_cbq.records import Layer, Layers, LayerWeights

# Pairs of channels that are tied, by their numbers: two arrays of the same length.
Ties = tuple[Array, Array]
_ADVICE = "train smaller nets one by one, or export the model with standard operators for images"


@dataclass(frozen=True)
class Units:
    """The units of a net.

    Attributes:
        model: computes the class scores and nothing else.
        shapes: of its tensors.
        logits: where the class scores are.
        links: of its nodes in order, up to the head.
        hidden: products of the layers that have units.
        head: product of the layer that makes the class scores.
        tail: the nodes behind the head.
        axis: of each tensor along which its channels lie.
        of: hidden tensor -> unit of each channel, int64 [channels].
        count: of units, unit 0 included.
    """

    model: Model
    shapes: Shapes
    logits: Logits
    links: tuple[tuple[NodeProto, Link], ...]
    hidden: tuple[Product, ...]
    head: Product
    tail: tuple[NodeProto, ...]
    axis: Mapping[str, int]
    of: Mapping[str, Array]
    count: int

    @cached_property
    def macs(self) -> int:
        """Multiplications of the whole net for one sample."""
        return sum(layer.macs for layer in self.layers)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Every layer once, the head last."""
        return tuple({product.layer.name: product.layer for product in (*self.hidden, self.head)}.values())

    @cached_property
    def features(self) -> str:
        """The tensor that the head reads."""
        return self.head.use.activation


def find_units(model: Model, shapes: Shapes, logits: Logits) -> Units:
    """The units of a normalised model.

    Raises:
        UnsupportedOperatorError: an operator mixes channels in a way that is not known here.
        ModelError: there is no hidden layer.
    """
    model = model.with_graph(outputs=dict.fromkeys((logits.output, logits.tensor)))
    layers = find_layers(model, shapes)
    weights = {layer.name: _any_weights(layer) for layer in layers}
    values = {use.activation: np.zeros(0) for layer in layers for use in layer.uses}
    channels = find_channels(model, layers, weights, shapes, values)
    links = list(zip(model.nodes, channels.links, strict=True))
    position = _head(model, links, logits.tensor)
    body, tail = links[:position], tuple(node for node, _ in links[position + 1 :])
    head = links[position][1]
    assert isinstance(head, Product)
    _check_layers(model, layers, head)
    of, count = _Tying(model, channels, body).units()
    _check_padding(body)
    hidden = tuple(link for _, link in body if isinstance(link, Product))
    if not hidden:
        raise ModelError(
            f"layer {head.layer.name!r} is the only one that can be divided into steps; expected hidden layers"
        )
    return Units(model, shapes, logits, tuple(body), hidden, head, tail, channels.axis, of, count)


def _any_weights(layer: Layer) -> LayerWeights:
    """Weights none of which is 0, to find all that a layer reads."""
    ones = np.ones(layer.channels)
    return LayerWeights(np.ones(layer.weight_shape, np.int8), ones.astype(np.float32), ones.astype(np.int8))


def _head(model: Model, links: list[tuple[NodeProto, Link]], scores: str) -> int:
    """Where the layer is that makes the class scores."""
    by_output = {name: i for i, (node, _) in enumerate(links) for name in node.output if name}
    name = scores
    while name in by_output:
        node, link = links[by_output[name]]
        if isinstance(link, Product):
            if len(link.reads) > 1 or len(link.layer.uses) > 1:
                break
            return by_output[name]
        sources = [source for source in node.input if source and not model.is_constant(source)]
        if len(sources) != 1:
            raise _unsupported(node, "joins several tensors behind the last layer; class scores must come from one")
        name = sources[0]
    raise UnsupportedOperatorError(f"the class scores {scores!r} do not come from a layer of their own; {_ADVICE}")


def _check_layers(model: Model, layers: Layers, head: Product) -> None:
    """Every product must be as `emit` cuts it: a bias that is a vector or none."""
    for layer in layers:
        for use in layer.uses:
            node = model.producers[use.output]
            if len(node.input) > 2 and node.input[2] and use.bias is None:
                raise _unsupported(node, "adds something else than a bias per channel")
    if head.use.bias is None and head.layer.operator != "MatMul":
        raise _unsupported(model.producers[head.use.output], "has no bias of its own")


def _check_padding(body: list[tuple[NodeProto, Link]]) -> None:
    """Zeros beside channels are left out where a step has nothing else, which only an addition allows."""
    widened = {name for _, link in body if isinstance(link, Widened) for name in link.outputs}
    for node, link in body:
        read = widened.intersection(node.input)
        if read and not (node.op_type == "Add" and isinstance(link, Same) and len(link.inputs) == 2 and len(read) == 1):
            raise _unsupported(node, f"reads {sorted(read)[0]!r}, whose channels were padded; only an Add may")


def _unsupported(node: NodeProto, why: str) -> UnsupportedOperatorError:
    return UnsupportedOperatorError(f"node {node.name or node.output[0]!r} ({node.op_type}) {why}; {_ADVICE}")


class _Tying:
    """Numbers the channels of all tensors, 0 standing for what is given, and finds those that are tied."""

    def __init__(self, model: Model, channels: Channels, body: list[tuple[NodeProto, Link]]) -> None:
        self._sizes = {spec.name: channels.sizes[spec.name] for spec in model.inputs}
        self._sizes |= {name: channels.sizes[name] for node, _ in body for name in node.output if name}
        self._start = dict(zip(self._sizes, 1 + np.cumsum([0, *self._sizes.values()]), strict=False))
        self._given = {spec.name for spec in model.inputs}
        self._body = body

    def units(self) -> tuple[dict[str, Array], int]:
        """Unit of each channel by tensor, and how many units there are; what is given is unit 0."""
        ties = [(np.zeros(1, np.int64),) * 2]
        ties += [self._tied_to_given(name) for name in sorted(self._given)]
        for node, link in self._body:
            ties += self._of(node, link)
        left, right = (np.concatenate([pair[i] for pair in ties]) for i in (0, 1))
        total = 1 + sum(self._sizes.values())
        graph = coo_array((np.ones(len(left), np.int8), (left, right)), shape=(total, total))
        count, found = connected_components(graph, directed=False)
        # In the order in which they first appear, so that a repeated run numbers them alike.
        _, first, of = np.unique(found, return_index=True, return_inverse=True)
        order = np.argsort(np.argsort(first))[of]
        return {name: order[self._numbers(name)] for name in self._sizes}, int(count)

    def _of(self, node: NodeProto, link: Link) -> Iterable[Ties]:
        match link:
            case Product():
                yield from self._product(link)
            case Same():
                yield from ((self._numbers(name), self._numbers(link.output)) for name in link.inputs)
            case Flattened():
                yield link.spread(self._numbers(link.input)), self._numbers(link.output)
            case Joined():
                yield np.concatenate([self._numbers(name) for name in link.inputs]), self._numbers(link.output)
            case Widened():
                whole = self._numbers(link.outputs[0])
                yield self._numbers(link.inputs[0]), whole[link.before : link.before + link.count]
            case Opaque() if self._given.issuperset(link.inputs):
                self._given |= set(link.outputs)
                yield from (self._tied_to_given(name) for name in link.outputs)
            case _:
                raise _unsupported(node, "mixes channels in a way that steps cannot follow")

    def _product(self, link: Product) -> Iterator[Ties]:
        """Groups, of which depthwise filters are the smallest, are units; uses of one weight are alike."""
        groups = len(link.reads)
        ends = [self._numbers(name) for name in (link.use.activation, link.use.output)]
        if groups > 1:
            first = ends[0].reshape(groups, -1)[:, 0]
            yield from ((np.repeat(first, len(numbers) // groups), numbers) for numbers in ends)
        for use in link.layer.uses:
            other = (self._numbers(name) for name in (use.activation, use.output))
            yield from zip(ends, other, strict=True)

    def _numbers(self, name: str) -> Array:
        return np.arange(self._start[name], self._start[name] + self._sizes[name])

    def _tied_to_given(self, name: str) -> Ties:
        return np.zeros(self._sizes[name], np.int64), self._numbers(name)
