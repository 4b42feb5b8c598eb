"""Recurrent nodes: LSTM, GRU and RNN, step by step (formulas in `gradient.unroll`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from onnx_cbq.records import GATES
from onnx_cbq.torch_graph.node import Compile, OnnxNode, Run

Activation = Callable[[Tensor], Tensor]
# Of an operator: the states that it has, and its activation functions if none are named.
_DEFAULTS = {"LSTM": (2, ("Sigmoid", "Tanh", "Tanh")), "GRU": (1, ("Sigmoid", "Tanh")), "RNN": (1, ("Tanh",))}
_ACTIVATIONS: dict[str, Activation] = {
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Relu": torch.relu,
    "Softplus": functional.softplus,
}


@dataclass(frozen=True)
class _Cell:
    """One direction of a node: weights without their axis of directions, and what its attributes say.

    Attributes:
        activations: as the operator names them, what goes into all but the last of an LSTM clipped.
        peepholes: [3 H] of an LSTM, or None.
    """

    r: Tensor
    bias: Tensor | None
    peepholes: Tensor | None
    activations: tuple[Activation, ...]
    late: bool
    coupled: bool

    def rnn(self, drive: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The hidden state behind a step, from x W' + b [N, H] and the one before."""
        return (self.activations[0](drive + functional.linear(states[0], self.r)),)

    def gru(self, drive: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Likewise."""
        h, size = states[0], self.r.shape[1]
        both = drive[:, : 2 * size] + functional.linear(h, self.r[: 2 * size])
        z, r = self.activations[0](both).chunk(2, dim=1)
        if self.late:
            inner = r * functional.linear(h, self.r[2 * size :], None if self.bias is None else self.bias[-size:])
        else:
            inner = functional.linear(r * h, self.r[2 * size :])
        n = self.activations[1](drive[:, 2 * size :] + inner)
        return ((1 - z) * n + z * h,)

    def lstm(self, drive: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The hidden state and the cell."""
        h, c = states
        f, g, k = self.activations
        i, o, forget, n = (drive + functional.linear(h, self.r)).chunk(4, dim=1)
        p = None if self.peepholes is None else self.peepholes.chunk(3)
        i = f(i if p is None else i + p[0] * c)
        forget = 1 - i if self.coupled else f(forget if p is None else forget + p[2] * c)
        c = forget * c + i * g(n)
        o = f(o if p is None else o + p[1] * c)
        return o * k(c), c


def recurrent(node: OnnxNode) -> Run:
    """Hidden states of all steps [T, D, N, H], and the last states [D, N, H]."""
    attrs, (count, defaults) = node.attrs, _DEFAULTS[node.operator]
    named = [name.decode() for name in attrs.get("activations", ())]
    if attrs.get("layout", 0):
        raise node.unsupported("layout=1")
    if "activation_alpha" in attrs or "activation_beta" in attrs or not set(named) <= _ACTIVATIONS.keys():
        raise node.unsupported(f"activation functions {', '.join(named)}")
    limit, direction = float(attrs.get("clip", 0.0)), attrs.get("direction", "forward")

    def activations(d: int) -> tuple[Activation, ...]:
        names = named[d * len(defaults) : (d + 1) * len(defaults)] or defaults
        found = [_ACTIVATIONS[name] for name in names]
        clipped = [partial(_clipped, function, limit) for function in found] if limit else found
        return (*clipped[:2], *found[2:])

    def run(x: Tensor, w: Tensor, r: Tensor, *rest: Tensor | None) -> tuple[Tensor, ...]:
        # B, sequence_lens, initial_h, and of an LSTM initial_c and P.
        bias, lengths, first_h, first_c, p = [*rest, None, None, None, None, None][:5]
        states, last = [], []
        for d in range(len(w)):
            late = node.operator == "GRU" and bool(attrs.get("linear_before_reset", 0))
            cell = _Cell(
                r[d],
                None if bias is None else bias[d],
                None if p is None else p[d],
                activations(d),
                late,
                bool(attrs.get("input_forget", 0)),
            )
            start = tuple(
                x.new_zeros(x.shape[1], r.shape[2]) if first is None else first[d]
                for first in (first_h, first_c)[:count]
            )
            step = {"LSTM": cell.lstm, "GRU": cell.gru, "RNN": cell.rnn}[node.operator]
            drives = functional.linear(x, w[d], _input_bias(cell, GATES[node.operator] * r.shape[2]))
            found, end = _walk(drives, start, step, lengths, backwards=direction == "reverse" or d == 1)
            states.append(found)
            last.append(end)
        return (torch.stack(states, dim=1), *(torch.stack(ends) for ends in zip(*last, strict=True)))[
            : len(node.outputs)
        ]

    return run


def _clipped(function: Activation, limit: float, x: Tensor) -> Tensor:
    return function(x.clamp(-limit, limit))


def _input_bias(cell: _Cell, rows: int) -> Tensor | None:
    """What is added to x W', [G H]: both biases, but for what a GRU adds before it resets."""
    if cell.bias is None:
        return None
    own, other = cell.bias[:rows], cell.bias[rows:]
    if cell.late:
        kept = rows - cell.r.shape[1]
        return torch.cat([own[:kept] + other[:kept], own[kept:]])
    return own + other


def _walk(
    drives: Tensor,
    states: tuple[Tensor, ...],
    step: Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]],
    lengths: Tensor | None,
    *,
    backwards: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Hidden states [T, N, H], 0 behind the end of a sample, and the last states [N, H]."""
    found: list[Tensor] = []
    order = range(len(drives) - 1, -1, -1) if backwards else range(len(drives))
    for t in order:
        new = step(drives[t], states)
        if lengths is None:
            states, made = new, new[0]
        else:
            goes_on = (lengths > t)[:, None]
            states = tuple(torch.where(goes_on, one, old) for one, old in zip(new, states, strict=True))
            made = torch.where(goes_on, new[0], torch.zeros_like(new[0]))
        found.append(made)
    return torch.stack(found[::-1] if backwards else found), states


OPERATORS: dict[str, Compile] = dict.fromkeys(GATES, recurrent)
