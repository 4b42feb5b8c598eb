"""Functions of tensors as code that is made for them: what is done number by number takes one pass, not many.

With bfloat16 products are a quarter of an update, and what stands around them is limited by memory. torch.compile
writes C++ for it (on a GPU, Triton), so a compiler has to be there; where there is none, or one function is beyond it,
that is said and torch runs operator by operator.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

_LOG = logging.getLogger("onnx_cbq")


class Fused:
    """A function that is compiled when it is called first, for the shapes that it is called with.

    Args:
        function: of tensors, and of containers of them, to a dictionary of tensors. What it knows beside its arguments
            has to stay as it is.

    Cost: some tenths of a second per operator, once for every set of shapes, with gradients and without.
    """

    def __init__(self, function: Callable[..., dict[str, Tensor]]) -> None:
        self._plain = function
        self._compiled: Callable[..., dict[str, Tensor]] | None = torch.compile(_own(function), dynamic=False)
        self._tried = False

    def __call__(self, *arguments: Any) -> dict[str, Tensor]:
        """What the function gives; the first call that gradients are asked of runs twice."""
        if self._compiled is None:
            return self._plain(*arguments)
        try:
            if torch.is_grad_enabled() and not self._tried:
                _try_gradient(self._compiled(*arguments), arguments)
                self._tried = True
            return self._compiled(*arguments)
        except RuntimeError as error:
            # If it was not the compiler's, the function itself raises it.
            found = self._plain(*arguments)
            self._compiled = None
            _LOG.warning("training goes operator by operator, which takes longer: %s", _reason(error))
            return found


@functools.cache
def can_fuse(device: torch.device) -> bool:
    """Whether functions can be compiled for a device here; if not, the log says why. Takes some seconds."""
    try:
        torch.compile(lambda value: value.relu() + 1, dynamic=False)(torch.ones(8, device=device))
    except (RuntimeError, OSError, ImportError) as error:
        _LOG.warning("training goes operator by operator, which takes longer: %s", _reason(error))
        return False
    return True


def _own(function: Any) -> Callable[..., dict[str, Tensor]]:
    """The function with code of its own: torch keeps what it has compiled by the code, and little for each."""
    of = getattr(function, "__self__", None)
    made = getattr(function, "__func__", function)
    code = made.__code__.replace()
    copied = FunctionType(code, made.__globals__, made.__name__, made.__defaults__, made.__closure__)
    return copied if of is None else MethodType(copied, of)


def _try_gradient(found: dict[str, Tensor], arguments: Any) -> None:
    """Compile the gradient too, which else would be done once it is too late to do without."""
    sums = [value.float().sum() for value in found.values() if value.requires_grad]
    sources = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor) and leaf.requires_grad]
    if sums and sources:
        torch.autograd.grad(torch.stack(sums).sum(), sources, allow_unused=True)


def _reason(error: Exception) -> str:
    """The first line of what torch says, which goes on for pages."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
