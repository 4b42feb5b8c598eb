"""onnxruntime's CPU and XNNPACK providers.

uint8 activations and int8 weights with a scale per channel are the fastest kernels on x86; ARM recommends int8 for both
(`quantize_static` of onnxruntime 1.32, "Choosing parameters for CPU inference"), with the lowest code behind a Relu.
What saturates where is told in `records.lanes`. XNNPACK takes int8 for both (or uint8 for both without scales per
channel) and leaves the rest to the CPU provider; a transposed convolution with scales per channel is built as a plain
one there.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnx_cbq.records import ActivationRules, FileRules
from onnx_cbq.targets.target import Demand, Fact, Target

_UNITS = "onnxruntime qdq_selectors.cc NodeGroupSelector::CheckQDQNodes"
_RUNS: Mapping[Fact, Demand] = {
    "axis": Demand("wrong", "onnxruntime qdq_actions.cc: the axis of a weight's scales is dropped"),
    "bias": Demand("slow", "onnxruntime qdq_selectors.cc ConvNodeGroupSelector: bias int32"),
    "bias scale": Demand("wrong", "onnxruntime qdq_actions.cc ConvMoves: the bias is taken as it is"),
    "equal grids": Demand("slow", "onnxruntime qdq_selectors.cc DropQDQNodeGroupSelector: IsQDQPairSupported"),
    "ir": Demand("refused", "onnxruntime model.cc: IR versions that it opens"),
    "loads": Demand("refused", "onnxruntime itself, on the CPU"),
    "float weight": Demand("wrong", "onnxruntime weight_bias_quantization.cc: quantizes it by itself"),
    "one scale": Demand("slow", "onnxruntime qdq_util.cc: scales of activations are scalars"),
    "opset": Demand("refused", "onnxruntime: opsets that it opens"),
    "output": Demand("slow", _UNITS),
    "relu": Demand("slow", "onnxruntime qdq_util.cc IsClipMadeRedundantByQ"),
}
_PAIRS = Demand("wrong", "MLAS QgemmU8X8KernelAvx2, ConvSymKernelAvx2: vpmaddubsw")
_LOWEST = Demand("wrong", "MLAS QgemmS8S8KernelNeon, DepthwiseQConvKernelSize9Neon: smull and smlal")

_X86, _ARM = frozenset(("x86_64",)), frozenset(("aarch64",))

CPU = Target(
    "cpu",
    "onnxruntime on any x86 or ARM processor",
    machines=_X86 | _ARM,
    demands={**_RUNS, "pairs": _PAIRS, "lowest code": _LOWEST},
)
VNNI = Target(
    "vnni",
    "onnxruntime on x86 with AVX-VNNI, AVX512-VNNI or AMX",
    lanes=False,
    needs="vnni",
    machines=_X86,
    demands=_RUNS,
)
ARM64 = Target(
    "arm64",
    "onnxruntime on ARM64",
    activation=ActivationRules(signed=True),
    machines=_ARM,
    demands={
        **_RUNS,
        "lowest code": _LOWEST,
        "weight type": Demand("slow", "MLAS convsym.cpp, qgemm.cpp: symmetric kernels want int8 weights"),
    },
)
XNNPACK = Target(
    "xnnpack",
    "onnxruntime's XNNPACK provider",
    activation=ActivationRules(signed=True),
    per_tensor=frozenset(("ConvTranspose",)),
    file=FileRules(units=True),
    products=frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul")),
    storages=("int8", "packed"),
    highest_opset=21,
    demands={
        **_RUNS,
        "axis": Demand("wrong", "onnxruntime xnnpack/detail/utils.cc GetTensorQuantType: the axis is not read"),
        "lowest code": Demand("wrong", "XNNPACK gemm-microkernel-tester.cc: weights from -127 up"),
        "per tensor": Demand("wrong", "onnxruntime xnnpack/nn/conv_base.cc CreateXnnpackKernel"),
        "requantization": Demand("refused", "XNNPACK convolution-nhwc.c: requantization scale below 256"),
        "same type": Demand("slow", "onnxruntime xnnpack/nn/conv_base.cc GetConvCompType: no uint8 with int8"),
        "scale": Demand("refused", "XNNPACK convolution-nhwc.c: scales finite, normal and positive"),
        "weight zero point": Demand("wrong", "onnxruntime xnnpack/nn/conv_base.cc: it is not handed over"),
    },
)
