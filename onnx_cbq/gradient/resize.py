"""Gradient of Resize, which is a matrix along each axis (see `graph.resizing`)."""

from __future__ import annotations

import numpy as np

from onnx_cbq.gradient.movement import apply_along
from onnx_cbq.gradient.site import Gradients, Rule, Site
from onnx_cbq.graph.resizing import resize_matrix


def resize(site: Site) -> Gradients:
    """dx = A^T dy along each axis that was resized."""
    if site.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise site.unsupported("coordinate_transformation_mode tf_crop_and_resize")
    gradient = site.grad
    if site.shape() == site.output_shape:
        return [gradient]
    scales = site.constant(2, np.zeros(0, np.float32))
    axes = list(site.attrs.get("axes", range(len(site.shape()))))
    for i, axis in enumerate(axes):
        size, wide, scale = site.shape()[axis], site.output_shape[axis], float(scales[i]) if scales.size else None
        if axis % len(site.shape()) != site.shapes.batch_axis[site.x] and (size != wide or scale not in (None, 1.0)):
            matrix = resize_matrix(site.attrs, site.model.opset, size, wide, scale)
            gradient = apply_along(site, gradient, axis % len(site.shape()), matrix)
    return [gradient]


RULES: dict[str, Rule] = {"Resize": resize}
