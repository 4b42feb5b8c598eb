"""AMD's Vitis AI provider on Ryzen AI, XINT8.

int8 with zero point 0 and a power of two as the one scale of every tensor, weights and biases among them (AMD Quark
`spec.py` XInt8Spec, `npu_cnn_quantizer.py`: "Only per-tensor"), pools and Concat on one grid
(`postprocess/refinement/refine.py`), every size fixed and one sample at a time, opset 17 (Ryzen AI documentation,
`modelrun.rst`), and a Conv whose attributes are all written out.
"""

from __future__ import annotations

from onnx_cbq.records import ActivationRules, FileRules, PlacementRules
from onnx_cbq.targets.target import Demand, Target

_SPEC = Demand("slow", "AMD Quark spec.py XInt8Spec: everything in int8")
_TENSOR = Demand("slow", "AMD Quark npu_cnn_quantizer.py: Only per-tensor")

VITIS = Target(
    "vitis",
    "AMD Ryzen AI (XINT8)",
    activation=ActivationRules(signed=True, symmetric=True, power_of_two=True),
    activation_bits=(8,),
    power_of_two=True,
    per_tensor=frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul")),
    placement=PlacementRules(
        "everywhere", keeping=frozenset(("AveragePool", "GlobalAveragePool")), alike=frozenset(("Concat",))
    ),
    file=FileRules(bias="int8", units=True, sizes=True, attributes=True),
    types=frozenset(("int8",)),
    products=frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul")),
    storages=("int8",),
    shared_values=False,
    highest_opset=21,
    demands={
        "activation type": Demand("wrong", "AMD Quark spec.py XInt8Spec: int8"),
        "attributes": Demand("refused", "xcompiler: Attr stride has type REQUIRED"),
        "axis": _TENSOR,
        "bias": Demand("wrong", "AMD Quark Int32Bias: int8 with a power of two of its own"),
        "domain": Demand("slow", "Ryzen AI: Q/DQ of com.microsoft run on the CPU"),
        "equal grids": Demand("slow", "AMD Quark refine.py QuantPosManager"),
        "float activation": _SPEC,
        "float weight": _SPEC,
        "ir": Demand("refused", "onnxruntime model.cc: IR versions that it opens"),
        "loads": Demand("refused", "onnxruntime itself, on the CPU"),
        "on integers": _SPEC,
        "opset": Demand("slow", "Ryzen AI documentation modelrun.rst: opset 17 is recommended, later ones are tried"),
        "one grid": Demand("slow", "AMD Quark refine.py QuantPosManager: align_concat"),
        "one scale": _TENSOR,
        "output": _SPEC,
        "per tensor": _TENSOR,
        "power of two": Demand("wrong", "AMD Quark quant_utils.py pos2scale"),
        "samples": Demand("wrong", "Ryzen AI documentation getstartex.rst: batch 1"),
        "sizes": Demand("refused", "Ryzen AI documentation getstartex.rst: static shapes"),
        "weight type": Demand("wrong", "AMD Quark spec.py XInt8Spec: int8"),
        "weight zero point": Demand("wrong", "AMD Quark spec.py XInt8Spec: symmetric"),
        "zero point": Demand("wrong", "AMD Quark spec.py XInt8Spec: symmetric"),
    },
)
