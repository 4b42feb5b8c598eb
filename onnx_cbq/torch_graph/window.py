"""Sizes and pads of windows, as ONNX gives them and as torch takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional

from onnx_cbq.torch_graph.node import OnnxNode


def per_axis(values: Sequence[int] | None, rank: int, default: int = 1) -> list[int]:
    """One number for each axis of positions; a single one holds for all."""
    found = [default] if values is None else [int(value) for value in values]
    return found * rank if len(found) == 1 else found


def even_pads(attrs: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The pads on either side per axis, (0,) if there are none; None if sides differ or sizes decide."""
    auto_pad = attrs.get("auto_pad", "NOTSET")
    if auto_pad == "VALID":
        return (0,)
    pads = tuple(attrs.get("pads", (0, 0)))
    half = len(pads) // 2
    return pads[:half] if auto_pad == "NOTSET" and pads[:half] == pads[half:] else None


def check_same_pads(node: OnnxNode) -> None:
    """Make sure that pads which follow from sizes do so alike everywhere.

    Raises:
        UnsupportedOperatorError: windows are dilated; onnxruntime refuses that or leaves the dilation out.
    """
    if str(node.attrs.get("auto_pad", "NOTSET")).startswith("SAME") and set(node.attrs.get("dilations", ())) - {1}:
        raise node.unsupported(f"auto_pad {node.attrs['auto_pad']} and dilations; export it with pads")


def output_sizes(node: OnnxNode, kernel: Sequence[int], inputs: Sequence[int]) -> list[int]:
    """How many windows there are per axis. With `ceil_mode` the last may reach over the end, not start behind it."""
    attrs, rank = node.attrs, len(inputs)
    strides, dilations = per_axis(attrs.get("strides"), rank), per_axis(attrs.get("dilations"), rank)
    auto_pad = str(attrs.get("auto_pad", "NOTSET"))
    if auto_pad.startswith("SAME"):
        return [-(-size // stride) for size, stride in zip(inputs, strides, strict=True)]
    pads = attrs.get("pads", [0] * 2 * rank) if auto_pad == "NOTSET" else [0] * 2 * rank
    sizes = []
    for i, (size, stride) in enumerate(zip(inputs, strides, strict=True)):
        free = size + pads[i] + pads[i + rank] - (kernel[i] - 1) * dilations[i] - 1
        count = free // stride + 1
        if attrs.get("ceil_mode", 0) and free % stride and count * stride < size + pads[i]:
            count += 1
        sizes.append(count)
    return sizes


def pad_positions(x: Tensor, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Tensor:
    """Put positions of `value` around [N, C, *positions]; negative numbers cut off."""
    if not any(before) and not any(after):
        return x
    # torch counts from the last axis.
    widths = [width for pair in zip(reversed(before), reversed(after), strict=True) for width in pair]
    return functional.pad(x, widths, value=value)
