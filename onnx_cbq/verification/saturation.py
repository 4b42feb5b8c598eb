"""What integer kernels on this processor do where sums are large."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx

from onnx_cbq.model import Array
from onnx_cbq.runtime import Session


@cache
def saturates() -> bool:
    """Whether integer kernels on this processor add products of uint8 and int8 in 16 bits.

    It is tried: two activations 255 times two weights 127 are then 32,767 instead of 64,770.
    """
    scale, zero = np.array(1, np.float32), np.array(0, np.uint8)
    constants: dict[str, Array] = {
        "scale": scale,
        "zero": zero,
        "w": np.full((4, 4), 127, np.int8),
        "scales": np.ones(4, np.float32),
        "zeros": np.zeros(4, np.int8),
        "step": np.array(1000, np.float32),
    }
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        onnx.helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        onnx.helper.make_node("DequantizeLinear", ["w", "scales", "zeros"], ["v"], axis=1),
        onnx.helper.make_node("MatMul", ["d", "v"], ["p"]),
        onnx.helper.make_node("QuantizeLinear", ["p", "step", "zero"], ["r"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "product",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 4])],
        [onnx.helper.make_tensor_value_info("r", onnx.TensorProto.UINT8, [1, 4])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    found = Session(proto.SerializeToString()).run({"x": np.full((1, 4), 255, np.float32)})["r"]
    return bool((found < 120).any())
