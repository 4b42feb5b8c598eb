"""What a gradient rule sees and what it builds with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from onnx import NodeProto, helper

from onnx_cbq.errors import UnsupportedOperatorError
from onnx_cbq.graph.shapes import Shape, Shapes
from onnx_cbq.model import Array, FreshNames, Model, attributes

# Rules may count on this operator set: reductions take their axes as an input, Split knows its number of outputs.
RULES_OPSET = 18


@dataclass
class Builder:
    """Collects nodes and constants; every method returns the name of the tensor that it makes."""

    fresh: FreshNames
    dtype: np.dtype[Any]
    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    _known: dict[tuple[str, tuple[int, ...], bytes], str] = field(default_factory=dict)

    def op(self, operator: str, *inputs: str, **attrs: object) -> str:
        """One node with one output."""
        return self.split(operator, inputs, 1, **attrs)[0]

    def split(self, operator: str, inputs: Sequence[str], outputs: int, **attrs: object) -> list[str]:
        """One node with several outputs."""
        names = [self.fresh(f"grad_{operator}") for _ in range(outputs)]
        self.nodes.append(_make_node(operator, inputs, names, attrs))
        return names

    def constant(self, value: Array) -> str:
        """A constant; equal ones are made once."""
        value = np.asarray(value)
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._known:
            self._known[key] = self.fresh("grad_const")
            self.constants[self._known[key]] = value
        return self._known[key]

    def number(self, value: float) -> str:
        """A scalar of the model's float type."""
        return self.constant(np.array(value, self.dtype))

    def ints(self, values: Sequence[int]) -> str:
        """A list of int64, as axes, shapes and pads are given."""
        return self.constant(np.array(values, np.int64))

    def reduce_sum(self, name: str, axes: Sequence[int], *, keepdims: bool = True) -> str:
        """Sum over `axes`; `name` itself if there are none."""
        return self.op("ReduceSum", name, self.ints(axes), keepdims=int(keepdims)) if len(axes) else name

    def reshape_like(self, name: str, other: str) -> str:
        """`name` with the shape that `other` has at run time."""
        return self.op("Reshape", name, self.op("Shape", other))

    def where(self, condition: str, name: str) -> str:
        """`name` where `condition` holds, else 0 (even where `name` is infinite)."""
        return self.op("Where", condition, name, self.number(0.0))

    def not_zero(self, name: str) -> str:
        """1 where the non-negative `name` is above 0, else 0: clip(3e38 x, 0, 1), exact for all normal numbers.

        Multiplying and clipping run vectorised in onnxruntime; Sign, Greater and Where take ten times as long.
        """
        largest = float(np.finfo(self.dtype).max)
        return self.op("Clip", self.op("Mul", name, self.number(largest)), self.number(0.0), self.number(1.0))

    def indicator(self, condition: str) -> str:
        """1 where `condition` holds, else 0."""
        return self.op("Cast", condition, to=helper.np_dtype_to_tensor_dtype(self.dtype))


@dataclass(frozen=True)
class Site:
    """One node of the forward graph, to be differentiated.

    `dy[i]` names the gradient of output i, None if nothing depends on that output. `needed[i]` tells whether the
    gradient of input i is asked for.
    """

    node: NodeProto
    model: Model
    shapes: Shapes
    build: Builder
    dy: tuple[str | None, ...]
    needed: tuple[bool, ...]

    @cached_property
    def attrs(self) -> Mapping[str, Any]:
        """The node's attributes."""
        return attributes(self.node)

    @property
    def x(self) -> str:
        """The first input."""
        return str(self.node.input[0])

    @property
    def y(self) -> str:
        """The first output."""
        return str(self.node.output[0])

    @property
    def grad(self) -> str:
        """The gradient of the first output."""
        if self.dy[0] is None:
            raise self.unsupported("the gradient of an output other than its first")
        return self.dy[0]

    def shape(self, index: int = 0) -> Shape:
        """Measured shape of input `index`."""
        return self.shapes[self.node.input[index]]

    @property
    def output_shape(self) -> Shape:
        """Measured shape of the first output."""
        return self.shapes[self.y]

    def has_input(self, index: int) -> bool:
        """Whether the optional input `index` is given."""
        return index < len(self.node.input) and bool(self.node.input[index])

    def constant(self, index: int, default: Array) -> Array:
        """The value of an optional constant input; `default` if it is not given."""
        return self.required(index) if self.has_input(index) else default

    def required(self, index: int) -> Array:
        """The value of a constant input.

        Raises:
            UnsupportedOperatorError: the input is computed at run time.
        """
        value = self.model.constant(self.node.input[index])
        if value is None:
            raise self.unsupported(f"input {index} ({self.node.input[index]!r}) that is computed at run time")
        return value

    def sum_to_input(self, name: str, index: int) -> str:
        """Undo broadcasting: sum `name`, which has the output's shape, to the shape of input `index`."""
        target, full = self.shape(index), self.output_shape
        padded = (1,) * (len(full) - len(target)) + tuple(target)
        axes = [axis for axis, (size, wide) in enumerate(zip(padded, full, strict=True)) if size == 1 and wide != 1]
        summed = self.build.reduce_sum(name, axes)
        return summed if len(full) == len(target) else self.build.reshape_like(summed, self.node.input[index])

    def axis(self, default: int = 0) -> int:
        """The attribute `axis` as a non-negative number of an input axis."""
        return int(self.attrs.get("axis", default)) % max(len(self.shape()), 1)

    def unsupported(self, what: str) -> UnsupportedOperatorError:
        """The error that this node cannot be differentiated because of `what`."""
        title = self.node.name or self.y
        return UnsupportedOperatorError(
            f"node {title!r} ({self.node.op_type}) has no gradient with {what}; use --method uniform, which needs none"
        )


def _make_node(operator: str, inputs: Sequence[str], outputs: Sequence[str], attrs: Mapping[str, Any]) -> NodeProto:
    return helper.make_node(operator, inputs, outputs, outputs[0], **attrs)


Gradients = Sequence[str | None]
Rule = Callable[[Site], Gradients]
