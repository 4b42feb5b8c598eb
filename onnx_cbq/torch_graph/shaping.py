"""Operators that give the same numbers another shape, and those that compute with shapes."""

from __future__ import annotations

import math

import torch
from onnx import numpy_helper
from torch import Tensor

from onnx_cbq.torch_graph.node import Compile, OnnxNode, Run, plain


def reshape(node: OnnxNode) -> Run:
    """-1 is what is left; 0 keeps the input's size, unless `allowzero` makes it a size of its own."""
    shape, keeps = node.integers(1), not node.attrs.get("allowzero", 0)

    def run(x: Tensor, target: Tensor | None = None) -> Tensor:
        sizes = shape(target)
        return x.reshape([x.shape[i] if keeps and size == 0 else size for i, size in enumerate(sizes)])

    return run


def flatten(node: OnnxNode) -> Run:
    """Two axes: what is in front of `axis`, and the rest."""
    axis = int(node.attrs.get("axis", 1))
    return lambda x: x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def squeeze(node: OnnxNode) -> Run:
    """Takes out axes of size 1: the given ones, or all."""
    axes, given = node.integers(1), node.has_input(1)

    def run(x: Tensor, where: Tensor | None = None) -> Tensor:
        return x.squeeze(axes(where)) if given else x.squeeze()

    return run


def unsqueeze(node: OnnxNode) -> Run:
    """Puts in axes of size 1, counted in the output."""
    axes = node.integers(1)

    def run(x: Tensor, where: Tensor | None = None) -> Tensor:
        chosen = axes(where)
        rank = x.dim() + len(chosen)
        for axis in sorted(axis % rank for axis in chosen):
            x = x.unsqueeze(axis)
        return x

    return run


def expand(node: OnnxNode) -> Run:
    """Broadcast to a shape; a size of 1 in it keeps the input's."""
    shape = node.integers(1)

    def run(x: Tensor, target: Tensor | None = None) -> Tensor:
        return x.expand(torch.broadcast_shapes(x.shape, shape(target)))

    return run


def shape_of(node: OnnxNode) -> Run:
    """The shape, or its part from `start` to `end`."""
    part = slice(int(node.attrs.get("start", 0)), node.attrs.get("end"))
    return lambda x: torch.tensor(x.shape[part], dtype=torch.int64, device=x.device)


def constant_of_shape(node: OnnxNode) -> Run:
    """A shape filled with `value`, float 0 by default."""
    tensor = node.attrs.get("value")
    value = torch.zeros(1) if tensor is None else torch.tensor(numpy_helper.to_array(tensor))
    shape = node.integers(0)
    if not node.resolved:
        return lambda target: value.to(target.device).reshape(()).expand(shape(target))
    return lambda _: value.reshape(()).expand(shape(None))


def arange(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """start, start + delta, ... in front of limit."""
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype, device=start.device)


OPERATORS: dict[str, Compile] = {
    "Reshape": reshape,
    "Flatten": flatten,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Expand": expand,
    "Shape": shape_of,
    "Size": plain(lambda x: torch.tensor(x.numel(), device=x.device)),
    "ConstantOfShape": constant_of_shape,
    "Range": plain(arange),
}
