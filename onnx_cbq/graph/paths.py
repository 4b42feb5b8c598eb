"""Follow channels from where they are made to the layers that sum over them, through what multiplies with them.

f(s x) = s f(x) for s > 0 in every channel holds for ReLU, pooling, means, products with another tensor, sums of values
that attention weighs, and whatever moves or selects. A channel may come to lie along several axes on the way: those of
heads and of what is within.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from onnx import NodeProto

from onnx_cbq.graph.shapes import Shapes
from onnx_cbq.model import Model, attributes


@dataclass(frozen=True)
class Place:
    """Where channels lie in a tensor: the row-major index over `axes` is channel * columns + position."""

    axes: tuple[int, ...]
    columns: int = 1

    def moved(self, axes: Mapping[int, int]) -> Place | None:
        """The same along other axes; None if one of them is gone."""
        return replace(self, axes=tuple(axes[a] for a in self.axes)) if all(a in axes for a in self.axes) else None


@dataclass(frozen=True)
class Step:
    """A node that reads the channels of its input number `index`, which lie at `place` there."""

    model: Model
    shapes: Shapes
    node: NodeProto
    index: int
    place: Place

    @property
    def before(self) -> tuple[int, ...]:
        """Shape of what is read."""
        return self.shapes[self.node.input[self.index]]

    @property
    def after(self) -> tuple[int, ...]:
        """Shape of the result."""
        return self.shapes[self.node.output[0]]


def place_behind(step: Step) -> Place | None:
    """Where the channels lie behind a node; None if it does more to them than f(s x) = s f(x) allows."""
    node = step.node
    rule = _RULES.get(node.op_type)
    alone = list(node.input).count(node.input[step.index]) == 1 and len([name for name in node.output if name]) == 1
    return rule(step) if rule is not None and alone else None


@dataclass(frozen=True)
class Selection:
    """Channels from start to stop, which alone lie in a tensor at a place."""

    start: int
    stop: int
    tensor: str
    place: Place

    def overlaps(self, other: Selection) -> bool:
        """Whether they share channels."""
        return self.start < other.stop and other.start < self.stop


def selections(step: Step) -> list[Selection]:
    """What a Gather of one index, a Slice or a Split takes along the first of the channels' axes; none for other nodes.

    So queries, keys and values of attention are told apart, and a gate from what it lets through.
    """
    find, axis, place = _STARTS.get(step.node.op_type), step.place.axes[0], step.place
    taken, starts = find(step) if find is not None and step.index == 0 else (-1, [])
    if taken % len(step.before) != axis or not starts:
        return []
    single = step.node.op_type == "Gather"
    if single:
        keeps = len(step.shapes[step.node.input[1]]) > 0
        left = replace(place, axes=place.axes[1:]).moved(_kept(len(step.before), {axis}, keeps=keeps))
        if not left or not left.axes:
            return []
        place = left
    inner = math.prod(step.before[a] for a in step.place.axes[1:])
    found = list[Selection]()
    for start, output in zip(starts, step.node.output, strict=True):
        ends = start * inner, (start + (1 if single else step.shapes[output][axis])) * inner
        if any(end % place.columns for end in ends):
            return []
        found.append(Selection(ends[0] // place.columns, ends[1] // place.columns, output, place))
    return found


def _start_of_gather(step: Step) -> tuple[int, list[int]]:
    axis, index = int(attributes(step.node).get("axis", 0)), step.model.constant(step.node.input[1])
    alone = index is not None and index.size == 1
    return axis, [int(index.item()) % step.before[axis]] if index is not None and alone else []


def _start_of_slice(step: Step) -> tuple[int, list[int]]:
    starts, _, axes, steps = (*(step.model.constant(name) for name in step.node.input[1:]), None, None)[:4]
    if starts is None or axes is None or axes.size != 1 or (steps is not None and steps.item() != 1):
        return -1, []
    axis = int(axes.item())
    return axis, [range(step.before[axis])[int(starts.item()) :].start]


def _starts_of_split(step: Step) -> tuple[int, list[int]]:
    axis = int(attributes(step.node).get("axis", 0))
    sizes = [step.shapes[output][axis] for output in step.node.output]
    return axis, list(accumulate(sizes, initial=0))[:-1]


# The axis along which a node selects, and where each of its outputs starts there.
_STARTS = {"Gather": _start_of_gather, "Slice": _start_of_slice, "Split": _starts_of_split}


def _same(step: Step) -> Place | None:
    return step.place if step.index == 0 else None


def _pooled(step: Step) -> Place | None:
    """Along axes behind that of the channels."""
    return step.place if step.place == Place((1,)) else None


def _product(step: Step) -> Place | None:
    """Mul, and Div by something else: the other operand may be anything that stays as it is."""
    if step.node.op_type == "Div" and step.index != 0:
        return None
    shift = len(step.after) - len(step.before)
    kept = {axis: axis + shift for axis in range(len(step.before)) if step.after[axis + shift] == step.before[axis]}
    return step.place.moved(kept)


def _transposed(step: Step) -> Place | None:
    rank = len(step.before)
    order = [int(a) for a in attributes(step.node).get("perm", range(rank)[::-1])]
    return step.place.moved({old: new for new, old in enumerate(order)})


def _reshaped(step: Step) -> Place | None:
    """Axes that hold the channels may be split or laid together, also with positions behind them."""
    place, before, after = step.place, step.before, step.after
    first, last = place.axes[0], place.axes[-1]
    if step.index != 0 or any(b != a + 1 for a, b in pairwise(place.axes)):
        return None
    ahead, own = math.prod(before[:first]), math.prod(before[first : last + 1])
    # A span of axes of the result with as many numbers ahead of it, and the channels in it.
    for start in range(len(after)):
        if math.prod(after[:start]) != ahead or after[start] == 1 < own:
            continue
        for end in range(start + 1, len(after) + 1):
            inner = math.prod(after[start:end])
            if inner == own:
                return Place(tuple(range(start, end)), place.columns)
            # [.., C, *P] -> [.., C P]
            if end == len(after) and inner == math.prod(before[first:]):
                return Place(tuple(range(start, end)), place.columns * (inner // own))
    return None


def _mean(step: Step) -> Place | None:
    """Of other axes than those of the channels."""
    settings = attributes(step.node)
    given = step.model.constant(step.node.input[1]) if len(step.node.input) > 1 else settings.get("axes")
    if given is None or step.index != 0:
        return None
    axes = {int(axis) % len(step.before) for axis in given}
    keeps = bool(settings.get("keepdims", 1))
    return None if axes & set(step.place.axes) else step.place.moved(_kept(len(step.before), axes, keeps=keeps))


def _gathered(step: Step) -> Place | None:
    """Of positions on another axis; indices that are computed may be any."""
    axis = int(attributes(step.node).get("axis", 0)) % len(step.before)
    rank = len(step.shapes[step.node.input[1]])
    if step.index != 0 or axis in step.place.axes:
        return None
    return step.place.moved({a: a + (rank - 1) * (a > axis) for a in range(len(step.before))})


def _weighed(step: Step) -> Place | None:
    """y = p x, x [.., positions, channels]: sums over positions, as attention weighs its values."""
    shift = len(step.after) - len(step.before)
    outer = [a for a in range(len(step.before) - 2) if step.after[a + shift] == step.before[a]]
    kept = {a: a + shift for a in (*outer, len(step.before) - 1)}
    return step.place.moved(kept) if step.index == 1 and len(step.before) > 1 else None


def _kept(rank: int, gone: set[int], *, keeps: bool) -> dict[int, int]:
    """New numbers of the axes that stay where some are left out, or `keeps` their places."""
    left = [axis for axis in range(rank) if axis not in gone]
    return {old: old if keeps else new for new, old in enumerate(left)}


_RULES: dict[str, Callable[[Step], Place | None]] = {
    **dict.fromkeys(("Relu", "LeakyRelu", "PRelu", "Identity", "Dropout"), _same),
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"), _pooled),
    **dict.fromkeys(("Mul", "Div"), _product),
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), _reshaped),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax"), _mean),
    "Transpose": _transposed,
    "Gather": _gathered,
    "MatMul": _weighed,
}
