"""The matrix products: MatMul, Gemm, Einsum."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from onnx_cbq.torch_graph.node import Compile, OnnxNode, Run, plain


def gemm(node: OnnxNode) -> Run:
    """y = alpha A' B' + beta C, where ' transposes if transA or transB say so."""
    alpha, beta = float(node.attrs.get("alpha", 1.0)), float(node.attrs.get("beta", 1.0))
    flip_left, flip_right = bool(node.attrs.get("transA", 0)), bool(node.attrs.get("transB", 0))

    def run(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        a, b = a.T if flip_left else a, b if flip_right else b.T
        if alpha == beta == 1 and (c is None or c.dim() == 1):
            return functional.linear(a, b, c)
        product = alpha * functional.linear(a, b)
        return product if c is None else product + beta * c

    return run


def einsum(node: OnnxNode) -> Run:
    """Sums of products by an equation of indices."""
    equation = str(node.attrs["equation"])
    return lambda *operands: torch.einsum(equation, *operands)


OPERATORS: dict[str, Compile] = {"MatMul": plain(torch.matmul), "Gemm": gemm, "Einsum": einsum}
