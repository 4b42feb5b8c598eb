"""Resize, which is a matrix along each axis (see `graph.resizing`)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from onnx_cbq.graph.resizing import resize_matrix
from onnx_cbq.torch_graph.node import Compile, OnnxNode, Run


def resize(node: OnnxNode) -> Run:
    """y = A x along each axis that is resized; a matrix is measured when its sizes are first seen."""
    if node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise node.unsupported("coordinate_transformation_mode tf_crop_and_resize")
    if node.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise node.unsupported(f"keep_aspect_ratio_policy {node.attrs['keep_aspect_ratio_policy']}")
    scales, sizes, given_axes = node.constant(2), node.integers(3), node.attrs.get("axes")
    by_scale = scales is not None and scales.size > 0
    if not by_scale and not node.has_input(3):
        raise node.unsupported("scales that are computed")
    factors = scales.tolist() if scales is not None else []  # multiplied in float32, as onnxruntime does

    @lru_cache(maxsize=32)
    def matrix(size: int, wide: int, scale: float | None) -> Tensor:
        return torch.tensor(resize_matrix(node.attrs, node.opset, size, wide, scale))

    def run(x: Tensor, *operands: Tensor | None) -> Tensor:
        axes = given_axes if given_axes is not None else list(range(x.dim()))
        before = [x.shape[axis] for axis in axes]
        if by_scale:
            after = [int(np.float32(size) * np.float32(scale)) for size, scale in zip(before, factors, strict=True)]
        else:
            after = sizes((*operands, None, None, None)[2])
        if before == after:
            return x
        for axis, size, wide, scale in zip(axes, before, after, factors or [None] * len(axes), strict=True):
            if size != wide or scale not in (None, 1.0):
                along = matrix(size, wide, scale).to(x)
                x = functional.linear(x.movedim(axis, -1), along).movedim(-1, axis)
        return x

    return run


OPERATORS: dict[str, Compile] = {"Resize": resize}
