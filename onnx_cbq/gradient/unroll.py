"""Write LSTM, GRU and RNN out step by step, in operators that have gradient rules.

With x_t the input of a step, h and c the states before it, and all biases in b (onnx/docs/Operators.md):

    a_t = x_t W' + b                          for all steps at once: the tensor "inputs"
    s_t = a_t + h R'                          the sums of all gates: the tensor "sums"
    RNN   h_t = f(s)
    GRU   z, r = f(s_z), f(s_r)    n = g(a_n + (r h) R_n'), or with linear_before_reset g(a_n + r (h R_n' + b_Rn))
          h_t = (1 - z) n + z h
    LSTM  i, f, o, n = f(s_i), f(s_f), f(s_o), g(s_n)      c_t = f c + i n      h_t = o h(c_t)

What changes a_t changes s_t just as much, so the gradient at "inputs" is that of the sums, for W and for R; "sums"
holds their values. (In a GRU the R of n acts through r as well; its rows are scored as if r were 1.)

The number of steps is that of the samples; nodes of more than `MOST_STEPS`, with computed weights or with activation
functions that have no rule stay as they are, and have no gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper

from onnx_cbq.gradient.site import Builder
from onnx_cbq.graph.passes.constants import fold_constants
from onnx_cbq.graph.shapes import Example, Shapes
from onnx_cbq.model import Array, Model, attributes
from onnx_cbq.records import GATES

# A step is about twelve nodes, and three times as many backwards.
MOST_STEPS = 256

_DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
# With the alpha and beta that they have if none is given, None for those that take none.
_ACTIVATIONS: Mapping[str, tuple[float | None, float | None]] = {
    "Sigmoid": (None, None),
    "Tanh": (None, None),
    "Relu": (None, None),
    "Softplus": (None, None),
    "LeakyRelu": (0.01, None),
    "Elu": (1.0, None),
    "HardSigmoid": (0.2, 0.5),
}


def inputs_of(output: str) -> str:
    """The tensor x W' + b of a recurrent node, by its first output."""
    return f"{output} of inputs"


def sums_of(output: str) -> str:
    """The tensor of the sums of all gates of a recurrent node, by its first output."""
    return f"{output} of sums"


def unroll(model: Model, example: Example) -> Model:
    """Every recurrent node step by step. The last pass: no output depends on the sums, and others would drop them."""
    if not any(node.op_type in GATES for node in model.nodes):
        return model
    model = fold_constants(model, example)  # weights may lie as rows
    shapes = example.shapes(model)
    build = Builder(model.fresh_names(), np.dtype(np.float32))
    for node in model.nodes:
        net = _net(model, shapes, node, build) if node.op_type in GATES else None
        if net is None:
            build.nodes.append(node)
        else:
            net.write()
    skeleton = ModelProto()
    skeleton.CopyFrom(model.skeleton)
    skeleton.graph.ClearField("node")
    skeleton.graph.node.extend(build.nodes)
    read = {name for node in build.nodes for name in node.input}
    kept = [tensor for tensor in skeleton.graph.initializer if tensor.name in read]
    skeleton.graph.ClearField("initializer")
    skeleton.graph.initializer.extend(kept)
    weights = {name: value for name, value in model.weights.items() if name in read}
    return Model(skeleton, weights).with_graph(constants=build.constants)


def _net(model: Model, shapes: Shapes, node: NodeProto, build: Builder) -> _Net | None:
    attrs = attributes(node)
    names = [*node.input, *[""] * (8 - len(node.input))]
    w, r = model.constant(names[1]), model.constant(names[2])
    biases = model.constant(names[3]) if names[3] else None
    peepholes = model.constant(names[7]) if names[7] else None
    given = [name.decode() for name in attrs.get("activations", ())]
    activations = given or list(_DEFAULTS[node.op_type]) * (1 if w is None else len(w))
    known = all(name in _ACTIVATIONS for name in activations)
    constant = all(model.is_constant(name) for name in (names[3], names[7]) if name)
    steps = shapes[names[0]][0]
    if w is None or r is None or not known or not constant or not 1 <= steps <= MOST_STEPS or attrs.get("layout", 0):
        return None
    if biases is None:
        biases = np.zeros((len(w), 2 * w.shape[1]), w.dtype)
    return _Net(node, attrs, build, names, (w, r, biases, peepholes), activations, steps)


@dataclass(frozen=True)
class _Net:
    """One node, to be written out.

    Attributes:
        names: of its inputs, "" for what is not given.
        weights: W [D, G H, I], R [D, G H, H], B [D, 2 G H], and the peepholes [D, 3 H] of an LSTM.
        activations: of all directions.
    """

    node: NodeProto
    attrs: dict[str, Any]
    build: Builder
    names: Sequence[str]
    weights: tuple[Array, Array, Array, Array | None]
    activations: Sequence[str]
    steps: int
    _matrices: dict[tuple[int, int, int], str] = field(default_factory=dict)

    @property
    def hidden(self) -> int:
        return int(self.weights[1].shape[2])

    def write(self) -> None:
        b, (w, _, biases, _) = self.build, self.weights
        directions, output = len(w), self.node.output[0] or next(filter(None, self.node.output))
        matrix = w.reshape(-1, w.shape[2]).T
        product = b.op("MatMul", self.names[0], b.constant(np.ascontiguousarray(matrix)))
        self._name("Add", [product, b.constant(self._input_bias(biases).reshape(-1))], inputs_of(output))
        each = self._split(inputs_of(output), directions, 2)
        found = [self._direction(d, inputs) for d, inputs in enumerate(each)]
        self._name("Concat", [sums for sums, _, _ in found], sums_of(output), axis=2)
        # [T, B, H] of each direction -> [T, D, B, H]; the last states [1, B, H] -> [D, B, H]
        wide = [b.op("Unsqueeze", states, b.ints([1])) for _, states, _ in found]
        results = [(wide, 1), *(([last[i] for _, _, last in found], 0) for i in range(2))]
        for name, (parts, axis) in zip(self.node.output, results, strict=False):
            if name:
                self._name("Concat", parts, name, axis=axis)

    def _input_bias(self, biases: Array) -> Array:
        """What is added to x W': both biases, but for what a GRU adds before it resets, [D, G H]."""
        half = biases.shape[1] // 2
        own, recurrent = biases[:, :half], biases[:, half:].copy()
        if self._resets_late:
            recurrent[:, 2 * self.hidden :] = 0
        return np.asarray(own + recurrent)

    @property
    def _resets_late(self) -> bool:
        return self.node.op_type == "GRU" and bool(self.attrs.get("linear_before_reset", 0))

    def _direction(self, d: int, inputs: str) -> tuple[str, str, tuple[str, str]]:
        """The sums [T, B, G H], the hidden states [T, B, H], and the last states [1, B, H] of one direction."""
        b = self.build
        backwards = self.attrs.get("direction", "forward") == "reverse" or d == 1
        order = list(range(self.steps))[:: -1 if backwards else 1]
        drives = self._split(inputs, self.steps, 0)
        h, c = (self._initial(index, d) for index in (5, 6))
        sums, states = [""] * self.steps, [""] * self.steps
        for t in order:
            sums[t], new_h, new_c = self._step(d, drives[t], h, c)
            mask = self._mask(t)
            states[t] = new_h if mask is None else b.op("Mul", mask, new_h)
            h, c = (self._kept(mask, new, old) for new, old in ((new_h, h), (new_c, c)))
        last = (str(h), str(c))
        return b.op("Concat", *sums, axis=0), b.op("Concat", *states, axis=0), last

    def _initial(self, index: int, d: int) -> str | None:
        if index == 6 and self.node.op_type != "LSTM":
            return None
        name = self.names[index]
        return self.build.op("Gather", name, self.build.ints([d]), axis=0) if name else None

    def _mask(self, t: int) -> str | None:
        """1 for the samples that have a step t, [1, B, 1]; None if all have."""
        b, lengths = self.build, self.names[4]
        if not lengths:
            return None
        longer = b.op("Greater", lengths, b.constant(np.array([t], np.int32)))
        return b.op("Unsqueeze", b.indicator(longer), b.ints([0, 2]))

    def _kept(self, mask: str | None, new: str | None, old: str | None) -> str | None:
        """The state behind a step: the old one for samples that have ended."""
        if mask is None or new is None:
            return new
        b = self.build
        fresh = b.op("Mul", mask, new)
        return fresh if old is None else b.op("Add", fresh, b.op("Mul", self._less_than_one(mask), old))

    def _step(self, d: int, drive: str, h: str | None, c: str | None) -> tuple[str, str, str | None]:
        """The sums of one step, and the states behind it."""
        if self.node.op_type == "GRU":
            sums, new = self._gru(d, drive, h)
            return sums, new, None
        b = self.build
        sums = drive if h is None else b.op("Add", drive, b.op("MatMul", h, self._recurrent(d)))
        if self.node.op_type == "RNN":
            return sums, self._activated(d, 0, sums), None
        return (sums, *self._lstm(d, sums, c))

    def _recurrent(self, d: int, start: int = 0, stop: int = 4) -> str:
        """R' of the gates from `start` to before `stop`, [H, gates x H]; made once for all steps."""
        if (d, start, stop) not in self._matrices:
            rows = self.weights[1][d][start * self.hidden : stop * self.hidden]
            self._matrices[d, start, stop] = self.build.constant(np.ascontiguousarray(rows.T))
        return self._matrices[d, start, stop]

    def _lstm(self, d: int, sums: str, c: str | None) -> tuple[str, str]:
        b = self.build
        i, o, f, n = self._split(sums, 4, 2)
        i = self._activated(d, 0, self._peeped(d, 0, i, c))
        forget = self._less_than_one(i) if self.attrs.get("input_forget", 0) else None
        n = self._activated(d, 1, n)
        new = b.op("Mul", i, n)
        if c is not None:
            forget = forget or self._activated(d, 0, self._peeped(d, 2, f, c))
            new = b.op("Add", new, b.op("Mul", forget, c))
        o = self._activated(d, 0, self._peeped(d, 1, o, new))
        return b.op("Mul", o, self._activated(d, 2, new, clipped=False)), new

    def _peeped(self, d: int, part: int, sums: str, c: str | None) -> str:
        """The sums of a gate that sees the cell as well."""
        peepholes = self.weights[3]
        if peepholes is None or c is None:
            return sums
        b, size = self.build, self.hidden
        return b.op("Add", sums, b.op("Mul", c, b.constant(peepholes[d, part * size : (part + 1) * size])))

    def _gru(self, d: int, drive: str, h: str | None) -> tuple[str, str]:
        b, size = self.build, self.hidden
        both, candidate = b.split("Split", (drive, b.ints([2 * size, size])), 2, axis=2)
        if h is not None:
            both = b.op("Add", both, b.op("MatMul", h, self._recurrent(d, 0, 2)))
        z, r = (self._activated(d, 0, part) for part in self._split(both, 2, 2))
        bias = b.constant(self.weights[2][d, -size:])
        if self._resets_late:
            inner = bias if h is None else b.op("Add", b.op("MatMul", h, self._recurrent(d, 2, 3)), bias)
            candidate = b.op("Add", candidate, b.op("Mul", r, inner))
        elif h is not None:
            candidate = b.op("Add", candidate, b.op("MatMul", b.op("Mul", r, h), self._recurrent(d, 2, 3)))
        new = b.op("Mul", self._less_than_one(z), self._activated(d, 1, candidate))
        new = new if h is None else b.op("Add", new, b.op("Mul", z, h))
        return b.op("Concat", both, candidate, axis=2), new

    def _activated(self, d: int, index: int, name: str, *, clipped: bool = True) -> str:
        """An activation function of a direction; what goes into it may be clipped."""
        b, clip = self.build, self.attrs.get("clip", 0.0)
        if clip and clipped:
            name = b.op("Clip", name, b.number(-clip), b.number(clip))
        place = d * len(self.activations) // len(self.weights[0]) + index
        operator = self.activations[place]
        alpha, beta = (self._parameter(place, index) for index in range(2))
        if operator == "HardSigmoid":
            slanted = b.op("Add", b.op("Mul", name, b.number(float(alpha or 0))), b.number(float(beta or 0)))
            return b.op("Clip", slanted, b.number(0.0), b.number(1.0))
        return b.op(operator, name) if alpha is None else b.op(operator, name, alpha=alpha)

    def _parameter(self, place: int, index: int) -> float | None:
        """The alpha (0) or beta (1) of an activation function: given ones stand in the order of those that take one."""
        default = _ACTIVATIONS[self.activations[place]][index]
        given = self.attrs.get(("activation_alpha", "activation_beta")[index], ())
        nth = sum(_ACTIVATIONS[other][index] is not None for other in self.activations[:place])
        return default if default is None or nth >= len(given) else float(given[nth])

    def _less_than_one(self, name: str) -> str:
        return self.build.op("Sub", self.build.number(1.0), name)

    def _split(self, name: str, parts: int, axis: int) -> list[str]:
        return [name] if parts == 1 else self.build.split("Split", (name,), parts, axis=axis, num_outputs=parts)

    def _name(self, operator: str, inputs: Sequence[str], output: str, **attrs: Any) -> None:
        """A node whose output has a name of its own."""
        self.build.nodes.append(helper.make_node(operator, list(inputs), [output], output, **attrs))
