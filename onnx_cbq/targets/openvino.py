"""OpenVINO on the CPU.

uint8 activations with any zero point, int8 weights with zero point 0; a residual Add wants both branches quantized
(found with OpenVINO 2026.4 by the primitives of its executed graph). oneDNN's kernels add other pairs of weights in 16
bits than onnxruntime's, which `records.lanes` allows for.
"""

from __future__ import annotations

from onnx_cbq.targets.target import Demand, Target

OPENVINO = Target(
    "openvino",
    "OpenVINO on x86 or ARM",
    products=frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul")),
    highest_opset=21,
    demands={
        "axis": Demand("wrong", "OpenVINO LPT: scales along the output channels"),
        "one scale": Demand("slow", "OpenVINO LPT ConvolutionTransformation: activations per tensor"),
        "opset": Demand("refused", "OpenVINO ONNX frontend, found with 2026.4"),
        "pairs": Demand("wrong", "oneDNN jit_avx2_x8s8s32x, gemm_driver: vpmaddubsw"),
        "weight type": Demand("slow", "OpenVINO LPT supportedPrecisions: weights int8"),
        "weight zero point": Demand("slow", "OpenVINO LPT: weights without zero points"),
    },
)
