"""Gradient of Resize.

Resizing is linear and works axis by axis: y = A x along each. The matrix A is measured, by resizing the unit vectors
with the node's own settings, so every mode and coordinate transformation is covered by what onnxruntime really does.
"""

from __future__ import annotations

import numpy as np
from onnx import helper, numpy_helper

from onnx_cbq.gradient.movement import apply_along
from onnx_cbq.gradient.step import Gradients, Rule, Step
from onnx_cbq.model import Array, Model
from onnx_cbq.runtime import Session


def resize(step: Step) -> Gradients:
    """dx = A^T dy along each axis that was resized."""
    if step.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise step.unsupported("coordinate_transformation_mode tf_crop_and_resize")
    gradient = step.grad
    for axis, (size, wide) in enumerate(zip(step.shape(), step.output_shape, strict=True)):
        if axis != step.shapes.batch_axis[step.x] and size != wide:
            gradient = apply_along(step, gradient, axis, _resize_matrix(step, axis, size, wide))
    return [gradient]


def _resize_matrix(step: Step, axis: int, size: int, wide: int) -> Array:
    """A for one axis, [wide, size]: the node's response to each unit vector, laid along the width of an image."""
    kept = ("axes", "keep_aspect_ratio_policy")
    attrs = {name: value for name, value in step.attrs.items() if name not in kept}
    scales = step.constant(2, np.zeros(0, np.float32))
    constants: dict[str, Array] = {"scales": np.zeros(0, np.float32), "sizes": np.array([size, 1, 1, wide], np.int64)}
    inputs = ["x", "", "", "sizes"]
    if scales.size:
        factor = scales[list(step.attrs.get("axes", range(len(step.shape())))).index(axis)]
        constants["scales"], inputs = np.array([1, 1, 1, factor], np.float32), ["x", "", "scales"]
    node = helper.make_node("Resize", inputs, ["y"], **attrs)
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    unit = helper.make_tensor_value_info("x", 1, [size, 1, 1, size])
    graph = helper.make_graph([node], "resize", [unit], [helper.make_empty_tensor_value_info("y")], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", step.model.opset)], ir_version=10)
    response = Session(Model(model, {})).run({"x": np.eye(size, dtype=np.float32)[:, None, None]})["y"]
    return np.asarray(response.reshape(size, wide).T)


RULES: dict[str, Rule] = {"Resize": resize}
