"""Reductions over axes, which are an attribute or, in later operator sets, an input."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from onnx_cbq.torch_graph.node import Compile, OnnxNode, Run

Reduce = Callable[[Tensor, list[int], bool], Tensor]


def _reduction(reduce: Reduce, of_single: Callable[[Tensor], Tensor] | None = None) -> Compile:
    """No axes mean all of them, or with `noop_with_empty_axes` that each element is reduced by itself."""

    def compiled(node: OnnxNode) -> Run:
        given = node.attrs.get("axes", ())
        axes, keep = node.integers(1, given), bool(node.attrs.get("keepdims", 1))
        nothing = bool(node.attrs.get("noop_with_empty_axes", 0))

        def run(x: Tensor, over: Tensor | None = None) -> Tensor:
            chosen = axes(over)
            if nothing and not chosen:
                return x if of_single is None else of_single(x)
            return reduce(x, chosen or list(range(x.dim())), keep)

        return run

    return compiled


def product(x: Tensor, axes: list[int], keep: bool) -> Tensor:  # noqa: FBT001, every reduction has this signature
    """The product over several axes; torch has it for one."""
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


OPERATORS: dict[str, Compile] = {
    "ReduceSum": _reduction(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "ReduceMean": _reduction(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "ReduceMax": _reduction(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "ReduceMin": _reduction(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "ReduceProd": _reduction(product),
    "ReduceSumSquare": _reduction(lambda x, axes, keep: x.square().sum(axes, keepdim=keep), torch.square),
    "ReduceL1": _reduction(lambda x, axes, keep: x.abs().sum(axes, keepdim=keep), torch.abs),
    "ReduceL2": _reduction(lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keepdim=keep), torch.abs),
    "ReduceLogSum": _reduction(lambda x, axes, keep: x.sum(axes, keepdim=keep).log(), torch.log),
    "ReduceLogSumExp": _reduction(lambda x, axes, keep: x.logsumexp(axes, keepdim=keep)),
}
