"""Where the windows of a convolution or pooling lie: pads, strides, dilations, per spatial axis.

Sizes are the measured ones, so `auto_pad`, `ceil_mode` and `output_shape` need no case of their own behind this file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnx_cbq.gradient.step import Builder, Step


@dataclass(frozen=True)
class Windows:
    """Windows over `inputs` positions that make `outputs` positions, each field with one entry per spatial axis.

    Output position o covers the input positions o stride + k dilation - before, k = 0 .. kernel - 1.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]

    @property
    def reach(self) -> tuple[int, ...]:
        """Extent of a dilated kernel less one: (kernel - 1) dilation."""
        return tuple((k - 1) * d for k, d in zip(self.kernel, self.dilations, strict=True))

    @property
    def after(self) -> tuple[int, ...]:
        """Padding behind the input so that the last window just fits; negative where inputs are left over."""
        sizes = zip(self.inputs, self.outputs, self.strides, self.reach, self.before, strict=True)
        return tuple((o - 1) * s + r + 1 - n - p for n, o, s, r, p in sizes)


def windows(step: Step, kernel: Sequence[int]) -> Windows:
    """The windows of a Conv or of a pooling node."""
    inputs, outputs = step.shape()[2:], step.output_shape[2:]
    return _windows(step, kernel, inputs, outputs)


def transposed_windows(step: Step, kernel: Sequence[int]) -> Windows:
    """The windows of the convolution whose transpose a ConvTranspose is: its output is that convolution's input."""
    inputs, outputs = step.output_shape[2:], step.shape()[2:]
    return _windows(step, kernel, inputs, outputs)


def _windows(step: Step, kernel: Sequence[int], inputs: Sequence[int], outputs: Sequence[int]) -> Windows:
    rank = len(inputs)
    strides = tuple(step.attrs.get("strides", [1] * rank))
    dilations = tuple(step.attrs.get("dilations", [1] * rank))
    before = tuple(step.attrs.get("pads", [0] * 2 * rank)[:rank])
    found = Windows(tuple(inputs), tuple(outputs), tuple(kernel), strides, dilations, before)
    auto_pad = step.attrs.get("auto_pad", "NOTSET")
    split_by_size = auto_pad.startswith("SAME") or "output_shape" in step.attrs
    if auto_pad == "VALID":
        return replace(found, before=(0,) * rank)
    if not split_by_size:
        return found
    extra = step.attrs.get("output_padding", [0] * rank)
    total = [max(pad + more, 0) for pad, more in zip(replace(found, before=(0,) * rank).after, extra, strict=True)]
    lower = auto_pad == "SAME_LOWER" if step.node.op_type != "ConvTranspose" else auto_pad != "SAME_UPPER"
    return replace(found, before=tuple((pad + lower) // 2 for pad in total))


def spread(build: Builder, name: str, channels: int, sizes: Windows) -> str:
    """Put stride - 1 zeros behind every position: [N, C, *outputs] -> [N, C, *(outputs x stride)]."""
    shape = [-1, channels, *sizes.outputs]
    for axis, stride in enumerate(sizes.strides, start=2):
        name = spread_axis(build, name, shape, axis, stride)
        shape[axis] *= stride
    return name


def spread_axis(build: Builder, name: str, shape: Sequence[int], axis: int, stride: int) -> str:
    """Put stride - 1 zeros behind every position of one axis of `name`, whose `shape` has -1 for the batch.

    Each row behind the axis is laid flat, zeros are put beside it, and the new shape does the rest. Pad would do it in
    one node and takes ten times as long.
    """
    if stride == 1:
        return name
    rows = build.ints([-1, math.prod(shape[axis + 1 :])])
    flat, zeros = (build.op("Reshape", n, rows) for n in (name, build.op("Mul", name, build.number(0.0))))
    beside = build.op("Concat", flat, *[zeros] * (stride - 1), axis=1)
    return build.op("Reshape", beside, build.ints([*shape[:axis], shape[axis] * stride, *shape[axis + 1 :]]))


def crop(build: Builder, name: str, before: Sequence[int], after: Sequence[int]) -> str:
    """Carry out the negative pads, which Conv does not take: positions of [N, C, *size] are cut away."""
    if min(*before, *after) >= 0:
        return name
    starts = [max(-pad, 0) for pad in before]
    ends = [min(pad, 0) or np.iinfo(np.int64).max for pad in after]
    return build.op("Slice", name, *(build.ints(values) for values in (starts, ends, range(2, 2 + len(starts)))))
