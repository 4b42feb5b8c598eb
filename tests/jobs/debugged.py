"""A small net of convolutions, and files made of it by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from onnx_cbq import CalibrationSet
from onnx_cbq.model import Array
from tests.graphs import make_model, node
from tests.qdq import grid_of, quantized_by_hand

CLASSES = 5


def draw(seed: int, *shape: int) -> Array:
    random = np.random.default_rng(seed)
    return np.asarray(random.standard_normal(shape) / np.sqrt(np.prod(shape[1:])), np.float32)


X = 4 * draw(0, 32, 3, 6, 6)
DATA = CalibrationSet.from_arrays(X, np.arange(len(X)) % CLASSES)
WEIGHTS = {"w": draw(1, 8, 3, 3, 3), "v": draw(2, 8, 8, 3, 3), "g": draw(3, CLASSES, 8)}
BIASES = {"b": 0.1 * draw(4, 8), "c": 0.1 * draw(5, 8), "d": 0.1 * draw(6, CLASSES)}


def net(*, batch: int | str = "N", name: str = "x", weights: dict[str, Array] | None = None) -> onnx.ModelProto:
    """Two convolutions with a Relu, and a Gemm."""
    nodes = [
        node("Conv", f"{name} w b", "p"),
        node("Relu", "p", "r"),
        node("Conv", "r v c", "q"),
        node("Relu", "q", "s"),
        node("GlobalAveragePool", "s", "m"),
        node("Flatten", "m", "f"),
        node("Gemm", "f g d", transB=1),
    ]
    return make_model(nodes, {name: [batch, 3, 6, 6]}, ["y"], {**WEIGHTS, **BIASES, **(weights or {})}, opset=17)


def grids(model: onnx.ModelProto, tensors: Sequence[str]) -> dict[str, tuple[float, int]]:
    """From the least to the greatest number of each tensor; x is what is read."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    name = model.graph.input[0].name
    inner = [tensor for tensor in tensors if tensor != name]
    copy.graph.output.extend(helper.make_empty_tensor_value_info(tensor) for tensor in inner)
    session = ort.InferenceSession(copy.SerializeToString(), providers=["CPUExecutionProvider"])
    size = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or len(X)
    parts = [
        session.run(inner, {name: np.resize(X[i : i + size], (size, *X.shape[1:]))}) for i in range(0, len(X), size)
    ]
    values = {tensor: np.concatenate(one) for tensor, one in zip(inner, zip(*parts, strict=True), strict=True)}
    return {tensor: grid_of(X if tensor == name else values[tensor]) for tensor in tensors}


def file_of(model: onnx.ModelProto, **more: object) -> onnx.ModelProto:
    name = model.graph.input[0].name
    return quantized_by_hand(model, grids(model, [name, "r", "f"]), **more)  # type: ignore[arg-type]
