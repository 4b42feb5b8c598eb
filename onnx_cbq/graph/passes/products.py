"""Write products with a constant as a MatMul with a matrix: an Einsum of two operands, and a product with a vector.

An Einsum that adds up products over the indices that both operands have, and the result does not, is

    x -> Transpose [rest..., both, one, sums] -> MatMul with [both, sums, own] -> Transpose to the result

where `both` are indices of both operands and the result, `sums` those summed over, `own` those of the constant and
`rest..., one` those of x. Several sums, or own indices, are laid flat; without sums it stays an Einsum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_letters
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnx_cbq.graph.shapes import Example, Shapes
from onnx_cbq.graph.surgeon import constant_value, from_surgeon, to_surgeon
from onnx_cbq.model import Model

PRODUCTS = ("Einsum", "MatMul")


def products_to_matmul(model: Model, example: Example) -> Model:
    """Every Einsum, and every MatMul with a vector, that has one constant operand and is a product of matrices."""
    nodes = [node for node in model.nodes if node.op_type in PRODUCTS and any(map(model.is_constant, node.input))]
    if not any(node.op_type == "Einsum" or _has_vector(model, node.input) for node in nodes):
        return model
    shapes, graph = example.shapes(model), to_surgeon(model)
    changed = [_einsum(graph, node, shapes) for node in list(graph.nodes) if node.op == "Einsum"]
    changed += [_vector(graph, node) for node in list(graph.nodes) if node.op == "MatMul"]
    return from_surgeon(graph, model) if any(changed) else model


def _has_vector(model: Model, names: Sequence[str]) -> bool:
    return any(value is not None and value.ndim == 1 for value in map(model.constant, names))


def _vector(graph: Any, node: Any) -> bool:
    """A MatMul with a constant vector gets a matrix of one column or row, and the axis is taken off again."""
    for index, axis in ((1, -1), (0, -2)):
        value, other = constant_value(node.inputs[index]), node.inputs[1 - index]
        if value is None or value.ndim != 1 or isinstance(other, gs.Constant):
            continue
        result = node.outputs[0]
        node.inputs[index] = gs.Constant(f"{result.name}_matrix", np.expand_dims(value, 0 if axis == -2 else 1))
        node.outputs = [gs.Variable(f"{result.name}_wide", value.dtype)]
        axes = gs.Constant(f"{result.name}_axes", np.array([axis], np.int64))
        graph.nodes.append(gs.Node("Squeeze", inputs=[node.outputs[0], axes], outputs=[result]))
        return True
    return False


@dataclass(frozen=True)
class _Plan:
    """Indices of an Einsum by what becomes of them, each kind in the order in which it is written."""

    x: str
    w: str
    result: str

    @property
    def both(self) -> str:
        return "".join(i for i in self.w if i in self.x and i in self.result)

    @property
    def sums(self) -> str:
        return "".join(i for i in self.w if i in self.x and i not in self.result)

    @property
    def own(self) -> str:
        return "".join(i for i in self.w if i not in self.x)

    @property
    def rest(self) -> str:
        return "".join(i for i in self.x if i not in self.w)

    def fits(self) -> bool:
        plain = all(len(set(term)) == len(term) for term in (self.x, self.w, self.result))
        return plain and bool(self.sums) and set(self.result) == set(self.both + self.rest + self.own)


def _einsum(graph: Any, node: Any, shapes: Shapes) -> bool:
    values = [constant_value(tensor) for tensor in node.inputs]
    if len(values) != 2 or (values[0] is None) == (values[1] is None):
        return False
    index = 0 if values[0] is not None else 1
    weight, source, result = values[index], node.inputs[1 - index], node.outputs[0]
    assert weight is not None
    plan = _terms(str(node.attrs["equation"]), index, len(shapes[source.name]))
    if plan is None or not plan.fits() or len(plan.w) != weight.ndim or len(plan.x) != len(shapes[source.name]):
        return False
    size = dict(zip(plan.w, weight.shape, strict=True))
    if any(shapes[source.name][plan.x.index(i)] != size[i] for i in plan.both + plan.sums):
        return False  # broadcast
    order = plan.both + plan.sums + plan.own
    matrix = weight.transpose([plan.w.index(i) for i in order])
    matrix = matrix.reshape(*(size[i] for i in plan.both), int(np.prod([size[i] for i in plan.sums])), -1)
    write = _Steps(graph, result.name, weight.dtype)
    rest, one = plan.rest[:-1], plan.rest[-1:]
    read = write.turned(source, plan.x, rest + plan.both + one + plan.sums)
    kept = len(rest + plan.both + one)
    if len(plan.sums) > 1:
        read = write.op("Reshape", read, np.array([0] * kept + [-1], np.int64))
    if not one:
        read = write.op("Unsqueeze", read, np.array([kept], np.int64))
    found = write.op("MatMul", read, np.ascontiguousarray(matrix))
    if not one:
        found = write.op("Squeeze", found, np.array([kept], np.int64))
    if len(plan.own) != 1:
        found = write.op("Reshape", found, np.array([0] * kept + [size[i] for i in plan.own], np.int64))
    last = write.turned(found, rest + plan.both + one + plan.own, plan.result)
    node.outputs.clear()
    last.inputs[0].outputs = [result]
    return True


def _terms(equation: str, index: int, rank: int) -> _Plan | None:
    """The indices of x, of the constant operand `index`, and of the result; an ellipsis of x spelled out.

    None for an ellipsis of the constant, which is broadcast.
    """
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        once = sorted(i for i in set(left) if i.isalpha() and left.count(i) == 1)
        result = ("..." if "..." in left else "") + "".join(once)
    x, w = terms[1 - index], terms[index]
    missing = rank - len(x.replace("...", ""))
    if "..." in w or missing < 0 or (("..." in result) != ("..." in x)):
        return None
    letters = "".join(i for i in ascii_letters if i not in equation)[:missing]
    return _Plan(x.replace("...", letters), w, result.replace("...", letters))


class _Steps:
    """Nodes one after the other, named after what they make in the end."""

    def __init__(self, graph: Any, name: str, dtype: Any) -> None:
        self._graph, self._name, self._dtype, self._count = graph, name, dtype, 0

    def op(self, operator: str, source: Any, constant: Any = None, **attrs: Any) -> Any:
        self._count += 1
        made = gs.Variable(f"{self._name}_{operator.lower()}_{self._count}", self._dtype)
        inputs = [source] if constant is None else [source, gs.Constant(f"{made.name}_constant", constant)]
        self._graph.nodes.append(gs.Node(operator, made.name, attrs=attrs, inputs=inputs, outputs=[made]))
        return made

    def turned(self, source: Any, now: str, wanted: str) -> Any:
        order = [now.index(i) for i in wanted]
        return source if order == sorted(order) else self.op("Transpose", source, perm=order)
