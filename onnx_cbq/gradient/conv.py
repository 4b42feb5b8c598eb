"""Gradients of Conv and ConvTranspose with respect to their input and, of Conv, to its weight.

The gradient of a convolution is itself a convolution: swap the weight's in and out axes within each group, flip it in
space, put stride - 1 zeros between the positions of dy, and pad with what is left of the kernel's reach:

    dx[n] = sum_k W^T[k] dy_spread[n + before - k dilation]

onnxruntime runs this faster than ConvTranspose, which it does not block for the cache. That of the weight is

    dW[k] = sum_n dy[n] x[n stride + k dilation - before]^T

which is a product of matrices for each sample, with the values under kernel position k side by side. Where channels go
in groups these matrices are thin, and copies of x are most of the work; then it is a convolution as well, of x by dy,
in which samples and channels, and strides and dilations, have changed places.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnx_cbq.gradient.site import Builder, Gradients, Rule, Site
from onnx_cbq.gradient.window import crop, spread, transposed_windows, windows
from onnx_cbq.graph.shapes import Shape
from onnx_cbq.model import Array
from onnx_cbq.records import Windows


def conv(site: Site) -> Gradients:
    """dx of y = W * x + b, dW, and db where the bias is computed.

    A weight that is asked for, or computed, is flipped at every run.
    """
    weight = None if site.needed[1] else site.model.constant(site.node.input[1])
    shape, groups = site.shape(1), int(site.attrs.get("group", 1))
    sizes = windows(site, shape[2:])
    dx = dw = None
    if site.needed[0]:
        build = site.build
        flipped = _flip(build, site.node.input[1], shape, groups) if weight is None else _flipped(build, weight, groups)
        dx = _input_gradient(build, site.grad, flipped, (shape[0], groups), sizes)
    if site.needed[1]:
        dw = (_weight_gradient if groups == 1 else _grouped_weight_gradient)(site, shape, groups, sizes)
    return [dx, dw, _bias_gradient(site)]


def conv_input_gradient(build: Builder, dy: str, weight: Array, groups: int, sizes: Windows) -> str:
    """dx [N, I, *inputs] from dy [N, O, *outputs] for a weight [O, I/g, *kernel].

    Cost: the multiplications of the forward Conv, times the product of the strides for the zeros put in.
    """
    return _input_gradient(build, dy, _flipped(build, weight, groups), (len(weight), groups), sizes)


def _input_gradient(build: Builder, dy: str, flipped: str, counts: tuple[int, int], sizes: Windows) -> str:
    """Likewise, for a weight that is flipped already; `counts` are output channels and groups."""
    outputs, groups = counts
    dy = spread(build, dy, outputs, sizes)
    before = [reach - pad for reach, pad in zip(sizes.reach, sizes.before, strict=True)]
    # Spread dy has stride - 1 zeros behind its last position; they serve as padding.
    after = [
        reach - pad - (stride - 1) for reach, pad, stride in zip(sizes.reach, sizes.after, sizes.strides, strict=True)
    ]
    return build.op(
        "Conv",
        crop(build, dy, before, after),
        flipped,
        group=groups,
        dilations=list(sizes.dilations),
        pads=[max(p, 0) for p in (*before, *after)],
    )


def _flipped(build: Builder, weight: Array, groups: int) -> str:
    """A constant weight [O, I/g, *kernel] as [I, O/g, *kernel], each group by itself, flipped in space."""
    outputs, per_group, *kernel = weight.shape
    swapped = weight.reshape(groups, outputs // groups, per_group, *kernel).swapaxes(1, 2)
    swapped = swapped.reshape(groups * per_group, outputs // groups, *kernel)
    return build.constant(np.ascontiguousarray(np.flip(swapped, axis=tuple(range(2, swapped.ndim)))))


def _flip(build: Builder, weight: str, shape: Shape, groups: int) -> str:
    """Likewise for a weight that is known at run time."""
    outputs, per_group, *kernel = shape
    apart = build.op("Reshape", weight, build.ints([groups, outputs // groups, per_group, math.prod(kernel)]))
    swapped = build.op("Transpose", apart, perm=[0, 2, 1, 3])
    joined = build.op("Reshape", swapped, build.ints([groups * per_group, outputs // groups, *kernel]))
    if math.prod(kernel) == 1:
        return joined
    rank = len(kernel)
    last, before_first = [-1] * rank, [np.iinfo(np.int64).min] * rank
    return build.op("Slice", joined, *map(build.ints, (last, before_first, range(2, 2 + rank), [-1] * rank)))


def _weight_gradient(site: Site, shape: Shape, groups: int, sizes: Windows) -> str:
    """dW [O, I/g, *kernel]. Cost: the multiplications of the forward Conv, and a copy of x for each kernel position."""
    build, outputs, per_group = site.build, shape[0], shape[1]
    positions = math.prod(sizes.outputs)
    rows = [_laid(build, x, [per_group, 1, positions]) for x in _under_kernel(site, sizes)]
    side_by_side = rows[0] if len(rows) == 1 else build.op("Concat", *rows, axis=2)
    columns = _laid(build, side_by_side, [per_group * len(rows), positions])
    dy = _laid(build, site.grad, [outputs, positions])
    if outputs > positions:
        # A weight for each sample would take more than the samples do.
        left, right = (
            build.op("Reshape", build.op("Transpose", name, perm=[0, 2, 1]), build.ints([-1, width]))
            for name, width in ((dy, outputs), (columns, per_group * len(rows)))
        )
        return build.op("Reshape", build.op("Gemm", left, right, transA=1), build.ints(shape))
    of_samples = build.op("MatMul", dy, build.op("Transpose", columns, perm=[0, 2, 1]))
    return build.op("Reshape", build.reduce_sum(of_samples, [0], keepdims=False), build.ints(shape))


def _grouped_weight_gradient(site: Site, shape: Shape, groups: int, sizes: Windows) -> str:
    """Likewise: the sum over samples is that over the channels of a group. Cost: those multiplications alone."""
    build, per_group, rank = site.build, shape[1], len(sizes.kernel)
    inputs, behind = sizes.inputs, range(3, 3 + rank)
    apart = build.op("Transpose", _laid(build, site.x, [groups, per_group, *inputs]), perm=[2, 1, 0, *behind])
    # [I/g, g x N, *inputs] by [O, N, *outputs]; whatever N is, it is the same in both.
    x = build.op("Reshape", apart, build.ints([per_group, -1, *inputs]))
    dy = build.op("Transpose", site.grad, perm=[1, 0, *range(2, 2 + rank)])
    found = build.op(
        "Conv",
        crop(build, x, sizes.before, sizes.after),
        dy,
        group=groups,
        strides=list(sizes.dilations),
        dilations=list(sizes.strides),
        pads=[max(pad, 0) for pad in (*sizes.before, *sizes.after)],
    )
    return build.op("Transpose", found, perm=[1, 0, *range(2, 2 + rank)])


def _laid(build: Builder, name: str, shape: Sequence[int]) -> str:
    """A tensor of samples with another shape of each."""
    return build.op("Reshape", name, build.ints([-1, *shape]))


def _under_kernel(site: Site, sizes: Windows) -> list[str]:
    """The values of x under each kernel position, [N, I, *outputs] each."""
    build, rank = site.build, len(sizes.kernel)
    x = crop(build, site.x, sizes.before, sizes.after)
    pads = [max(pad, 0) for pad in (*sizes.before, *sizes.after)]
    if any(pads):
        x = build.op("Pad", x, build.ints([0, 0, *pads[:rank], 0, 0, *pads[rank:]]))
    elif max((*sizes.kernel, *sizes.strides)) == 1:
        return [x]
    axes, strides = build.ints(range(2, 2 + rank)), build.ints(sizes.strides)
    found = []
    for place in np.ndindex(*sizes.kernel):
        starts = [k * dilation for k, dilation in zip(place, sizes.dilations, strict=True)]
        ends = [
            start + (count - 1) * stride + 1
            for start, count, stride in zip(starts, sizes.outputs, sizes.strides, strict=True)
        ]
        found.append(build.op("Slice", x, build.ints(starts), build.ints(ends), axes, strides))
    return found


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
