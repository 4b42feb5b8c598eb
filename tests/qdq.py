"""Quantized files written by hand, as other tools write them: every number in them is known to the test."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnx_cbq.model import Array

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def grid_of(values: Array, bits: int = 8) -> tuple[float, int]:
    """Scale and zero point of an unsigned grid from the least to the greatest of some values, 0 among them."""
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    scale = max(high - low, 1e-9) / ((1 << bits) - 1)
    return float(np.float32(scale)), int(np.rint(-low / np.float32(scale)))


def on_grid(x: Array, scale: float, zero: int, top: int = 255) -> Array:
    """What QuantizeLinear and DequantizeLinear make of x."""
    return np.asarray((np.clip(np.rint(x / np.float32(scale)) + zero, 0, top) - zero) * np.float32(scale), np.float32)


def coded(weight: Array, bits: int = 8) -> tuple[Array, float]:
    """A weight on a symmetric grid of one scale: the codes, and the scale."""
    top = (1 << (bits - 1)) - 1
    scale = float(np.float32(np.abs(weight).max() / top))
    return np.rint(weight / np.float32(scale)).clip(-top, top).astype(np.int8), scale


def rounded_weight(weight: Array, bits: int = 8) -> Array:
    """What becomes of a weight in the file."""
    codes, scale = coded(weight, bits)
    return np.asarray(codes * np.float32(scale), np.float32)


def quantized_by_hand(
    proto: onnx.ModelProto,
    grids: Mapping[str, tuple[float, int]],
    *,
    bits: int = 8,
    larger: Mapping[str, float] | None = None,
    left_float: Collection[str] = (),
) -> onnx.ModelProto:
    """The model with grids in front of its products.

    Args:
        proto: a float model whose weights are initializers.
        grids: scale and zero point of the tensors that have one, uint8.
        bits: of the weights.
        larger: weights whose scale is so many times what it should be.
        left_float: weights that stay as they are.
    """
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    values = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    constants: dict[str, Array] = {}
    nodes: list[onnx.NodeProto] = []
    made: set[str] = set()

    def grid(tensor: str, scale: float, zero: int, kind: type) -> dict[str, Array]:
        return {f"{tensor}_scale": np.array(scale, np.float32), f"{tensor}_zero": np.array(zero, kind)}

    def dequantized(tensor: str, codes: str) -> str:
        if tensor not in made:
            names = [codes, f"{tensor}_scale", f"{tensor}_zero"]
            nodes.append(helper.make_node("DequantizeLinear", names, [f"{tensor}_dq"], name=f"{tensor}_DQ"))
        made.add(tensor)
        return f"{tensor}_dq"

    for node in model.graph.node:
        if node.op_type in PRODUCTS:
            data, weight = node.input[0], node.input[1]
            if data in grids:
                scale, zero = grids[data]
                constants |= grid(data, scale, zero, np.uint8)
                if data not in made:
                    names = [data, f"{data}_scale", f"{data}_zero"]
                    nodes.append(helper.make_node("QuantizeLinear", names, [f"{data}_q"], name=f"{data}_Q"))
                node.input[0] = dequantized(data, f"{data}_q")
            if weight not in left_float:
                codes, scale = coded(values[weight], bits)
                scale *= (larger or {}).get(weight, 1.0)
                constants |= {weight: codes, **grid(weight, scale, 0, np.int8)}
                node.input[1] = dequantized(weight, weight)
        nodes.append(node)
    kept = [t for t in model.graph.initializer if t.name not in constants]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend([*kept, *tensors])
    return model
