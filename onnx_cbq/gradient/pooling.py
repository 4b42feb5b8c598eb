"""Gradients of the pooling operators.

A sum over windows is a depthwise convolution with a kernel of ones, so its gradient is the one of a convolution.
"""

from __future__ import annotations

import numpy as np
from onnx import numpy_helper

from onnx_cbq.gradient.conv import conv_input_gradient
from onnx_cbq.gradient.site import Gradients, Rule, Site
from onnx_cbq.gradient.window import windows
from onnx_cbq.model import Array
from onnx_cbq.records import Windows


def max_pool(site: Site) -> Gradients:
    """dx: each dy goes to the first largest input of its window, and is added up where windows overlap.

    The forward node is run again for the flat index of that input, then dy is scattered.
    """
    b = site.build
    if len(site.node.output) > 1 and site.node.output[1]:
        indices = site.node.output[1]
    else:
        attrs = {name: value for name, value in site.attrs.items() if name != "storage_order"}
        indices = b.split("MaxPool", [site.x], 2, **attrs)[1]
    return [_scatter(site, indices)]


def global_max_pool(site: Site) -> Gradients:
    """dx: dy goes to the first largest position of its channel, [N, C, positions]."""
    b = site.build
    flat = b.op("Reshape", site.x, b.ints([0, 0, -1]))
    spots = b.op("ArgMax", flat, axis=2)
    values = b.op("Reshape", site.grad, b.ints([0, 0, -1]))
    filled = b.op("ScatterElements", b.op("Mul", flat, b.number(0.0)), spots, values, axis=2)
    return [b.reshape_like(filled, site.x)]


def _scatter(site: Site, indices: str) -> str:
    """dy added into zeros shaped like x, at flat `indices` shaped like dy."""
    b = site.build
    flat = b.ints([-1])
    count = b.op("Reshape", b.op("Size", site.x), b.ints([1]))
    zeros = b.op("ConstantOfShape", count, value=numpy_helper.from_array(np.zeros(1, b.dtype)))
    spots, values = b.op("Reshape", indices, flat), b.op("Reshape", site.grad, flat)
    filled = b.op("ScatterElements", zeros, spots, values, axis=0, reduction="add")
    return b.reshape_like(filled, site.x)


def average_pool(site: Site) -> Gradients:
    """dx: dy divided by how many positions its window averages, spread over the window."""
    sizes = windows(site, site.attrs["kernel_shape"])
    counts = site.build.constant(_window_counts(site, sizes).astype(site.build.dtype))
    return [_spread_over_windows(site, site.build.op("Div", site.grad, counts), sizes)]


def lp_pool(site: Site) -> Gradients:
    """y = (sum |x|^p)^(1/p): dx = sign(x) |x|^(p-1) sum over windows of dy y^(1-p)."""
    b = site.build
    p = int(site.attrs.get("p", 2))
    sizes = windows(site, site.attrs["kernel_shape"])
    scaled = b.op("Mul", site.grad, b.op("Pow", site.y, b.number(1.0 - p)))
    finite = b.where(b.op("Greater", site.y, b.number(0.0)), scaled)
    power = b.op("Pow", b.op("Abs", site.x), b.number(p - 1.0))
    slope = b.op("Mul", b.op("Sign", site.x), power)
    return [b.op("Mul", slope, _spread_over_windows(site, finite, sizes))]


def global_average_pool(site: Site) -> Gradients:
    """dx = dy / positions everywhere."""
    share = site.build.op("Div", site.grad, site.build.number(float(np.prod(site.shape()[2:]))))
    return [site.build.op("Expand", share, site.build.op("Shape", site.x))]


def _spread_over_windows(site: Site, dy: str, sizes: Windows) -> str:
    channels = site.shape()[1]
    ones = np.ones((channels, 1, *sizes.kernel), site.build.dtype)
    return conv_input_gradient(site.build, dy, ones, channels, sizes)


def _window_counts(site: Site, sizes: Windows) -> Array:
    """Number of positions that each output averages, [*outputs]; padding counts if `count_include_pad` says so."""
    rank = len(sizes.inputs)
    include_pad = bool(site.attrs.get("count_include_pad", 0))
    declared = site.attrs.get("pads", [0] * 2 * rank)[rank:]
    same = site.attrs.get("auto_pad", "NOTSET").startswith("SAME")
    counts = np.ones(())
    for axis in range(rank):
        after = sizes.after[axis] if same else declared[axis]
        low, high = (-sizes.before[axis], sizes.inputs[axis] + after) if include_pad else (0, sizes.inputs[axis])
        starts = np.arange(sizes.outputs[axis]) * sizes.strides[axis] - sizes.before[axis]
        positions = starts[:, None] + np.arange(sizes.kernel[axis]) * sizes.dilations[axis]
        counts = np.multiply.outer(counts, ((positions >= low) & (positions < high)).sum(axis=1))
    return counts


RULES: dict[str, Rule] = {
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "LpPool": lp_pool,
    "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool,
}
