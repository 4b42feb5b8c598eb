"""TensorRT, explicit quantization.

int8 with zero point 0 for everything (onnx-tensorrt `onnxOpImporters.cpp`, QuantDequantLinearHelper: shiftIsAllZeros),
biases in float (an int32 DequantizeLinear is refused), the output of a layer unquantized, and of a residual Add only
the other branch quantized, so that the layer is fused with what follows (TensorRT developer guide, "Explicit
quantization"; Model-Optimizer `modelopt/onnx/quantization/graph_utils.py`). No operator may work on int8 itself. A
transposed convolution has no agreed axis for scales per channel (NVIDIA/TensorRT #1694, #2380). Opset 20 since 10.0.
"""

from __future__ import annotations

from onnx_cbq.records import ActivationRules, FileRules, PlacementRules
from onnx_cbq.targets.target import Demand, Target

_BOTH = Demand("slow", "Model-Optimizer insertion_points.py: inputs and weights together")
_SHIFT = Demand("refused", "onnx-tensorrt QuantDequantLinearHelper: shiftIsAllZeros")

TENSORRT = Target(
    "tensorrt",
    "TensorRT 10 and later",
    activation=ActivationRules(signed=True, symmetric=True),
    activation_bits=(0, 8),
    per_tensor=frozenset(("ConvTranspose",)),
    placement=PlacementRules("operands"),
    file=FileRules(bias="float", units=True, attributes=True),
    types=frozenset(("int8",)),
    products=frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul")),
    storages=("int8",),
    shared_values=False,
    highest_opset=20,
    demands={
        "activation type": Demand("refused", "onnx-tensorrt QuantDequantLinearHelper: int8"),
        "attributes": Demand("refused", "onnx-tensorrt convMultiInput before 10.4: kernel_shape"),
        "axis": Demand("wrong", "Model-Optimizer ort_utils.py QDQOpTypePerChannelSupportToAxis"),
        "bias": Demand("refused", "NVIDIA/TensorRT 3360, onnx-tensorrt 850: no int32 DequantizeLinear"),
        "domain": Demand("refused", "onnx-tensorrt: operators of the standard"),
        "float activation": _BOTH,
        "float weight": _BOTH,
        "on integers": Demand("refused", "onnx-tensorrt operators.md: no operator on int8 tensors"),
        "one scale": Demand("refused", "TensorRT NvInfer.h IQuantizeLayer: activations per tensor"),
        "opset": Demand("refused", "onnx-tensorrt operators.md: opset 20 since 10.0"),
        "per tensor": Demand("wrong", "NVIDIA/TensorRT 1694, 2380: no agreed axis for ConvTranspose"),
        "residual": Demand("slow", "Model-Optimizer graph_utils.py build_non_residual_input_map"),
        "scale": Demand("refused", "onnx-tensorrt QuantDequantLinearHelper: scaleAllPositive"),
        "weight type": Demand("refused", "onnx-tensorrt QuantDequantLinearHelper: int8"),
        "weight zero point": _SHIFT,
        "zero point": _SHIFT,
        "zero point written": Demand("wrong", "onnx-tensorrt QuantDequantLinearHelper: int8 where none is written"),
    },
)
