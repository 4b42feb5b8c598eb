"""Where the windows of a convolution or pooling lie: pads, strides, dilations, per spatial axis.

Sizes are the measured ones, so `auto_pad`, `ceil_mode` and `output_shape` need no case of their own behind this file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from onnx_cbq.records import Windows


def find_windows(
    operator: str, attrs: Mapping[str, Any], kernel: Sequence[int], inputs: Sequence[int], outputs: Sequence[int]
) -> Windows:
    """The windows over `inputs` positions that make `outputs` positions.

    For a ConvTranspose they are those of the convolution whose transpose it is, so its output counts as the input.
    """
    rank = len(inputs)
    strides = tuple(attrs.get("strides", [1] * rank))
    dilations = tuple(attrs.get("dilations", [1] * rank))
    before = tuple(attrs.get("pads", [0] * 2 * rank)[:rank])
    found = Windows(tuple(inputs), tuple(outputs), tuple(kernel), strides, dilations, before)
    auto_pad = attrs.get("auto_pad", "NOTSET")
    split_by_size = auto_pad.startswith("SAME") or "output_shape" in attrs
    if auto_pad == "VALID":
        return replace(found, before=(0,) * rank)
    if not split_by_size:
        return found
    extra = attrs.get("output_padding", [0] * rank)
    # Where windows leave positions out, onnxruntime's pools cut off both ends of the input, the others only its end.
    least = -max(inputs) if operator.endswith("Pool") else 0
    total = [max(pad + more, least) for pad, more in zip(replace(found, before=(0,) * rank).after, extra, strict=True)]
    lower = auto_pad == "SAME_LOWER" if operator != "ConvTranspose" else auto_pad != "SAME_UPPER"
    return replace(found, before=tuple(int((pad + lower) / 2) for pad in total))
