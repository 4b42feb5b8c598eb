"""Gradients of operators that only move numbers: each dy goes back to where its value came from.

Slice, Gather, Pad and Tile take, along an axis, the positions of a list known beforehand: y[j] = x[source[j]], or 0
where source[j] = -1. Their gradient is one function of that list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnx_cbq.gradient.site import Gradients, Rule, Site
from onnx_cbq.gradient.window import spread_axis
from onnx_cbq.model import Array


def reshape(site: Site) -> Gradients:
    """Reshape, Flatten, Squeeze, Unsqueeze: the same numbers in the same order."""
    return [site.build.reshape_like(site.grad, site.x)]


def identity(site: Site) -> Gradients:
    """Identity, and Dropout at inference."""
    return [site.grad]


def transpose(site: Site) -> Gradients:
    """dx = dy with the inverse permutation."""
    rank = len(site.shape())
    order = site.attrs.get("perm", range(rank)[::-1])
    return [site.build.op("Transpose", site.grad, perm=np.argsort(order).tolist())]


def concat(site: Site) -> Gradients:
    """Each input gets its part of dy."""
    axis = int(site.attrs["axis"]) % len(site.output_shape)
    sizes = [site.shape(i)[axis] for i in range(len(site.node.input))]
    return list(site.build.split("Split", [site.grad, site.build.ints(sizes)], len(sizes), axis=axis))


def split(site: Site) -> Gradients:
    """dx = the gradients of the parts side by side, zeros for a part that nothing depends on."""
    b = site.build
    parts = [
        gradient or b.op("Mul", name, b.number(0.0)) for gradient, name in zip(site.dy, site.node.output, strict=True)
    ]
    return [b.op("Concat", *parts, axis=site.axis())]


def expand(site: Site) -> Gradients:
    """dx = dy summed over the axes that were widened."""
    return [site.sum_to_input(site.grad, 0)]


def tile(site: Site) -> Gradients:
    """dx = dy summed over the copies."""
    b = site.build
    repeats = site.required(1)
    gradient = site.grad
    for axis, times in enumerate(repeats.tolist()):
        if times > 1:
            # [..., times n, ...] -> times parts [..., n, ...]: the copies lie one after another.
            gradient = b.op("Sum", *b.split("Split", [gradient], times, axis=axis, num_outputs=times))
    return [gradient]


def slice_(site: Site) -> Gradients:
    """Slice with constant starts, ends, axes and steps (also negative ones)."""
    shape = site.shape()
    starts, ends = site.required(1), site.required(2)
    axes = site.constant(3, np.arange(len(starts)))
    steps = site.constant(4, np.ones(len(starts), np.int64))
    sources: dict[int, Array] = {}
    for start, end, axis, stride in zip(starts.tolist(), ends.tolist(), axes.tolist(), steps.tolist(), strict=True):
        last = None if stride < 0 and end < -shape[axis] else end
        sources[axis % len(shape)] = np.arange(shape[axis])[slice(start, last, stride)]
    return [_scatter(site, site.grad, sources)]


def gather(site: Site) -> Gradients:
    """Gather with constant indices from a tensor that depends on the samples.

    What is looked up in a constant table has no part in the gradient of the table, which may be a weight elsewhere.
    """
    if site.model.is_constant(site.x) and not site.model.is_constant(site.node.input[1]):
        return [None]
    indices = site.required(1)
    axis, shape = site.axis(), list(site.shape())
    size, shape[axis] = shape[axis], indices.size
    gradient = site.grad
    if indices.ndim != 1:
        gradient = site.build.op("Reshape", gradient, site.build.ints(_with_free_batch(site, shape)))
    return [_scatter(site, gradient, {axis: indices.reshape(-1) % size})]


def pad(site: Site) -> Gradients:
    """Pad in every mode: what was padded with a constant is cut off, a copied edge is added to its source."""
    shape, rank = site.shape(), len(site.shape())
    pads = site.required(1)
    axes = site.constant(3, np.arange(rank))
    mode = site.attrs.get("mode", "constant")
    sources = {
        axis: _padded_positions(shape[axis], int(pads[i]), int(pads[i + len(axes)]), mode)
        for i, axis in enumerate((axes % rank).tolist())
    }
    return [_scatter(site, site.grad, sources)]


def _padded_positions(size: int, before: int, after: int, mode: str) -> Array:
    """Which position each position of a padded axis is a copy of, -1 for a constant; negative pads crop."""
    widths = (max(before, 0), max(after, 0))
    settings: dict[str, Any] = {"mode": mode} | ({"constant_values": -1} if mode == "constant" else {})
    grown = np.pad(np.arange(size), widths, **settings)
    return np.asarray(grown[max(-before, 0) : len(grown) - max(-after, 0)])


def _scatter(site: Site, name: str, sources: Mapping[int, Array]) -> str:
    """Take dy back to x along several axes; `sources[axis][j]` is the position that y took its position j from."""
    shape = list(site.shape())
    for axis, source in sources.items():
        shape[axis] = len(source)
    for axis, source in sources.items():
        size = site.shape()[axis]
        name = _scatter_along(site, name, shape, axis, source, size)
        shape[axis] = size
    return name


def _with_free_batch(site: Site, shape: Sequence[int]) -> list[int]:
    """`shape` with -1 on the axis of x that follows the batch."""
    batch = site.shapes.batch_axis[site.x]
    return [-1 if axis == batch else size for axis, size in enumerate(shape)]


def _scatter_along(site: Site, name: str, shape: Sequence[int], axis: int, source: Array, size: int) -> str:
    """dx[i] = sum of dy[j] over the j with source[j] = i, along one axis: `shape` -> `shape` with `size` there."""
    b = site.build
    if len(source) == size and np.array_equal(source, np.arange(size)):
        return name
    if site.shapes.batch_axis[site.x] == axis:
        raise site.unsupported("positions taken along the batch axis")
    taken = source[source >= 0]
    if len(np.unique(taken)) < len(taken):
        matrix = (source[:, None] == np.arange(size)).astype(b.dtype)
        return apply_along(site, name, axis, matrix)
    # Where no position is taken twice, dx is a Gather from dy with one position of zeros put behind it.
    origin = np.full(size, len(source), np.int64)
    origin[taken] = np.flatnonzero(source >= 0)
    if len(taken) >= size and np.array_equal(origin, np.arange(size) + origin[0]):
        return b.op("Slice", name, b.ints([origin[0]]), b.ints([origin[0] + size]), b.ints([axis]))
    if len(source) > 1 and len(taken) == len(source) and _is_range(source):
        return _spread_range(site, name, shape, axis, source, size)
    ends = [0] * len(site.shape())
    ends[axis] = 1
    return b.op("Gather", b.op("Pad", name, b.ints([0] * len(ends) + ends)), b.constant(origin), axis=axis)


def _is_range(source: Array) -> bool:
    stride = source[1] - source[0]
    return bool(stride > 0 and (np.diff(source) == stride).all())


def _spread_range(site: Site, name: str, shape: Sequence[int], axis: int, source: Array, size: int) -> str:
    """dy at the positions source[0], source[0] + stride, ..., zeros between, before and behind them."""
    b = site.build
    stride = int(source[1] - source[0])
    wide = spread_axis(b, name, _with_free_batch(site, shape), axis, stride)
    before, after = int(source[0]), size - int(source[0]) - len(source) * stride
    if not before and not after:
        return wide
    pads = [0] * len(shape) * 2
    pads[axis], pads[axis + len(shape)] = before, after
    return b.op("Pad", wide, b.ints(pads))


def apply_along(site: Site, name: str, axis: int, matrix: Array) -> str:
    """Multiply by a constant matrix along one axis: [..., n, ...] -> [..., m, ...] for a matrix [n, m]."""
    b = site.build
    rank = len(site.shape())
    last = [*(a for a in range(rank) if a != axis), axis]
    product = b.op("MatMul", b.op("Transpose", name, perm=last), b.constant(matrix.astype(b.dtype)))
    return b.op("Transpose", product, perm=np.argsort(last).tolist())


def depth_to_space(site: Site) -> Gradients:
    """The inverse of the move: [N, C b b, H, W] <- [N, C, H b, W b]."""
    b = site.build
    block = int(site.attrs["blocksize"])
    if site.attrs.get("mode", "DCR") == "DCR":
        return [b.op("SpaceToDepth", site.grad, blocksize=block)]
    _, channels, height, width = site.shape()
    split_up = b.op("Reshape", site.grad, b.ints([-1, channels // block**2, height, block, width, block]))
    ordered = b.op("Transpose", split_up, perm=[0, 1, 3, 5, 2, 4])
    return [b.op("Reshape", ordered, b.ints([-1, channels, height, width]))]


def space_to_depth(site: Site) -> Gradients:
    """The inverse of the move."""
    return [site.build.op("DepthToSpace", site.grad, blocksize=int(site.attrs["blocksize"]))]


RULES: dict[str, Rule] = {
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), reshape),
    **dict.fromkeys(("Identity", "Dropout"), identity),
    "Transpose": transpose,
    "Concat": concat,
    "Split": split,
    "Expand": expand,
    "Tile": tile,
    "Slice": slice_,
    "Gather": gather,
    "Pad": pad,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
}
