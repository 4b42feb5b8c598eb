"""Functions of tensors as code that is made for them: what is done number by number takes one pass, not many.

With bfloat16 products are a quarter of an update, and what stands around them is limited by memory. torch.compile
writes C++ for it (on a GPU, Triton), so a compiler and Python's headers have to be there.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor

_LOG = logging.getLogger("onnx_cbq")


def fused(function: Callable[..., dict[str, Tensor]]) -> Callable[..., dict[str, Tensor]]:
    """A function that is compiled as a whole when it is called first, for the shapes that it is called with.

    What it knows beside its arguments has to stay as it is. Where it cannot be compiled, or its gradient, whatever
    torch's compilers raise comes out.

    Cost: some tenths of a second per operator, once for every set of shapes, with gradients and without.
    """
    # torch keeps what it has compiled by the code of a function, and little for each: this one gets its own.
    of = getattr(function, "__self__", None)
    made: Any = getattr(function, "__func__", function)
    own = FunctionType(made.__code__.replace(), made.__globals__, made.__name__, made.__defaults__, made.__closure__)
    return torch.compile(own if of is None else MethodType(own, of), dynamic=False, fullgraph=True)


@functools.cache
def can_fuse(device: torch.device) -> bool:
    """Whether functions can be compiled for a device here; if not, the log says why. Takes some seconds."""
    try:
        torch.compile(lambda value: value.relu() + 1, dynamic=False)(torch.ones(8, device=device))
    except Exception as error:  # noqa: BLE001, torch's compilers raise anything
        say_plain(error)
        return False
    return True


def say_plain(error: Exception) -> None:
    """Log that training goes without compiling, and what stood in the way."""
    _LOG.warning("training goes operator by operator, which takes longer; torch.compile: %s", _reason(error))


def _reason(error: Exception) -> str:
    """What torch's pages of text say is wrong, in one line."""
    cause = getattr(error, "inner_exception", error)
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    # A compiler's own errors stand below the command that called it.
    return next((line for line in lines if "error:" in line), lines[0] if lines else type(cause).__name__)
