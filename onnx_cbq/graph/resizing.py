"""Resize as a matrix.

Resizing is linear and works axis by axis: y = A x along each. The matrix A is measured, by resizing the unit vectors
with the node's own settings, so every mode and coordinate transformation is covered by what onnxruntime really does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from onnx_cbq.model import Array, Model
from onnx_cbq.runtime import Session


def resize_matrix(settings: Mapping[str, Any], opset: int, size: int, wide: int, scale: float | None = None) -> Array:
    """A for one axis, [wide, size]: the response to each unit vector, laid along the width of an image.

    `settings` are the attributes of a Resize node. `scale` is its factor for the axis, None where it is given sizes.

    Raises:
        ModelError: onnxruntime does not know the settings.
    """
    # The height grows too, of one row into two alike: onnxruntime copies what keeps its shape, whatever the scale.
    kept = ("axes", "keep_aspect_ratio_policy")
    attrs = {name: value for name, value in settings.items() if name not in kept}
    constants: dict[str, Array] = {"scales": np.zeros(0, np.float32), "sizes": np.array([size, 1, 2, wide], np.int64)}
    inputs = ["x", "", "", "sizes"]
    if scale is not None:
        constants["scales"], inputs = np.array([1, 1, 2, scale], np.float32), ["x", "", "scales"]
    node = helper.make_node("Resize", inputs, ["y"], **attrs)
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    unit = helper.make_tensor_value_info("x", 1, [size, 1, 1, size])
    graph = helper.make_graph([node], "resize", [unit], [helper.make_empty_tensor_value_info("y")], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    response = Session(Model(model, {})).run({"x": np.eye(size, dtype=np.float32)[:, None, None]})["y"]
    return np.asarray(response[:, 0, 0].T)
