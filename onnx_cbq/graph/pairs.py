"""Who makes channels, and the layers that alone read them: pairs whose channels can be made alike.

Channels are made by a Conv or Gemm, or by a vector that a normalization or a Mul multiplies with (as SmoothQuant, arXiv
2211.10438, and RepQ-ViT, arXiv 2212.08254, fold scales into LayerNorm). Values of attention are made by the layer that
may make queries and keys as well, and are read by the layer behind the heads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from onnx import NodeProto

from onnx_cbq.graph.paths import Place, Selection, Step, place_behind, selections
from onnx_cbq.graph.shapes import Shapes
from onnx_cbq.model import Array, Model, attributes
from onnx_cbq.records import Layer, Layers

_OPERATORS = ("Conv", "Gemm")
# What gives channels another range; ranges are taken behind it.
_SHAPING = frozenset(("Relu", "LeakyRelu", "PRelu", "Clip", "Mul", "Div", "MatMul"))
# Those that multiply channels by their second input and add their third, and the axis of the channels.
_NORMALIZATIONS = dict.fromkeys(("LayerNormalization", "RMSNormalization"), -1)
_NORMALIZATIONS |= dict.fromkeys(("BatchNormalization", "InstanceNormalization", "GroupNormalization"), 1)


@dataclass(frozen=True)
class Maker:
    """What makes the channels of `output` along `axis`: constants that are linear in it, and their axes of channels."""

    name: str
    constants: tuple[tuple[str, int], ...]
    output: str
    axis: int


@dataclass(frozen=True)
class Reader:
    """A layer that sums over the channels; above 1 `columns` of its input are positions of one."""

    layer: Layer
    columns: int = 1


@dataclass(frozen=True)
class Pair:
    """What makes some channels, all layers that read them, and what lies between.

    Attributes:
        channels: start and stop of the channels among those of the maker.
        tensor: what the ranges are taken of; these channels, or all of the maker, lie along `channel_axis`.
        path: the tensors from the maker's output to the readers' input.
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

    No layer reads for two of them.
    """
    finder = _Finder(model, layers, shapes)
    taken, pairs = set[str](), list[Pair]()
    for maker in finder.makers():
        for pair in finder.pairs(maker):
            names = {reader.layer.name for reader in pair.readers}
            if not names & taken and len(names) == len(pair.readers):
                pairs.append(pair)
                taken |= names
    return tuple(pairs)


@dataclass(frozen=True)
class _Walk:
    """How far the channels were followed.

    Attributes:
        count: channels of the maker.
        seen: the tensors that were reached from the maker; what joins two ways is not linear in the channels.
        alone: whether all of what was made lies in one tensor.
        due: whether the ranges are others since they were last to be had along one axis.
    """

    pair: Pair
    count: int
    seen: set[str]
    alone: bool = True
    due: bool = False

    @property
    def has_all(self) -> bool:
        """Whether no channels were told apart yet."""
        return self.pair.channels == (0, self.count)

    def changed(self, **changes: Any) -> _Walk:
        """With another pair."""
        return replace(self, pair=replace(self.pair, **changes))


@dataclass(frozen=True)
class _Finder:
    model: Model
    layers: Layers
    shapes: Shapes
    by_use: dict[tuple[str, str], Layer] = field(init=False)

    def __post_init__(self) -> None:
        simple = [layer for layer in self.layers if layer.operator in _OPERATORS and len(layer.uses) == 1]
        object.__setattr__(self, "by_use", {(x.uses[0].activation, x.uses[0].output): x for x in simple})

    def makers(self) -> Iterator[Maker]:
        """Layers, then normalizations and products with vectors, in the order of the graph."""
        for layer in self.by_use.values():
            use = layer.uses[0]
            bias = self._sole(use.bias, layer.channels)
            given = [name for name in self.model.producers[use.output].input[2:] if name]
            if bias is not None or (use.bias is None and not given):
                constants = ((layer.weight, layer.weight_axis), *(((bias, 0),) if bias is not None else ()))
                yield Maker(layer.name, constants, use.output, use.channel_axis)
        for node in self.model.nodes:
            maker = self._normalization(node) if node.op_type in _NORMALIZATIONS else self._product(node)
            if maker is not None:
                yield maker

    def pairs(self, maker: Maker) -> Iterator[Pair]:
        """All channels of the maker as one pair, or those that attention tells apart as one each."""
        count = self.shapes[maker.output][maker.axis]
        walk = _Walk(Pair(maker, (0, count), maker.output, maker.axis), count, set())
        yield from self._follow(walk, maker.output, Place((maker.axis,)))

    def _sole(self, name: str | None, channels: int) -> str | None:
        """A constant with a number for each channel that nothing else reads."""
        known = name is not None and self.model.is_constant(name) and name not in self.model.outputs
        if name is None or not known or len(self.model.consumers[name]) != 1:
            return None
        return name if self.model.weight(name).shape == (channels,) else None

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
        (name, axis), output = vector, node.output[0]
        constants = [(name, self._axis_of(name))]
        readers = self.model.consumers.get(output, [])
        added = self._vector(readers[0]) if len(readers) == 1 and readers[0].op_type == "Add" else None
        if added is not None and added[1] == axis and output not in self.model.outputs:
            constants.append((added[0], self._axis_of(added[0])))
            output = readers[0].output[0]
        return Maker(node.name or output, tuple(constants), output, axis)

    def _vector(self, node: NodeProto) -> tuple[str, int] | None:
        """The operand that is a number for each channel, read by nothing else, and the axis of these channels."""
        shape = self.shapes[node.output[0]]
        for name, other in (node.input, reversed(node.input)):
            if not self.model.is_constant(name) or self.shapes.sizes.get(other) != shape or name in self.model.outputs:
                continue
            value = self.model.weight(name)
            axes = [axis - value.ndim for axis, size in enumerate(value.shape) if size > 1]
            fits = len(axes) == 1 and value.size == shape[axes[0]] and value.ndim <= len(shape)
            if fits and len(self.model.consumers[name]) == 1 and len(shape) + axes[0] > 0:
                return name, len(shape) + axes[0]
        return None

    def _axis_of(self, name: str) -> int:
        return max(range(self.model.weight(name).ndim), key=self.model.weight(name).shape.__getitem__)

    def _follow(self, walk: _Walk, name: str, place: Place) -> Iterator[Pair]:
        """The pairs that end behind a tensor whose channels lie at a place."""
        readers = self.model.consumers.get(name, [])
        if not readers or name in self.model.outputs or name in walk.seen:
            return
        walk.seen.add(name)
        walk = walk.changed(path=(*walk.pair.path, name))
        steps = [Step(self.model, self.shapes, node, i, place) for node in readers for i in _inputs(node, name)]
        parts = [selections(step) for step in steps]
        if walk.has_all and all(parts):
            yield from self._apart(walk, [part for found in parts for part in found])
        elif len(steps) == 1:
            yield from self._behind(walk, steps[0])
        else:
            yield from self._together(replace(walk, alone=False), steps)

    def _apart(self, walk: _Walk, parts: Sequence[Selection]) -> Iterator[Pair]:
        """Channels that are taken once are pairs of their own."""
        for part in parts:
            if sum(part.overlaps(other) for other in parts) == 1:
                yield from self._follow(walk.changed(channels=(part.start, part.stop)), part.tensor, part.place)

    def _together(self, walk: _Walk, steps: Sequence[Step]) -> Iterator[Pair]:
        """One pair of all that several readers lead to, if each leads to layers only."""
        found = list[Pair]()
        for step in steps:
            ends = list(self._behind(walk, step))
            if len(ends) != 1 or ends[0].channels != walk.pair.channels:
                return
            found += ends
        path = tuple(dict.fromkeys(tensor for pair in found for tensor in pair.path))
        yield replace(found[0], readers=tuple(reader for pair in found for reader in pair.readers), path=path)

    def _behind(self, walk: _Walk, step: Step) -> Iterator[Pair]:
        """What one reader of a tensor leads to."""
        node, result = step.node, step.node.output[0]
        layer = self.by_use.get((node.input[step.index], result))
        if layer is not None:
            if step.index == 0 and _sums_over(step):
                yield replace(walk.pair, readers=(Reader(layer, step.place.columns),))
            return
        behind = self._behind_clip(walk, step) if node.op_type == "Clip" else place_behind(step)
        if behind is None:
            return
        if node.op_type == "Clip":
            walk = walk.changed(bound=_upper_bound(self.model, node))
        due = walk.alone and (walk.due or node.op_type in _SHAPING)
        if due and len(behind.axes) == behind.columns == 1:
            walk, due = walk.changed(tensor=result, channel_axis=behind.axes[0]), False
        walk = replace(walk, due=due)
        yield from self._follow(walk, result, behind)

    def _behind_clip(self, walk: _Walk, step: Step) -> Place | None:
        """A Clip from 0 is passed once, where its bound holds for all that was made."""
        known = walk.alone and step.place.columns == 1 and math.isinf(walk.pair.bound)
        return step.place if known and step.index == 0 and _upper_bound(self.model, step.node) is not None else None


def _inputs(node: NodeProto, name: str) -> list[int]:
    return [i for i, given in enumerate(node.input) if given == name]


def _sums_over(step: Step) -> bool:
    """Whether the channels lie along the axis that a layer sums over, and are all that lies there."""
    if step.node.op_type == "Conv":
        return step.place == Place((1,))
    return step.place.axes == (len(step.before) - 1,)


def _upper_bound(model: Model, node: NodeProto) -> float | None:
    """Where a Clip from 0 ends, None for other Clips."""
    low, high = (*(model.constant(name) if name else None for name in node.input[1:]), None, None)[:2]
    if low is None or low.item() != 0 or (high is None and len(node.input) > 2 and node.input[2]):
        return None
    bound = math.inf if high is None else float(high.item())
    return bound if bound > 0 else None
