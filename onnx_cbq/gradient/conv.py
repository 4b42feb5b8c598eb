"""Gradients of Conv and ConvTranspose with respect to their input.

The gradient of a convolution is itself a convolution: swap the weight's in and out axes within each group, flip it in
space, put stride - 1 zeros between the positions of dy, and pad with what is left of the kernel's reach:

    dx[n] = sum_k W^T[k] dy_spread[n + before - k dilation]

onnxruntime runs this faster than ConvTranspose, which it does not block for the cache.
"""

from __future__ import annotations

import numpy as np

from onnx_cbq.gradient.site import Builder, Gradients, Rule, Site
from onnx_cbq.gradient.window import crop, spread, transposed_windows, windows
from onnx_cbq.model import Array
from onnx_cbq.records import Windows


def conv(site: Site) -> Gradients:
    """dx of y = W * x + b, and db where the bias is computed."""
    weight = site.required(1)
    groups = int(site.attrs.get("group", 1))
    sizes = windows(site, weight.shape[2:])
    dx = conv_input_gradient(site.build, site.grad, weight, groups, sizes) if site.needed[0] else None
    return [dx, None, _bias_gradient(site)]


def conv_input_gradient(build: Builder, dy: str, weight: Array, groups: int, sizes: Windows) -> str:
    """dx [N, I, *inputs] from dy [N, O, *outputs] for a weight [O, I/g, *kernel].

    Cost: the multiplications of the forward Conv, times the product of the strides for the zeros put in.
    """
    outputs, per_group = weight.shape[:2]
    # [O, I/g, *k] -> [g, O/g, I/g, *k] -> [g, I/g, O/g, *k] -> [I, O/g, *k], then flipped in space
    split = weight.reshape(groups, outputs // groups, per_group, *sizes.kernel).swapaxes(1, 2)
    swapped = split.reshape(groups * per_group, outputs // groups, *sizes.kernel)
    flipped = np.ascontiguousarray(np.flip(swapped, axis=tuple(range(2, swapped.ndim))))
    dy = spread(build, dy, outputs, sizes)
    before = [reach - pad for reach, pad in zip(sizes.reach, sizes.before, strict=True)]
    # Spread dy has stride - 1 zeros behind its last position; they serve as padding.
    after = [
        reach - pad - (stride - 1) for reach, pad, stride in zip(sizes.reach, sizes.after, sizes.strides, strict=True)
    ]
    return build.op(
        "Conv",
        crop(build, dy, before, after),
        build.constant(flipped),
        group=groups,
        dilations=list(sizes.dilations),
        pads=[max(p, 0) for p in (*before, *after)],
    )


def conv_transpose(site: Site) -> Gradients:
    """dx of ConvTranspose is the convolution of dy that it is the transpose of, with the same weight."""
    weight = site.required(1)
    sizes = transposed_windows(site, weight.shape[2:])
    dx = None
    if site.needed[0]:
        dx = site.build.op(
            "Conv",
            crop(site.build, site.grad, sizes.before, sizes.after),
            site.node.input[1],
            group=int(site.attrs.get("group", 1)),
            strides=list(sizes.strides),
            dilations=list(sizes.dilations),
            pads=[max(p, 0) for p in (*sizes.before, *sizes.after)],
        )
    return [dx, None, _bias_gradient(site)]


def _bias_gradient(site: Site) -> str | None:
    if len(site.needed) < 3 or not site.needed[2]:
        return None
    axes = [axis for axis in range(len(site.output_shape)) if axis != 1]
    return site.build.reduce_sum(site.grad, axes, keepdims=False)


RULES: dict[str, Rule] = {"Conv": conv, "ConvTranspose": conv_transpose}
