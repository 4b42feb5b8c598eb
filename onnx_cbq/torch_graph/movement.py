"""Operators that only move numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from onnx_cbq.torch_graph.node import Compile, OnnxNode, Run, plain


def dropout(node: OnnxNode) -> Run:
    """Identity, as at inference; the mask, where it is read, is true everywhere."""
    node.inference_only()
    if len(node.outputs) == 1:
        return lambda x, *_: x
    return lambda x, *_: (x, torch.ones_like(x, dtype=torch.bool))


def transpose(node: OnnxNode) -> Run:
    """Another order of the axes, by default the reverse."""
    order = node.attrs.get("perm")
    return lambda x: x.permute(order if order is not None else list(range(x.dim()))[::-1])


def concat(node: OnnxNode) -> Run:
    """Side by side along an axis."""
    axis = int(node.attrs["axis"])
    return lambda *parts: torch.cat(parts, axis)


def split(node: OnnxNode) -> Run:
    """Parts of given sizes, or of equal sizes of which the last may be smaller."""
    axis, parts = int(node.attrs.get("axis", 0)), len(node.outputs)
    sizes, given = node.integers(1), node.has_input(1)

    def run(x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, ...]:
        return torch.split(x, sizes(lengths) if given else -(-x.shape[axis] // parts), axis)

    return run


def slice_(node: OnnxNode) -> Run:
    """Positions from start to end by steps, which may be negative, along some axes."""
    starts, ends, axes, steps = (node.integers(index) for index in (1, 2, 3, 4))
    has_axes, has_steps = node.has_input(3), node.has_input(4)

    def run(x: Tensor, *operands: Tensor | None) -> Tensor:
        first, last, along, by = (*operands, None, None)[:4]
        from_, to = starts(first), ends(last)
        chosen = axes(along) if has_axes else list(range(len(from_)))
        strides = steps(by) if has_steps else [1] * len(from_)
        for start, end, axis, step in zip(from_, to, chosen, strides, strict=True):
            x = _slice_along(x, axis % x.dim(), start, end, step)
        return x

    return run


def _slice_along(x: Tensor, axis: int, start: int, end: int, step: int) -> Tensor:
    size = x.shape[axis]
    # Backwards, an end in front of position 0 includes it; for Python such an end counts from the back.
    stop = None if step < 0 and end < -size else end
    positions = range(size)[slice(start, stop, step)]
    if step > 0:
        window = x.narrow(axis, positions.start, max(min(positions.stop, size) - positions.start, 0))
        return window if step == 1 else window[(slice(None),) * axis + (slice(None, None, step),)]
    return x.index_select(axis, torch.tensor(list(positions), dtype=torch.int64, device=x.device))


def gather(node: OnnxNode) -> Run:
    """The positions `indices` of an axis, which the axes of `indices` take the place of; negative ones count back."""
    axis = int(node.attrs.get("axis", 0))
    indices = node.constant(1)
    if indices is None:
        return lambda x, positions: _take(x, axis, torch.where(positions < 0, positions + x.shape[axis], positions))
    if indices.ndim == 0:
        return lambda x, _: x.select(axis, int(indices))
    known = torch.tensor(indices.astype(np.int64))

    def run(x: Tensor, _: None) -> Tensor:
        return _take(x, axis, (known % x.shape[axis]).to(x.device))

    return run


def _take(x: Tensor, axis: int, positions: Tensor) -> Tensor:
    """[..., n, ...] and positions [*p] -> [..., *p, ...]."""
    axis %= x.dim()
    taken = x.index_select(axis, positions.reshape(-1))
    return taken.reshape(*x.shape[:axis], *positions.shape, *x.shape[axis + 1 :])


def pad(node: OnnxNode) -> Run:
    """Positions in front and behind, along all or some axes, in every mode; negative pads crop."""
    mode = str(node.attrs.get("mode", "constant"))
    pads, axes, has_axes = node.integers(1), node.integers(3), node.has_input(3)
    value = node.number(2, 0.0)
    if value is None:
        raise node.unsupported("a pad value that is computed")

    def run(x: Tensor, *operands: Tensor | None) -> Tensor:
        widths, _, along = (*operands, None, None)[:3]
        amounts = pads(widths)
        chosen = [axis % x.dim() for axis in axes(along)] if has_axes else list(range(x.dim()))
        pairs = {axis: (amounts[i], amounts[i + len(chosen)]) for i, axis in enumerate(chosen)}
        if mode == "constant":
            # torch counts from the last axis.
            flat = [width for axis in reversed(range(x.dim())) for width in pairs.get(axis, (0, 0))]
            return functional.pad(x, flat, value=value)
        for axis, (before, after) in pairs.items():
            x = _pad_along(x, axis, before, after, mode)
        return x

    return run


def _pad_along(x: Tensor, axis: int, before: int, after: int, mode: str) -> Tensor:
    """Pad with copies: every new position is a copy of an old one, which numpy tells."""
    if not before and not after:
        return x
    settings: dict[str, Any] = {"mode": mode}
    grown = np.pad(np.arange(x.shape[axis]), (max(before, 0), max(after, 0)), **settings)
    sources = grown[max(-before, 0) : len(grown) - max(-after, 0)]
    return x.index_select(axis, torch.tensor(sources, device=x.device))


def tile(node: OnnxNode) -> Run:
    """So many copies along each axis."""
    repeats = node.integers(1)

    def run(x: Tensor, times: Tensor | None = None) -> Tensor:
        return x.repeat(repeats(times))

    return run


def depth_to_space(node: OnnxNode) -> Run:
    """[N, C b b, H, W] -> [N, C, H b, W b], the blocks outside the channels (DCR) or inside them (CRD)."""
    block = int(node.attrs["blocksize"])
    if node.attrs.get("mode", "DCR") == "CRD":
        return lambda x: functional.pixel_shuffle(x, block)

    def run(x: Tensor) -> Tensor:
        samples, depth, height, width = x.shape
        channels = depth // block**2
        # [N, b, b, C, H, W] -> [N, C, H, b, W, b]
        parts = x.reshape(samples, block, block, channels, height, width).permute(0, 3, 4, 1, 5, 2)
        return parts.reshape(samples, channels, height * block, width * block)

    return run


def space_to_depth(node: OnnxNode) -> Run:
    """[N, C, H b, W b] -> [N, b b C, H, W]: the inverse of DepthToSpace in its mode DCR."""
    block = int(node.attrs["blocksize"])

    def run(x: Tensor) -> Tensor:
        samples, channels, height, width = x.shape
        # [N, C, H, b, W, b] -> [N, b, b, C, H, W]
        parts = x.reshape(samples, channels, height // block, block, width // block, block).permute(0, 3, 5, 1, 2, 4)
        return parts.reshape(samples, channels * block**2, height // block, width // block)

    return run


OPERATORS: dict[str, Compile] = {
    "Identity": plain(lambda x: x),
    "Dropout": dropout,
    "Transpose": transpose,
    "Concat": concat,
    "Split": split,
    "Slice": slice_,
    "Gather": gather,
    "Pad": pad,
    "Tile": tile,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
}
