"""The windows of a gradient site, and how values are spread over strides and cut to size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnx_cbq.gradient.site import Builder, Site
from onnx_cbq.graph.windows import find_windows
from onnx_cbq.records import Windows


def windows(site: Site, kernel: Sequence[int]) -> Windows:
    """The windows of a Conv or of a pooling node."""
    inputs, outputs = site.shape()[2:], site.output_shape[2:]
    return find_windows(site.node.op_type, site.attrs, kernel, inputs, outputs)


def transposed_windows(site: Site, kernel: Sequence[int]) -> Windows:
    """The windows of the convolution whose transpose a ConvTranspose is: its output is that convolution's input."""
    inputs, outputs = site.output_shape[2:], site.shape()[2:]
    return find_windows(site.node.op_type, site.attrs, kernel, inputs, outputs)


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
