"""Gradient of Resize, which is a matrix along each axis (see `graph.resizing`)."""

from __future__ import annotations

import numpy as np

from onnx_cbq.gradient.movement import apply_along
from onnx_cbq.gradient.step import Gradients, Rule, Step
from onnx_cbq.graph.resizing import resize_matrix


def resize(step: Step) -> Gradients:
    """dx = A^T dy along each axis that was resized."""
    if step.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise step.unsupported("coordinate_transformation_mode tf_crop_and_resize")
    gradient = step.grad
    if step.shape() == step.output_shape:
        return [gradient]
    scales = step.constant(2, np.zeros(0, np.float32))
    axes = list(step.attrs.get("axes", range(len(step.shape()))))
    for i, axis in enumerate(axes):
        size, wide, scale = step.shape()[axis], step.output_shape[axis], float(scales[i]) if scales.size else None
        if axis % len(step.shape()) != step.shapes.batch_axis[step.x] and (size != wide or scale not in (None, 1.0)):
            matrix = resize_matrix(step.attrs, step.model.opset, size, wide, scale)
            gradient = apply_along(step, gradient, axis % len(step.shape()), matrix)
    return [gradient]


RULES: dict[str, Rule] = {"Resize": resize}
