"""What operators do to channels that are multiplied: f(s x) = s f(x) for s > 0 in every channel, or something else.

It holds for ReLU, pooling, means, products with another tensor, sums of values that attention weighs, whatever moves or
selects, and whatever joins tensors that all have the factors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from onnx import NodeProto

from onnx_cbq.graph.layouts import Factor, Layout
from onnx_cbq.graph.shapes import Shapes
from onnx_cbq.model import STANDARD, Model, attributes


@dataclass(frozen=True)
class Step:
    """A node that reads channels.

    Attributes:
        layouts: of the inputs that hold the channels, by number.
    """

    model: Model
    shapes: Shapes
    node: NodeProto
    layouts: Mapping[int, Layout]

    @property
    def name(self) -> str:
        """The first of these inputs."""
        return str(self.node.input[next(iter(self.layouts))])

    @property
    def layout(self) -> Layout:
        """Where it holds them."""
        return next(iter(self.layouts.values()))

    @property
    def before(self) -> tuple[int, ...]:
        """Its shape."""
        return self.shapes[self.name]

    @property
    def after(self) -> tuple[int, ...]:
        """Shape of the result."""
        return self.shapes[self.node.output[0]]

    def axis(self, default: int = 0) -> int:
        """The attribute of that name, from 0 on."""
        return int(attributes(self.node).get("axis", default)) % len(self.before)

    def numbers(self, index: int, attribute: str = "") -> list[int] | None:
        """Whole numbers of a constant input, or of the attribute that older operators have in its place."""
        if index < len(self.node.input) and self.node.input[index]:
            value = self.model.constant(self.node.input[index])
            return None if value is None else [int(number) for number in value.reshape(-1)]
        given = attributes(self.node).get(attribute)
        return None if given is None else [int(number) for number in given]


def layout_behind(step: Step) -> Layout | None:
    """Where the channels lie behind a node; None if it does more to them than f(s x) = s f(x) allows."""
    if step.node.domain not in STANDARD:
        return None
    joined = _JOINS.get(step.node.op_type)
    if joined is not None and len(step.layouts) == len(step.node.input):
        return joined(step)
    first, rule = _RULES.get(step.node.op_type, (None, None))
    if rule is None or len(step.layouts) != 1 or len([name for name in step.node.output if name]) != 1:
        return None
    return rule(step) if first is None or first in step.layouts else None


@dataclass(frozen=True)
class Selection:
    """Channels from start to stop, which alone lie in a tensor."""

    start: int
    stop: int
    tensor: str
    layout: Layout

    def overlaps(self, other: Selection) -> bool:
        """Whether they share channels."""
        return self.start < other.stop and other.start < self.stop


def selections(step: Step) -> list[Selection]:
    """What a Gather of one index, a Slice or a Split takes along the first digit of the channels; none for other nodes.

    So queries, keys and values of attention are told apart, and a gate from what it lets through.
    """
    find, layout = _STARTS.get(step.node.op_type), step.layout
    axis, starts = find(step) if find is not None and list(step.layouts) == [0] else (0, [])
    digits = sorted(f.digit for held in layout.axes for f in held if f.digit is not None)
    if not starts or [f.digit for f in layout.axes[axis]] != digits[:1]:
        return []
    inner = math.prod(f.size for held in layout.axes for f in held if f.digit in digits[1:])
    found = list[Selection]()
    for start, output in zip(starts, step.node.output, strict=True):
        after = step.shapes[output]
        if step.node.op_type == "Gather":
            size, kept = 1, layout.replaced(axis, 1)
            moved = kept if len(after) == len(step.before) else kept.without([axis])
        else:
            size = after[axis]
            only = () if size == 1 else (Factor(size, digits[0]),)
            moved = Layout((*layout.axes[:axis], only, *layout.axes[axis + 1 :]))
        found.append(Selection(start * inner, (start + size) * inner, output, moved))
    return found


def _start_of_gather(step: Step) -> tuple[int, list[int]]:
    axis, index = step.axis(), step.numbers(1)
    single = index is not None and len(index) == 1 and len(step.shapes[step.node.input[1]]) < 2
    return axis, [index[0] % step.before[axis]] if index is not None and single else []


def _start_of_slice(step: Step) -> tuple[int, list[int]]:
    starts, axes, steps = (step.numbers(index) for index in (1, 3, 4))
    if starts is None or axes is None or len(axes) != 1 or (steps or [1]) != [1]:
        return 0, []
    axis = axes[0] % len(step.before)
    return axis, [range(step.before[axis])[starts[0] :].start]


def _starts_of_split(step: Step) -> tuple[int, list[int]]:
    sizes = [step.shapes[output][step.axis()] for output in step.node.output]
    return step.axis(), list(accumulate(sizes, initial=0))[:-1]


# The axis along which a node selects, and where each of its outputs starts there.
_STARTS = {"Gather": _start_of_gather, "Slice": _start_of_slice, "Split": _starts_of_split}


def _same(step: Step) -> Layout:
    return step.layout


def _resized(step: Step) -> Layout | None:
    """Other numbers of positions on axes that are free."""
    layout = step.layout
    for axis, (old, new) in enumerate(zip(step.before, step.after, strict=True)):
        if old != new:
            if not layout.is_free(axis):
                return None
            layout = layout.replaced(axis, new)
    return layout


def _pooled(step: Step) -> Layout | None:
    """Along axes behind the second one."""
    return _resized(step) if max(step.layout.holders, default=1) <= 1 else None


def _padded(step: Step) -> Layout | None:
    """Free axes with zeros, or with numbers from within; what is put before and cut off behind moves channels."""
    pads, axes, rank = step.numbers(1, "pads"), step.numbers(3), len(step.before)
    padded = range(rank) if axes is None else [axis % rank for axis in axes]
    if pads is None or any(
        before or behind
        for axis, before, behind in zip(padded, pads[: len(padded)], pads[len(padded) :], strict=True)
        if not step.layout.is_free(axis)
    ):
        return None
    given = len(step.node.input) > 2 and step.node.input[2]
    filling = step.model.constant(step.node.input[2]) if given else np.zeros(())
    constant = attributes(step.node).get("mode", "constant") == "constant"
    return None if constant and (filling is None or filling.any()) else _resized(step)


def _sliced(step: Step) -> Layout | None:
    """Of positions on free axes."""
    axes = step.numbers(3)
    known = range(len(step.before)) if axes is None else [axis % len(step.before) for axis in axes]
    return _resized(step) if all(step.layout.is_free(axis) for axis in known) else None


def _product(step: Step) -> Layout:
    """Mul, and Div by something else: the other operand may be anything that stays as it is."""
    return _broadcast(step.layout, step.after)


def _broadcast(layout: Layout, shape: tuple[int, ...]) -> Layout:
    """As numpy does; an axis that becomes longer had a single number, which is no channel."""
    padded = Layout(((),) * (len(shape) - len(layout.axes)) + layout.axes)
    for axis, (old, new) in enumerate(zip(padded.shape, shape, strict=True)):
        padded = padded.replaced(axis, new) if old != new else padded
    return padded


def _transposed(step: Step) -> Layout:
    rank = len(step.before)
    return step.layout.transposed([int(axis) for axis in attributes(step.node).get("perm", range(rank)[::-1])])


def _reshaped(step: Step) -> Layout | None:
    return step.layout.reshaped(step.after)


def _reduced(step: Step) -> Layout | None:
    """Over free axes."""
    given, rank = step.numbers(1, "axes"), len(step.before)
    if not given:
        return None
    axes = [axis % rank for axis in given]
    if not all(step.layout.is_free(axis) for axis in axes):
        return None
    return _resized(step) if len(step.after) == rank else step.layout.without(axes)


def _gathered(step: Step) -> Layout | None:
    """Of positions on a free axis; indices that are computed may be any."""
    axis, layout = step.axis(), step.layout
    rank = len(step.shapes[step.node.input[1]])
    if not layout.is_free(axis):
        return None
    taken = tuple(Layout.of(step.after[axis : axis + rank], -1).axes)
    return Layout((*layout.axes[:axis], *taken, *layout.axes[axis + 1 :]))


def _weighed(step: Step) -> Layout | None:
    """y = p x, x [.., positions, channels]: sums over positions, as attention weighs its values."""
    layout, rank = step.layout, len(step.before)
    if min(rank, len(step.shapes[step.node.input[0]])) < 2 or not layout.is_free(rank - 2):
        return None
    return _broadcast(layout.replaced(rank - 2, step.after[-2]), step.after)


def _concatenated(step: Step) -> Layout | None:
    """Of tensors that hold the same channels, along a free axis."""
    axis = step.axis()
    free = all(layout.is_free(axis) for layout in step.layouts.values())
    layouts = {layout.replaced(axis, step.after[axis]) for layout in step.layouts.values()}
    return layouts.pop() if free and len(layouts) == 1 else None


def _added(step: Step) -> Layout | None:
    """Sums, and the larger or smaller of tensors, that hold the same channels in the same places."""
    layouts = {_broadcast(layout, step.after) for layout in step.layouts.values()}
    return layouts.pop() if len(layouts) == 1 else None


# The input that must hold the channels, None for any, and what becomes of them.
_RULES: dict[str, tuple[int | None, Callable[[Step], Layout | None]]] = {
    **dict.fromkeys(("Relu", "LeakyRelu", "PRelu", "Identity", "Dropout"), (0, _same)),
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"), (0, _pooled)),
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), (0, _reshaped)),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"), (0, _reduced)),
    "Mul": (None, _product),
    "Div": (0, _product),
    "MatMul": (1, _weighed),
    "Transpose": (0, _transposed),
    "Gather": (0, _gathered),
    "Slice": (0, _sliced),
    "Pad": (0, _padded),
}
# The same for nodes all of whose inputs hold them.
_JOINS: dict[str, Callable[[Step], Layout | None]] = {
    **dict.fromkeys(("Add", "Sum", "Sub", "Max", "Min", "Mean"), _added),
    "Concat": _concatenated,
}
