"""onnxruntime's QNN provider, for the Hexagon NPU of Qualcomm.

uint8 activations whose range is at least 1e-4 (`quantization/execution_providers/qnn/quant_config.py` of onnxruntime:
MinimumRealRange), scales per channel for Conv on axis 0 alone (`conv_op_builder.cc` IsOpSupported), one scale for
matrices ("QNN does not support per-channel MatMul"), int32 biases of exactly s_x s_w (onnxruntime-qnn #739), every
tensor quantized, and every size fixed (`qnn_model_wrapper.cc` GetOnnxShape). Weights that are unpacked in the graph are
folded before the provider sees it.
"""

from __future__ import annotations

from onnx_cbq.records import ActivationRules, FileRules, PlacementRules
from onnx_cbq.targets.target import Demand, Target

_FLOAT = Demand("slow", "onnxruntime-qnn qnn_ep_utils.cc: no unit of DequantizeLinear, operator and QuantizeLinear")

QNN = Target(
    "qnn",
    "onnxruntime's QNN provider (Qualcomm Hexagon)",
    activation=ActivationRules(least_range=1e-4),
    activation_bits=(8,),
    per_tensor=frozenset(("Gemm", "MatMul", "ConvTranspose")),
    placement=PlacementRules("everywhere", keeping=frozenset(("AveragePool", "Resize")), alike=frozenset(("Concat",))),
    file=FileRules(units=True, sizes=True),
    types=frozenset(("uint8", "uint16")),
    products=frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul")),
    storages=("int8", "packed"),
    shared_values=False,
    highest_opset=21,
    demands={
        "activation type": Demand("slow", "QNN provider's documentation: uint8 and uint16"),
        "axis": Demand("slow", "onnxruntime-qnn conv_op_builder.cc IsOpSupported: Conv axis 0"),
        "bias": Demand("slow", "onnxruntime-qnn qnn_ep_utils.cc: bias int32"),
        "bias scale": Demand("wrong", "onnxruntime-qnn 739: the declared scale is ignored"),
        "equal grids": Demand("slow", "onnxruntime-qnn qnn_ep_utils.cc IsQDQPairSupported"),
        "float activation": _FLOAT,
        "float weight": _FLOAT,
        "ir": Demand("refused", "onnxruntime model.cc: IR versions that it opens"),
        "loads": Demand("refused", "onnxruntime itself, on the CPU"),
        "on integers": _FLOAT,
        "one scale": Demand("slow", "onnxruntime-qnn simple_op_builder.cc ExplicitOpCheck"),
        "opset": Demand("slow", "onnxruntime layout_transformation.cc kMaxSupportedOpset"),
        "output": _FLOAT,
        "per tensor": Demand("slow", "onnxruntime qnn/quant_config.py: QNN does not support per-channel MatMul"),
        "range": Demand("wrong", "onnxruntime qnn/quant_config.py MinimumRealRange"),
        "relu": Demand("wrong", "onnxruntime-qnn 478: any Relu is dropped"),
        "sizes": Demand("refused", "onnxruntime-qnn qnn_model_wrapper.cc GetOnnxShape: no dynamic shapes"),
        "weight zero point": Demand("slow", "QNN provider's documentation: per-channel weights are symmetric"),
    },
)
