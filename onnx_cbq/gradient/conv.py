"""Gradients of Conv and ConvTranspose with respect to their input.

The gradient of a convolution is itself a convolution: swap the weight's in and out axes within each group, flip it in
space, put stride - 1 zeros between the positions of dy, and pad with what is left of the kernel's reach:

    dx[n] = sum_k W^T[k] dy_spread[n + before - k dilation]

onnxruntime runs this faster than ConvTranspose, which it does not block for the cache.
"""

from __future__ import annotations

import numpy as np

from onnx_cbq.gradient.step import Builder, Gradients, Rule, Step
from onnx_cbq.gradient.window import crop, spread, transposed_windows, windows
from onnx_cbq.model import Array
from onnx_cbq.records import Windows


def conv(step: Step) -> Gradients:
    """dx of y = W * x + b, and db where the bias is computed."""
    weight = step.required(1)
    groups = int(step.attrs.get("group", 1))
    sizes = windows(step, weight.shape[2:])
    dx = conv_input_gradient(step.build, step.grad, weight, groups, sizes) if step.needed[0] else None
    return [dx, None, _bias_gradient(step)]


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


def conv_transpose(step: Step) -> Gradients:
    """dx of ConvTranspose is the convolution of dy that it is the transpose of, with the same weight."""
    weight = step.required(1)
    sizes = transposed_windows(step, weight.shape[2:])
    dx = None
    if step.needed[0]:
        dx = step.build.op(
            "Conv",
            crop(step.build, step.grad, sizes.before, sizes.after),
            step.node.input[1],
            group=int(step.attrs.get("group", 1)),
            strides=list(sizes.strides),
            dilations=list(sizes.dilations),
            pads=[max(p, 0) for p in (*sizes.before, *sizes.after)],
        )
    return [dx, None, _bias_gradient(step)]


def _bias_gradient(step: Step) -> str | None:
    if len(step.needed) < 3 or not step.needed[2]:
        return None
    axes = [axis for axis in range(len(step.output_shape)) if axis != 1]
    return step.build.reduce_sum(step.grad, axes, keepdims=False)


RULES: dict[str, Rule] = {"Conv": conv, "ConvTranspose": conv_transpose}
