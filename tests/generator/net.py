"""A net under construction: nodes and constants are added one by one.

Everything that is chosen is a whole number from a source that is given: Hypothesis, which then makes a failing net
smaller, or a seeded generator. Sizes are counted beside the graph, so that what is built is valid; whether onnxruntime
runs it is tried at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from onnx import FunctionProto, NodeProto, SparseTensorProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnx_cbq.model import Array

# A whole number between two, both included; the first is the simplest.
Draw = Callable[[int, int], int]
T = TypeVar("T")

CONTRIB = "com.microsoft"
# Ways to write a name; a tensor's and a node's are chosen apart.
TENSOR_NAMES: Mapping[str, Callable[[str, int], str]] = {
    "plain": lambda base, n: f"{base}_{n}",
    "numbers": lambda base, n: str(n),  # noqa: ARG005
    "torch": lambda base, n: f"/layer{n}/{base}/{base}_output_0",
    "keras": lambda base, n: f"model/{base}_{n}/BiasAdd:0",
    "brackets": lambda base, n: f"{base}[{n}]",
    "markup": lambda base, n: f"[bold]{base}{n}[/bold]",
    "spaces": lambda base, n: f" {base} {n}",
    "unicode": lambda base, n: f"層{base}·{n}é",
    "dots": lambda base, n: f"../{base}.{n}*?",
}
# By operator, output, and the output of the node before; onnxruntime wants names that differ, or none.
NODE_NAMES: Mapping[str, Callable[[str, str, str], str]] = {
    "operator and output": lambda operator, output, before: f"{operator}_{output}",  # noqa: ARG005
    "empty": lambda operator, output, before: "",  # noqa: ARG005
    "as the tensor": lambda operator, output, before: output,  # noqa: ARG005
    "as another tensor": lambda operator, output, before: before,  # noqa: ARG005
}


@dataclass(frozen=True)
class Value:
    """A float tensor whose first axis is the batch.

    Attributes:
        shape: its sizes without the batch, at the size that samples have.
        kind: "channels" [C, *space], "tokens" [T, D], or "vector" [D].
        dynamic: axes but the batch and the channels have no fixed size, so no constant may hold it.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    dynamic: bool = False

    @property
    def channels(self) -> int:
        """Size of the axis of the channels."""
        return self.shape[0] if self.kind == "channels" else self.shape[-1]

    @property
    def space(self) -> tuple[int, ...]:
        """The other sizes."""
        return self.shape[1:] if self.kind == "channels" else self.shape[:-1]

    @property
    def axis(self) -> int:
        """The axis of the channels, the batch counted."""
        return 1 if self.kind == "channels" else len(self.shape)

    def renamed(self, name: str) -> Value:
        """The same sizes under another name."""
        return replace(self, name=name)


@dataclass
class Net:
    """What was built so far.

    Attributes:
        draw: where choices come from.
        opset: version of the default operator set.
        dtype: of all float tensors.
        off: features that may not be used.
        random: numbers of the weights.
    """

    draw: Draw
    opset: int
    dtype: Any
    off: frozenset[str]
    random: np.random.Generator
    tensor_names: str = "plain"
    node_names: str = "operator and output"
    constants_as: str = "initializer"
    folded: tuple[str, ...] = ()
    fixed_batch: int | None = None
    nodes: list[NodeProto] = field(default_factory=list)
    initializers: list[TensorProto] = field(default_factory=list)
    sparse: list[SparseTensorProto] = field(default_factory=list)
    inputs: list[ValueInfoProto] = field(default_factory=list)
    functions: list[FunctionProto] = field(default_factory=list)
    imports: dict[str, int] = field(default_factory=dict)
    features: set[str] = field(default_factory=set)
    values: list[Value] = field(default_factory=list)
    feeds: dict[str, Array] = field(default_factory=dict)
    shared: dict[tuple[int, ...], str] = field(default_factory=dict)
    outer: list[NodeProto] | None = None
    count: int = 0
    before: str = ""

    # What is chosen.
    def pick(self, options: Sequence[T]) -> T:
        """One of `options`; the first is the simplest."""
        return options[self.draw(0, len(options) - 1)]

    def between(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return self.draw(low, high)

    def chance(self, percent: int) -> bool:
        """True in about so many of 100 cases."""
        return bool(self.between(0, 99) >= 100 - percent)

    def uses(self, feature: str, percent: int = 100) -> bool:
        """Whether to use `feature`, which is then counted: never where it is switched off."""
        if feature in self.off or not (percent >= 100 or self.chance(percent)):
            return False
        self.features.add(feature)
        return True

    # Names.
    def fresh(self, base: str) -> str:
        """A tensor name that is not in use, in the style of this net."""
        self.count += 1
        return TENSOR_NAMES[self.tensor_names](base, self.count)

    # Nodes and constants.
    def op(
        self, operator: str, inputs: Iterable[str | Value], outputs: int = 1, domain: str = "", **attributes: Any
    ) -> str:
        """Add a node; attributes that are None are left out. Returns its first output, see `ops` for all."""
        return self.ops(operator, inputs, outputs, domain, **attributes)[0]

    def ops(
        self, operator: str, inputs: Iterable[str | Value], outputs: int, domain: str = "", **attributes: Any
    ) -> list[str]:
        """Add a node; returns the names of its outputs."""
        names = [source.name if isinstance(source, Value) else source for source in inputs]
        results = [self.fresh(operator) for _ in range(outputs)]
        given = {name: value for name, value in attributes.items() if value is not None}
        if domain:
            self.imports.setdefault(domain, 1)
        node_name = NODE_NAMES[self.node_names](operator, results[0], self.before)
        self.before = results[0]
        self.nodes.append(helper.make_node(operator, names, results, name=node_name, domain=domain, **given))
        self.features.add(f"{domain}::{operator}" if domain else operator)
        return results

    def const(self, value: Any, dtype: Any = None, base: str = "constant") -> str:
        """A constant of this net's float type, or of `dtype`: an initializer, or the output of a Constant node."""
        array = np.asarray(value, self.dtype if dtype is None else dtype)
        name = self.fresh(base)
        as_node = self.constants_as == "node" or (self.constants_as == "mixed" and self.chance(50))
        if as_node and self.uses("Constant node"):
            tensor = numpy_helper.from_array(array, "")
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        else:
            self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def ints(self, *values: int) -> str:
        """A constant vector of whole numbers."""
        return self.const(values, np.int64, "index")

    def numbers(self, shape: Sequence[int], scale: float = 1.0) -> Array:
        """Normal numbers."""
        return (self.random.standard_normal(tuple(shape)) * scale).astype(np.float32)

    def weight(self, shape: Sequence[int], fan_in: int) -> str:
        """A weight: He's initialization, as a constant or behind operators that make it from constants."""
        if tuple(shape) in self.shared and self.uses("shared weight", 50):
            return self.shared[tuple(shape)]
        array = self.numbers(shape, float(np.sqrt(2.0 / fan_in)))
        way = self.pick(self.folded) if self.folded and self.chance(60) else "plain"
        name = FOLDED[way](self, array) if way != "plain" and self.uses(f"weight behind {way}") else None
        name = self.const(array, base="weight") if name is None else name
        if self.outer is None:
            self.shared[tuple(shape)] = name
        return name

    def bias(self, size: int) -> str:
        """A small constant vector."""
        return self.const(self.numbers((size,), 0.2), base="bias")

    def scalar(self, value: float) -> str:
        """A constant without axes, or with one of size 1."""
        return self.const([value] if self.chance(30) else value)

    def value(self, source: Value, name: str, shape: Sequence[int] | None = None, **changes: Any) -> Value:
        """What an operator made of `source`."""
        made = replace(source, name=name, shape=tuple(source.shape if shape is None else shape), **changes)
        if self.outer is None:
            self.values.append(made)
        return made

    def add_input(self, name: str, shape: Sequence[int | str | None], dtype: Any, samples: Array) -> str:
        """Declare an input, and give it samples [count, ...]."""
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        batch: int | str | None = shape[0] if self.fixed_batch is None else self.fixed_batch
        self.inputs.append(helper.make_tensor_value_info(name, kind, [batch, *shape[1:]]))
        self.feeds[name] = samples.astype(dtype)
        return name

    @contextmanager
    def branch(self, name: str) -> Iterator[list[NodeProto]]:
        """Nodes and constants that are added meanwhile belong to a subgraph."""
        kept = self.nodes, self.outer, self.initializers
        self.nodes, self.outer, self.initializers = [], self.nodes, []
        self.features.add(name)
        try:
            yield self.nodes
        finally:
            self.nodes, self.outer, self.initializers = kept


def _fold(operator: str, before: Callable[[Array], Array], **attributes: Any) -> Callable[[Net, Array], str]:
    return lambda net, array: net.op(operator, [net.const(before(array), base="weight")], **attributes)


def _cast(net: Net, array: Array, dtype: Any) -> str:
    stored = net.const(array.astype(dtype), dtype, "weight")
    return net.op("Cast", [stored], to=helper.np_dtype_to_tensor_dtype(np.dtype(net.dtype)))


def _bfloat16(net: Net, array: Array) -> str | None:
    if net.opset < 13:
        return None
    name = net.fresh("weight")
    net.initializers.append(helper.make_tensor(name, TensorProto.BFLOAT16, array.shape, array.ravel().tolist()))
    return net.op("Cast", [name], to=helper.np_dtype_to_tensor_dtype(np.dtype(net.dtype)))


def _dequantized(net: Net, array: Array) -> str | None:
    """int8, uint8 or int4 codes with one scale, or one for each channel."""
    if net.opset < 13 or net.dtype != np.float32 or array.ndim < 2:
        return None
    per_channel = net.chance(60)
    axis = net.between(0, array.ndim - 1)
    others = tuple(i for i in range(array.ndim) if i != axis)
    small = net.opset >= 21 and net.uses("int4 weight", 30)
    limit = 7 if small else 127
    reach = np.abs(array).max(axis=others, keepdims=True) if per_channel else np.abs(array).max()
    scale = np.maximum(reach / limit, 1e-6).astype(np.float32)
    codes = np.rint(array / scale).clip(-limit, limit)
    name, unsigned = net.fresh("weight"), net.chance(30) and not small
    if small:
        net.initializers.append(helper.make_tensor(name, TensorProto.INT4, array.shape, codes.astype(int).ravel()))
        zero = None
    else:
        stored = (codes + 128).astype(np.uint8) if unsigned else codes.astype(np.int8)
        net.initializers.append(numpy_helper.from_array(stored, name))
        zero = np.full(scale.size if per_channel else (), 128, np.uint8) if unsigned else None
    scales = net.const(scale.ravel() if per_channel else scale.reshape(()))
    parts = [name, scales] + ([] if zero is None else [net.const(zero, np.uint8)])
    return net.op("DequantizeLinear", parts, axis=axis if per_channel else None)


def _sparse(net: Net, array: Array) -> str | None:
    if net.opset < 11 or net.outer is not None:
        return None
    flat = array.ravel() * (net.random.random(array.size) < 0.5)
    places = np.flatnonzero(flat)
    name = net.fresh("weight")
    values = numpy_helper.from_array(flat[places].astype(net.dtype), name)
    indices = numpy_helper.from_array(places.astype(np.int64), f"{name} indices")
    net.sparse.append(SparseTensorProto(values=values, indices=indices, dims=array.shape))
    return name


def _scaled(net: Net, array: Array) -> str:
    """Two constants multiplied, as weight normalization leaves them."""
    norm = np.sqrt(np.square(array).sum(axis=tuple(range(1, array.ndim)), keepdims=True)) + 1e-6
    return net.op("Mul", [net.const(array / norm, base="weight"), net.const(norm, base="weight_g")])


def _squeezed(net: Net, array: Array) -> str:
    held = net.const(array[None], base="weight")
    return net.op("Squeeze", [held, net.ints(0)]) if net.opset >= 13 else net.op("Squeeze", [held], axes=[0])


# How a weight is written: each returns a name, or None where it is not possible here.
FOLDED: Mapping[str, Callable[[Net, Array], str | None]] = {
    "plain": lambda net, array: net.const(array, base="weight"),
    "Identity": _fold("Identity", lambda a: a),
    "Transpose": _fold("Transpose", lambda a: np.ascontiguousarray(a.T)),
    "Reshape": lambda net, a: net.op("Reshape", [net.const(a.ravel(), base="weight"), net.ints(*a.shape)]),
    "Squeeze": _squeezed,
    "Mul": _scaled,
    "Cast from float16": lambda net, a: _cast(net, a, np.float16),
    "Cast from double": lambda net, a: _cast(net, a, np.float64),
    "Cast from bfloat16": _bfloat16,
    "DequantizeLinear": _dequantized,
    "sparse": _sparse,
}
