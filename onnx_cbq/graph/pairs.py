"""Who makes channels, and the layers that alone read them: pairs whose channels can be made alike.

Channels are made by a Conv or Gemm, or by a vector that a normalization or a Mul multiplies with (as SmoothQuant, arXiv
2211.10438, and RepQ-ViT, arXiv 2212.08254, fold scales into LayerNorm). Values of attention are made by the layer that
may make queries and keys as well, and are read by the layer behind the heads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from heapq import heappop, heappush

from onnx import NodeProto

from onnx_cbq.graph.layouts import Axis, Layout
from onnx_cbq.graph.paths import Selection, Step, layout_behind, selections
from onnx_cbq.graph.shapes import Shapes
from onnx_cbq.model import STANDARD, Array, Model, attributes
from onnx_cbq.records import Layer, Layers

_OPERATORS = ("Conv", "Gemm", "MatMul")
# What gives channels another range; ranges are taken behind it.
_SHAPING = frozenset(("Relu", "LeakyRelu", "PRelu", "Clip", "Mul", "Div", "MatMul"))
# Those that multiply channels by their second input and add their third, and the axis of the channels.
_NORMALIZATIONS = dict.fromkeys(("LayerNormalization", "RMSNormalization"), -1)
_NORMALIZATIONS |= dict.fromkeys(("BatchNormalization", "InstanceNormalization", "GroupNormalization"), 1)


@dataclass(frozen=True)
class Maker:
    """What makes channels.

    Attributes:
        constants: those that its output is linear in, and their axes of channels.
        output, axis: the tensor that it makes, and its axis of channels.
        within: what it makes on the way, in which the channels are as large.
    """

    name: str
    constants: tuple[tuple[str, int], ...]
    output: str
    axis: int
    within: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reader:
    """A layer that sums over the channels, and the factors of the axis along which it does."""

    layer: Layer
    axis: Axis


@dataclass(frozen=True)
class Pair:
    """What makes some channels, all layers that read them, and what lies between.

    Attributes:
        channels: start and stop of the channels among those of the maker.
        tensor: what the ranges are taken of; these channels, or all of the maker, lie along `channel_axis`.
        path: the tensors from the maker to the readers' input.
        bound: the upper bound of a Clip between them.
    """

    maker: Maker
    channels: tuple[int, int]
    tensor: str
    channel_axis: int
    readers: tuple[Reader, ...] = ()
    path: tuple[str, ...] = ()
    bound: float = math.inf

    @property
    def count(self) -> int:
        """Number of channels."""
        return self.channels[1] - self.channels[0]

    def of_tensor(self, ranges: Array) -> Array:
        """The ranges of these channels by those along the axis of the tensor."""
        return ranges if len(ranges) == self.count else ranges[slice(*self.channels)]

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.maker.name} -> {', '.join(reader.layer.name for reader in self.readers)}"


def find_pairs(model: Model, layers: Layers, shapes: Shapes) -> tuple[Pair, ...]:
    """The pairs that can be equalized: nothing else may read what is made, nor the constants on both sides.

    No layer reads for two of them, and no maker makes for two: what lies in front of both has one grid. Cost: for every
    maker the nodes up to its readers, in Python.
    """
    finder = _Finder(model, layers, shapes)
    taken, pairs = set[str](), list[Pair]()
    for maker in finder.makers():
        for pair in finder.pairs(maker):
            names = {reader.layer.name for reader in pair.readers}
            if not names & taken and pair.count > 1:
                pairs.append(pair)
                taken |= names
                break
    return tuple(pairs)


@dataclass(frozen=True)
class _Way:
    """How far the channels were followed.

    Attributes:
        alone: whether all of what was made lies in one tensor.
        stale: whether the ranges are others since they were taken. They are taken at the last tensor that holds all
            that was made along one axis; at the Clip, if there is one, whose bound they are held against.
    """

    pair: Pair
    alone: bool = True
    stale: bool = False

    def behind(self, node: NodeProto, layout: Layout, bound: float | None) -> _Way:
        """Behind a node that leaves the channels so; its bound, if it is a Clip."""
        pair, result, plain = self.pair, node.output[0], layout.plain
        stale = self.alone and math.isinf(pair.bound) and (self.stale or node.op_type in _SHAPING)
        if stale and plain is not None:
            pair, stale = replace(pair, tensor=result, channel_axis=plain), False
        pair = replace(pair, bound=pair.bound if bound is None else bound)
        return replace(self, pair=pair, stale=stale)


class _Finder:
    """Finds makers, and follows what they make."""

    def __init__(self, model: Model, layers: Layers, shapes: Shapes) -> None:
        self.model, self.shapes = model, shapes
        self.nodes = model.nodes
        self.by_output = {layer.uses[0].output: layer for layer in layers if self._is_simple(layer)}
        self.order = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}

    def makers(self) -> Iterator[Maker]:
        """Layers, then normalizations and products with vectors, in the order of the graph."""
        for layer in self.by_output.values():
            maker = self._layer(layer)
            if maker is not None:
                yield maker
        for node in self.nodes:
            if node.domain not in STANDARD:
                continue
            maker = self._normalization(node) if node.op_type in _NORMALIZATIONS else self._product(node)
            if maker is not None:
                yield maker

    def pairs(self, maker: Maker) -> Iterator[Pair]:
        """All channels of the maker as one pair, or those that attention tells apart as one each."""
        shape = self.shapes[maker.output]
        pair = Pair(maker, (0, shape[maker.axis]), maker.output, maker.axis, path=maker.within)
        yield from self._follow(_Way(pair), maker.output, Layout.of(shape, maker.axis))

    def _layer(self, layer: Layer) -> Maker | None:
        use = layer.uses[0]
        weight, given = (layer.weight, layer.weight_axis), self.model.producers[use.output].input[2:]
        if layer.operator == "MatMul":
            added = self._added(use.output, use.channel_axis % len(self.shapes[use.output]))
            constants, output = (weight, *added[0]), added[1]
        else:
            bias = self._sole(use.bias, layer.channels)
            if bias is None and (use.bias is not None or any(given)):
                return None
            constants, output = (weight, *(((bias, 0),) if bias is not None else ())), use.output
        within = () if output == use.output else (use.output,)
        return Maker(layer.name, constants, output, use.channel_axis % len(self.shapes[output]), within)

    def _normalization(self, node: NodeProto) -> Maker | None:
        shape = self.shapes[node.output[0]]
        axis = _NORMALIZATIONS[node.op_type] % len(shape)
        if _NORMALIZATIONS[node.op_type] < 0 and int(attributes(node).get("axis", -1)) % len(shape) != axis:
            return None
        given = [name for name in node.input[1:3] if name]
        found = [self._sole(name, shape[axis]) for name in given]
        constants = tuple((name, 0) for name in found if name is not None)
        if len(constants) < len(given) or any(node.output[1:]):
            return None
        return Maker(node.name or node.output[0], constants, node.output[0], axis)

    def _product(self, node: NodeProto) -> Maker | None:
        """x * vector, and what an Add of another vector makes of it."""
        vector = self._vector(node) if node.op_type == "Mul" else None
        if vector is None:
            return None
        name, axis = vector
        added, output = self._added(node.output[0], axis)
        within = () if output == node.output[0] else (node.output[0],)
        return Maker(node.name or output, ((name, self._axis_of(name)), *added), output, axis, within)

    def _added(self, output: str, axis: int) -> tuple[tuple[tuple[str, int], ...], str]:
        """The vector that an Add behind a tensor adds to its channels, if that alone reads it, and what it gives."""
        readers = self.model.consumers.get(output, [])
        only = len(readers) == 1 and readers[0].op_type == "Add" and output not in self.model.outputs
        added = self._vector(readers[0]) if only else None
        if added is None or added[1] != axis:
            return (), output
        return ((added[0], self._axis_of(added[0])),), readers[0].output[0]

    def _sole(self, name: str | None, channels: int) -> str | None:
        """A constant with a number for each channel that nothing else reads."""
        if name is None or not self._is_read_once(name):
            return None
        return name if self.model.weight(name).shape == (channels,) else None

    def _is_read_once(self, name: str) -> bool:
        """Whether a tensor is a constant, and one input of one node is all that it is for."""
        readers = self.model.consumers.get(name, [])
        known = self.model.is_constant(name) and name not in self.model.outputs
        return known and len(readers) == 1 and list(readers[0].input).count(name) == 1

    def _is_simple(self, layer: Layer) -> bool:
        """Whether the layer multiplies what it reads by its weight, once, and nothing else reads that."""
        use = layer.uses[0]
        known = layer.operator in _OPERATORS and len(layer.uses) == 1 and self._is_read_once(layer.weight)
        return known and (layer.operator != "MatMul" or (use.weight_index == 1 and len(layer.weight_shape) == 2))

    def _vector(self, node: NodeProto) -> tuple[str, int] | None:
        """The operand that is a number for each channel, read by nothing else, and the axis of these channels."""
        shape = self.shapes[node.output[0]]
        for name, other in (node.input, reversed(node.input)):
            if not self._is_read_once(name) or self.shapes.sizes.get(other) != shape:
                continue
            value = self.model.weight(name)
            axes = [axis - value.ndim for axis, size in enumerate(value.shape) if size > 1]
            fits = len(axes) == 1 and value.size == shape[axes[0]] and value.ndim <= len(shape)
            if fits and len(shape) + axes[0] > 0:
                return name, len(shape) + axes[0]
        return None

    def _axis_of(self, name: str) -> int:
        return max(range(self.model.weight(name).ndim), key=self.model.weight(name).shape.__getitem__)

    def _follow(self, way: _Way, start: str, layout: Layout) -> Iterator[Pair]:
        """The pairs that end behind a tensor, node after node in the order of the graph."""
        walk, readers = _Walk(self, list(way.pair.path)), list[Reader]()
        fine = walk.reach(start, layout)
        while fine and walk.queue:
            step = walk.next_step()
            layer = self.by_output.get(step.node.output[0])
            if layer is not None:
                axis = _summed_axis(step)
                fine = axis is not None
                readers += [Reader(layer, axis)] if axis is not None else []
                continue
            parts = None if readers else self._told_apart(way, walk, step)
            if parts is not None:
                for part in parts:
                    pair = replace(way.pair, channels=(part.start, part.stop), path=tuple(walk.path))
                    yield from self._follow(replace(way, pair=pair), part.tensor, part.layout)
                return
            way = replace(way, alone=way.alone and len(self.model.consumers[step.name]) == 1)
            bound = self._bound(way, step) if step.node.op_type == "Clip" else None
            behind = step.layout if bound is not None else layout_behind(step)
            fine = walk.reach(step.node.output[0], behind)
            way = way if behind is None else way.behind(step.node, behind, bound)
        if fine and readers:
            yield replace(way.pair, readers=tuple(readers), path=tuple(walk.path))

    def _told_apart(self, way: _Way, walk: _Walk, step: Step) -> list[Selection] | None:
        """What a node selects of the channels, where all that is left to look at selects from the same tensor.

        Of this what is taken once, which may be nothing; None for a node that is to be passed like others.
        """
        has_all = way.pair.channels == (0, self.shapes[way.pair.maker.output][way.pair.maker.axis])
        own = selections(step) if has_all else []
        others = [walk.step(number) for number in walk.queue] if own else []
        found = [selections(other) if other.name == step.name else [] for other in others]
        if not own or not all(found):
            return None
        parts = [*own, *(part for several in found for part in several)]
        return [part for part in parts if sum(part.overlaps(other) for other in parts) == 1]

    def _bound(self, way: _Way, step: Step) -> float | None:
        """A Clip from 0 is passed once, where its bound holds for all that was made."""
        known = way.alone and step.layout.plain is not None and math.isinf(way.pair.bound)
        return _upper_bound(self.model, step.node) if known and list(step.layouts) == [0] else None


class _Walk:
    """Where the channels lie so far, and the nodes that read them and were not looked at, by number."""

    def __init__(self, finder: _Finder, path: list[str]) -> None:
        self._finder, self.path = finder, path
        self._held: dict[str, Layout] = {}
        self.queue: list[int] = []

    def reach(self, name: str, layout: Layout | None) -> bool:
        """Take in a tensor; whether it is nodes of the graph, and they alone, that see what becomes of it."""
        readers = self._finder.model.consumers.get(name, [])
        if layout is None or not readers or name in self._finder.model.outputs:
            return False
        # No rule knows every attribute of every version.
        if layout.shape != self._finder.shapes[name]:
            return False
        self._held[name] = layout
        self.path.append(name)
        for number in {self._finder.order[next(filter(None, node.output))] for node in readers}.difference(self.queue):
            heappush(self.queue, number)
        return True

    def step(self, number: int) -> Step:
        """The node of that number, and what it reads."""
        node = self._finder.nodes[number]
        held = {i: self._held[name] for i, name in enumerate(node.input) if name in self._held}
        return Step(self._finder.model, self._finder.shapes, node, held)

    def next_step(self) -> Step:
        """The first node in the order of the graph: all that it reads is known."""
        return self.step(heappop(self.queue))


def _summed_axis(step: Step) -> Axis | None:
    """The axis that a layer sums over, if all digits of the channels lie along it."""
    axis = 1 if step.node.op_type == "Conv" else len(step.layout.axes) - 1
    return step.layout.axes[axis] if list(step.layouts) == [0] and step.layout.holders == [axis] else None


def _upper_bound(model: Model, node: NodeProto) -> float | None:
    """Where a Clip from 0 ends, None for other Clips."""
    low, high = (*(model.constant(name) if name else None for name in node.input[1:]), None, None)[:2]
    if low is None or low.item() != 0 or (high is None and len(node.input) > 2 and node.input[2]):
        return None
    bound = math.inf if high is None else float(high.item())
    return bound if bound > 0 else None
