"""What the generator does not use yet, each with what happens if it does."""

from __future__ import annotations

from collections.abc import Mapping

OFF: Mapping[str, str] = {
    "a constant as an output": "a node reads what nothing gives",
    "scores behind Sigmoid": "criteria do not find the class scores",
    "scores behind Identity": "criteria do not find the class scores",
    "scores behind temperature": "criteria do not find the class scores",
    "scores behind Cast": "criteria do not find the class scores",
    "scores behind Reshape": "criteria do not find the class scores",
    "scores behind Neg": "criteria do not find the class scores",
    "scores in front of the pooling": "criteria do not find the class scores",
    "the same scores twice": "criteria do not find the class scores",
    "dynamic tokens": "the length of the samples is written into the graph",
    "com.microsoft FusedConv": "no gradient",
    "com.microsoft FusedMatMul": "no gradient",
    "com.microsoft FusedGemm": "no gradient",
    "com.microsoft Gelu": "no gradient",
    "com.microsoft QuickGelu": "no gradient",
    "com.microsoft FastGelu": "no gradient",
    "com.microsoft BiasGelu": "no gradient",
    "com.microsoft SkipLayerNormalization": "no gradient",
    "LayerNormalization below opset 17": "onnx's checker does not know it",
    "HardSigmoid": "a default attribute becomes a Constant without a value",
    "ThresholdedRelu": "a default attribute becomes a Constant without a value",
    "Shrink": "a default attribute becomes a Constant without a value",
    "MeanVarianceNormalization": "a default attribute becomes a Constant without a value",
    "all in float16": "float and float16 meet",
    "all in double": "float and double meet",
    "Cast there and back": "float and float16 meet",
}
