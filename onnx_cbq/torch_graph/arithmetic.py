"""Operators that combine tensors element by element with broadcasting."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor

from onnx_cbq.torch_graph.node import Compile, Run, plain


def div(a: Tensor, b: Tensor) -> Tensor:
    """y = a / b; integers are divided towards 0."""
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def total(*inputs: Tensor) -> Tensor:
    """y = sum of the inputs."""
    return reduce(torch.add, inputs)


def mean(*inputs: Tensor) -> Tensor:
    """y = mean of the inputs."""
    return total(*inputs) / len(inputs)


def _extremum(of_two: Callable[[Tensor, Tensor], Tensor], of_stack: Callable[[Tensor, int], Tensor]) -> Run:
    """Min or Max; where inputs are equal the gradient goes to them in equal shares."""

    def run(*inputs: Tensor) -> Tensor:
        if len(inputs) > 2:
            return of_stack(torch.stack(torch.broadcast_tensors(*inputs)), 0)
        return of_two(*inputs) if len(inputs) == 2 else inputs[0]

    return run


OPERATORS: dict[str, Compile] = {
    "Add": plain(torch.add),
    "Sum": plain(total),
    "Sub": plain(torch.sub),
    "Mul": plain(torch.mul),
    "Div": plain(div),
    "Min": plain(_extremum(torch.minimum, torch.amin)),
    "Max": plain(_extremum(torch.maximum, torch.amax)),
    "Mean": plain(mean),
    "Where": plain(torch.where),
}
