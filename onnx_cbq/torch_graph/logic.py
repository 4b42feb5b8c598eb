"""Comparisons, logic and positions: nothing is differentiated here."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from onnx_cbq.torch_graph.node import Compile, OnnxNode, Run, plain


def _position(extremum: Callable[..., Tensor]) -> Compile:
    """ArgMax or ArgMin: the first such position along an axis, or the last."""

    def compiled(node: OnnxNode) -> Run:
        axis, keep = int(node.attrs.get("axis", 0)), bool(node.attrs.get("keepdims", 1))
        if not node.attrs.get("select_last_index", 0):
            return lambda x: extremum(x, dim=axis, keepdim=keep)
        return lambda x: x.shape[axis] - 1 - extremum(x.flip(axis), dim=axis, keepdim=keep)

    return compiled


def is_inf(node: OnnxNode) -> Run:
    """Whether x is infinite, of the signs that are asked for."""
    negative, positive = bool(node.attrs.get("detect_negative", 1)), bool(node.attrs.get("detect_positive", 1))
    return lambda x: (torch.isneginf(x) & negative) | (torch.isposinf(x) & positive)


def non_zero(x: Tensor) -> Tensor:
    """The positions of what is not 0, [rank, count]."""
    return torch.nonzero(x).T


def one_hot(node: OnnxNode) -> Run:
    """`values` = (off, on) at and beside the indices, on a new axis of `depth` positions."""
    axis = int(node.attrs.get("axis", -1))
    depth = node.integers(1)

    def run(indices: Tensor, size: Tensor | None, values: Tensor) -> Tensor:
        positions = torch.arange(depth(size)[0], device=indices.device)
        # A negative index counts from the end; one outside the depth is on nowhere.
        chosen = torch.where(indices < 0, indices + len(positions), indices)
        rank = indices.dim() + 1
        shape = [-1 if i == axis % rank else 1 for i in range(rank)]
        return torch.where(chosen.unsqueeze(axis) == positions.reshape(shape), values[1], values[0])

    return run


OPERATORS: dict[str, Compile] = {
    "ArgMax": _position(torch.argmax),
    "ArgMin": _position(torch.argmin),
    "Equal": plain(torch.eq),
    "Greater": plain(torch.gt),
    "GreaterOrEqual": plain(torch.ge),
    "Less": plain(torch.lt),
    "LessOrEqual": plain(torch.le),
    "And": plain(torch.logical_and),
    "Or": plain(torch.logical_or),
    "Xor": plain(torch.logical_xor),
    "Not": plain(torch.logical_not),
    "IsInf": is_inf,
    "IsNaN": plain(torch.isnan),
    "NonZero": plain(non_zero),
    "OneHot": one_hot,
}
