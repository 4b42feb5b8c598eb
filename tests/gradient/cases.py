"""One line per situation that a gradient rule has to get right: operator, shapes, attributes, constants.

The first axis of the first input is the batch of 3 samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from onnx_cbq.model import Array
from tests.graphs import make_model, node

BATCH = 3
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """`inputs` are differentiated. Names in `constants` follow them in the node's input list; None is omitted."""

    operator: str
    inputs: tuple[Shape, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    constants: tuple[Array | None, ...] = ()
    low: float = -2.0
    high: float = 2.0
    opset: int = 18
    outputs: int = 1
    note: str = ""
    constants_first: bool = False
    fixed_batch: bool = False

    @property
    def id(self) -> str:
        parts = [self.operator, "x".join(map(str, self.inputs[0])), self.note]
        parts += [f"{name}={value}" for name, value in self.attributes.items()]
        return "-".join(part for part in parts if part).replace(" ", "")


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def floats(*shape: int, seed: int = 7) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def number(value: float) -> Array:
    return np.array(value, np.float32)


X2 = (3, 4)
IMAGE = (3, 4, 7, 6)
SIGNAL = (3, 4, 9)
VOLUME = (3, 2, 4, 5, 4)
CHANNELS = (floats(4, seed=1), floats(4, seed=2))

ELEMENTWISE = [
    Case("Relu", (X2,)),
    Case("LeakyRelu", (X2,), {"alpha": 0.2}),
    Case("PRelu", (X2,), constants=(np.array([0.1, -0.2, 0.3, 0.5], np.float32),)),
    Case("PRelu", (IMAGE, (4, 1, 1)), note="slope"),
    Case("Clip", (X2,), constants=(number(-0.5), number(0.8))),
    Case("Clip", (X2,), constants=(None, number(0.8)), note="no-minimum"),
    Case("Clip", (X2,), constants=(number(0.1),), note="no-maximum"),
    Case("Elu", (X2,), {"alpha": 0.7}),
    Case("Elu", ((3, 2),), low=90.0, high=100.0, note="exp-overflows"),
    Case("Celu", (X2,), {"alpha": 1.5}),
    Case("Selu", (X2,)),
    Case("Sigmoid", (X2,)),
    Case("HardSigmoid", (X2,), {"alpha": 0.3, "beta": 0.45}),
    Case("HardSigmoid", (X2,), {"alpha": 1 / 6}, note="beta-at-its-default"),
    Case("HardSigmoid", (X2,), note="defaults"),
    Case("HardSwish", (X2,), low=-4.0, high=4.0),
    Case("Mish", (X2,)),
    Case("Softplus", (X2,)),
    Case("Softplus", ((3, 2),), low=90.0, high=100.0, note="exp-overflows"),
    Case("Softsign", (X2,)),
    Case("ThresholdedRelu", (X2,), {"alpha": 0.4}),
    Case("ThresholdedRelu", ((3, 40),), low=-3.0, high=3.0, note="defaults"),
    Case("Shrink", ((3, 40),), low=-3.0, high=3.0, note="defaults"),
    Case("Tanh", (X2,)),
    Case("Erf", (X2,)),
    Case("Gelu", (X2,), opset=20),
    Case("Gelu", (X2,), {"approximate": "tanh"}, opset=20),
    Case("Exp", (X2,)),
    Case("Log", (X2,), low=0.3),
    Case("Sqrt", (X2,), low=0.3),
    Case("Abs", (X2,)),
    Case("Neg", (X2,)),
    Case("Reciprocal", (X2,), low=0.4),
    Case("Sin", (X2,)),
    Case("Cos", (X2,)),
    Case("Pow", (X2,), constants=(number(3.0),), low=0.2),
    Case("Pow", (X2,), constants=(number(2.0),), note="negative-base"),
    Case("Pow", (X2,), constants=(np.array([2, 3, 1, 2], np.int64),), note="integer-exponent"),
    Case("Pow", (X2, (1, 4)), low=0.3, note="exponent"),
    Case("Cast", (X2,), {"to": "float"}),
]

ARITHMETIC = [
    *(Case(op, (X2, X2), low=0.3) for op in ("Add", "Sub", "Mul", "Div", "Min", "Max")),
    *(Case(op, (IMAGE, (4, 1, 1)), low=0.3, note="channels") for op in ("Add", "Sub", "Mul", "Div", "Min", "Max")),
    *(Case(op, ((3, 1, 4), (3, 2, 1)), low=0.3, note="both-widened") for op in ("Add", "Sub", "Mul", "Div", "Max")),
    Case("Mul", (X2,), constants=(floats(2, 1, 4),), note="rank-grows"),
    Case("Sub", (X2,), constants=(floats(4),), note="constant-first", constants_first=True),
    Case("Max", (X2, X2, (1, 4))),
    Case("Sum", (X2, (4,), X2)),
    Case("Mean", (X2, (4,))),
    Case("Min", (X2,)),
]

CONVOLUTIONS = [
    Case("Conv", (IMAGE,), {"pads": [1, 1, 1, 1]}, (floats(5, 4, 3, 3), floats(5))),
    Case("Conv", (IMAGE,), {"strides": [2, 2]}, (floats(5, 4, 3, 3),)),
    Case("Conv", (IMAGE,), {"strides": [2, 3], "pads": [1, 0, 1, 2]}, (floats(5, 4, 3, 2),), note="uneven"),
    Case("Conv", (IMAGE,), {"strides": [3, 3]}, (floats(2, 4, 2, 2),), note="stride-over-kernel"),
    Case("Conv", (IMAGE,), {"dilations": [2, 1], "pads": [2, 1, 1, 0]}, (floats(5, 4, 3, 3),)),
    Case("Conv", (IMAGE,), {"group": 2, "pads": [1, 1, 1, 1]}, (floats(6, 2, 3, 3),)),
    Case("Conv", (IMAGE,), {"group": 4, "strides": [2, 2], "pads": [1, 1, 1, 1]}, (floats(4, 1, 3, 3),)),
    Case("Conv", (IMAGE,), {"group": 4}, (floats(8, 1, 3, 3),), note="depth-multiplier"),
    Case("Conv", (IMAGE,), {"pads": [3, 3, 3, 3]}, (floats(2, 4, 2, 2),), note="pad-over-kernel"),
    Case("Conv", (IMAGE,), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, (floats(2, 4, 3, 2),)),
    Case("Conv", (IMAGE,), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, (floats(2, 4, 3, 2),)),
    Case("Conv", (IMAGE,), {"auto_pad": "VALID", "strides": [2, 1]}, (floats(2, 4, 3, 3),)),
    Case("Conv", (IMAGE,), {}, (floats(5, 4, 1, 1),), note="1x1"),
    Case("Conv", (SIGNAL,), {"strides": [2], "pads": [2, 1], "dilations": [2]}, (floats(3, 4, 3),)),
    Case("Conv", (VOLUME,), {"strides": [1, 2, 1], "pads": [1, 0, 1, 0, 1, 1]}, (floats(3, 2, 2, 3, 2),)),
    Case("Conv", (IMAGE, (5, 4, 3, 3)), {"pads": [1, 1, 1, 1]}, (floats(5),), note="weight"),
    Case("Conv", (IMAGE, (5, 4, 3, 2)), {"strides": [2, 3], "pads": [1, 0, 1, 2]}, note="weight-uneven"),
    Case("Conv", (IMAGE, (2, 4, 2, 2)), {"strides": [3, 3]}, note="weight-stride-over-kernel"),
    Case("Conv", (IMAGE, (5, 4, 3, 3)), {"dilations": [2, 1], "pads": [2, 1, 1, 0]}, note="weight"),
    Case("Conv", (IMAGE, (6, 2, 3, 3)), {"group": 2, "strides": [2, 1], "pads": [1, 1, 1, 1]}, note="weight"),
    Case("Conv", (IMAGE, (4, 1, 3, 3)), {"group": 4, "strides": [2, 2], "pads": [1, 1, 1, 1]}, note="weight"),
    Case(
        "Conv",
        (IMAGE, (4, 2, 3, 3)),
        {"group": 2, "strides": [1, 2], "dilations": [2, 1], "pads": [2, 0, 1, 1]},
        note="weight-dilated",
    ),
    Case("Conv", (IMAGE, (2, 4, 3, 2)), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, note="weight"),
    Case("Conv", (IMAGE, (5, 4, 1, 1)), {}, note="weight-1x1"),
    Case("Conv", (IMAGE, (5, 4, 1, 1)), {"strides": [2, 2]}, note="weight-1x1"),
    Case("Conv", (IMAGE, (16, 4, 3, 3)), {"strides": [2, 2]}, note="weight-few-positions"),
    Case("Conv", (SIGNAL, (2, 4, 3)), {"strides": [2], "pads": [2, 1], "dilations": [2]}, note="weight"),
    Case("Conv", (VOLUME, (4, 2, 2, 3, 2)), {"strides": [1, 2, 1], "pads": [1, 0, 1, 0, 1, 1]}, note="weight"),
    Case("ConvTranspose", (IMAGE,), {"strides": [2, 2], "pads": [1, 0, 0, 1]}, (floats(4, 3, 3, 3), floats(3))),
    Case("ConvTranspose", (IMAGE,), {"strides": [2, 2], "output_padding": [1, 1]}, (floats(4, 3, 3, 3),)),
    Case("ConvTranspose", (IMAGE,), {"group": 2, "strides": [2, 1], "dilations": [1, 2]}, (floats(4, 3, 2, 3),)),
    Case("ConvTranspose", (IMAGE,), {"group": 4, "strides": [3, 3]}, (floats(4, 1, 2, 2),), note="depthwise"),
    Case("ConvTranspose", (IMAGE,), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}, (floats(4, 3, 3, 3),)),
    Case("ConvTranspose", (IMAGE,), {"strides": [2, 2], "output_shape": [14, 13]}, (floats(4, 3, 3, 3),)),
    Case("ConvTranspose", (SIGNAL,), {"strides": [3]}, (floats(4, 2, 4),)),
    Case("ConvTranspose", (VOLUME,), {"strides": [2, 1, 2]}, (floats(2, 2, 2, 2, 3),)),
]

MATRICES = [
    Case("Gemm", (X2,), {"transB": 1}, (floats(5, 4), floats(5))),
    Case("Gemm", (X2,), {"alpha": 0.5, "beta": 2.0}, (floats(4, 5), floats(5))),
    Case("Gemm", (X2, (4, 5), (3, 5)), {"alpha": 0.5, "beta": 2.0}, note="all-operands"),
    Case("Gemm", (X2, (5, 4), (5,)), {"transB": 1}, note="all-operands"),
    Case("Gemm", ((3, 4), (3, 5)), {"transA": 1, "alpha": 0.7}),
    Case("Gemm", ((3, 4), (5, 3)), {"transA": 1, "transB": 1}, fixed_batch=True),
    Case("MatMul", (X2,), constants=(floats(4, 5),)),
    Case("MatMul", ((3, 2, 4),), constants=(floats(4, 5),), note="tokens"),
    Case("MatMul", ((3, 4, 2),), constants=(floats(5, 4),), note="weight-left", constants_first=True),
    Case("MatMul", ((3, 2, 4), (3, 4, 5)), note="batched"),
    Case("MatMul", ((3, 1, 2, 4), (2, 4, 5)), note="broadcast"),
    Case("MatMul", ((3, 2, 4), (4, 5)), note="weight"),
    Case("MatMul", ((3, 2, 2, 4), (4, 5)), note="weight"),
    Case("MatMul", ((3, 2, 4), (4,)), note="vector-right"),
    Case("MatMul", ((3, 2, 4),), constants=(floats(2),), note="vector-left", constants_first=True),
    Case("Einsum", ((3, 2, 4), (3, 4, 5)), {"equation": "bij,bjk->bik"}),
    Case("Einsum", ((3, 2, 4), (3, 5, 4)), {"equation": "bhd, bkd -> bhk"}),
    Case("Einsum", ((3, 2, 4, 5), (3, 2, 5, 6)), {"equation": "...ij,...jk->...ik"}),
    Case("Einsum", (X2,), {"equation": "ij->ji"}),
    Case("Einsum", ((3, 2, 4),), {"equation": "bij->b"}),
    Case("Einsum", (X2, (5, 4)), {"equation": "ij,kj"}),
]

NORMALIZATIONS = [
    Case("Softmax", ((3, 2, 4),)),
    Case("Softmax", ((3, 4, 2),), {"axis": 1}),
    Case("LogSoftmax", ((3, 2, 4),)),
    Case("LogSoftmax", ((3, 4, 2),), {"axis": 1}),
    Case("BatchNormalization", (IMAGE,), {"epsilon": 0.01}, (*CHANNELS, floats(4, seed=3), np.abs(floats(4, seed=4)))),
    Case("BatchNormalization", (X2,), {}, (*CHANNELS, floats(4, seed=3), np.abs(floats(4, seed=4)))),
    Case("LayerNormalization", ((3, 2, 4),), {}, CHANNELS, opset=18),
    Case("LayerNormalization", ((3, 2, 4),), {"axis": 1, "epsilon": 0.1}, (floats(2, 4),)),
    Case("InstanceNormalization", (IMAGE,), {}, CHANNELS),
    Case("InstanceNormalization", (SIGNAL,), {"epsilon": 0.1}, CHANNELS),
    Case("GroupNormalization", (IMAGE,), {"num_groups": 2}, CHANNELS, opset=21),
    Case("GroupNormalization", (IMAGE,), {"num_groups": 2}, (floats(2, seed=1), floats(2, seed=2)), note="per-group"),
    Case("RMSNormalization", ((3, 2, 4),), {}, (floats(4),), opset=23),
]

POOLING = [
    Case("MaxPool", (IMAGE,), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    Case("MaxPool", (IMAGE,), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, note="overlapping"),
    Case("MaxPool", (IMAGE,), {"kernel_shape": [3, 2], "dilations": [2, 1]}, note="overlapping"),
    Case("MaxPool", (IMAGE,), {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    Case("MaxPool", (IMAGE,), {"kernel_shape": [2, 2], "strides": [2, 2]}, outputs=2, note="indices"),
    Case("MaxPool", (SIGNAL,), {"kernel_shape": [3], "strides": [2], "auto_pad": "SAME_UPPER"}),
    Case("AveragePool", (IMAGE,), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    Case("AveragePool", (IMAGE,), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    Case("AveragePool", (IMAGE,), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    Case("AveragePool", (IMAGE,), {"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1}),
    Case("AveragePool", (SIGNAL,), {"kernel_shape": [4], "strides": [3], "auto_pad": "SAME_LOWER"}),
    Case("AveragePool", (SIGNAL,), {"kernel_shape": [1], "strides": [4], "auto_pad": "SAME_UPPER"}, note="gaps"),
    Case("AveragePool", (VOLUME,), {"kernel_shape": [2, 2, 2], "strides": [2, 1, 2]}),
    Case("AveragePool", (IMAGE,), {"kernel_shape": [2, 2], "dilations": [2, 2]}, opset=19),
    Case("LpPool", (IMAGE,), {"kernel_shape": [2, 2], "strides": [2, 2], "p": 2}),
    Case("LpPool", (IMAGE,), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "p": 3}),
    Case("GlobalAveragePool", (IMAGE,)),
    Case("GlobalAveragePool", (SIGNAL,)),
    Case("GlobalMaxPool", (IMAGE,)),
    Case("GlobalMaxPool", ((3, 2, 5, 3),)),
]

REDUCTIONS = [
    *(Case(op, (IMAGE,), {"keepdims": 0}, (ints(2, 3),)) for op in ("ReduceMean", "ReduceSum", "ReduceMax")),
    *(Case(op, (IMAGE,), {}, (ints(-1),)) for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin")),
    Case("ReduceSum", (IMAGE,), {"noop_with_empty_axes": 1}),
    Case("ReduceSumSquare", (IMAGE,), {"keepdims": 0}, (ints(2, 3),)),
    Case("ReduceL1", (IMAGE,), {"keepdims": 0}, (ints(2, 3),)),
    Case("ReduceL2", (IMAGE,), {}, (ints(1),)),
    Case("ReduceLogSumExp", (X2,), {}, (ints(1),)),
]

MOVEMENT = [
    Case("Reshape", (IMAGE,), {}, (ints(-1, 4, 42),)),
    Case("Flatten", (IMAGE,)),
    Case("Squeeze", ((3, 1, 4),), {}, (ints(1),)),
    Case("Unsqueeze", (X2,), {}, (ints(1, 3),)),
    Case("Transpose", ((3, 2, 4),), {"perm": [0, 2, 1]}),
    Case("Transpose", ((3, 2, 4),), {"perm": [2, 0, 1]}),
    Case("Concat", (X2, (3, 2)), {"axis": 1}),
    Case("Concat", ((3, 2, 4), (3, 2, 1)), {"axis": -1}),
    Case("Split", ((3, 7),), {"axis": 1}, (ints(2, 5),), outputs=2),
    Case("Split", ((3, 6),), {"axis": -1, "num_outputs": 3}, outputs=3),
    Case("Slice", (IMAGE,), {}, (ints(1, 0), ints(6, 5), ints(2, 3), ints(2, 1)), note="steps"),
    Case("Slice", (IMAGE,), {}, (ints(0, 0), ints(1000, 1000), ints(2, 3), ints(2, 2)), note="every-second"),
    Case("Slice", (SIGNAL,), {}, (ints(-1), ints(-1000), ints(2), ints(-2)), note="backwards"),
    Case("Slice", (SIGNAL,), {}, (ints(-4), ints(-1), ints(-1)), note="from-the-end"),
    Case("Slice", (IMAGE,), {}, (ints(1), ints(2), ints(1)), note="one-channel"),
    Case("Gather", (IMAGE,), {"axis": 1}, (ints(2, 0),)),
    Case("Gather", (IMAGE,), {"axis": 2}, (ints(0, 3, 3, -1),), note="twice"),
    Case("Gather", (SIGNAL,), {"axis": 2}, (np.array(2, np.int64),), note="scalar"),
    Case("Gather", (SIGNAL,), {"axis": 2}, (np.array([[0, 1], [1, 5]], np.int64),), note="matrix"),
    Case("Pad", (IMAGE,), {}, (ints(0, 1, 2, 0, 0, 3, 0, 1),)),
    Case("Pad", (IMAGE,), {}, (ints(0, 0, -1, 1, 0, 0, -2, 0),), note="crop"),
    Case("Pad", (IMAGE,), {"mode": "reflect"}, (ints(0, 0, 2, 1, 0, 0, 1, 3),)),
    Case("Pad", (IMAGE,), {"mode": "edge"}, (ints(0, 0, 2, 1, 0, 0, 1, 3),)),
    Case("Pad", (IMAGE,), {"mode": "wrap"}, (ints(0, 0, 2, 1, 0, 0, 1, 3),), opset=19),
    Case("Pad", (IMAGE,), {}, (ints(1, 2), number(0.5), ints(-1)), note="axes"),
    Case("Expand", ((3, 1, 4),), {}, (ints(1, 5, 4),)),
    Case("Expand", ((3, 1),), {}, (ints(2, 1, 4),), note="rank-grows"),
    Case("Tile", ((3, 2, 4),), {}, (ints(1, 3, 2),)),
    Case("Identity", (X2,)),
    Case("Dropout", (X2,)),
    Case("DepthToSpace", ((3, 8, 2, 3),), {"blocksize": 2}),
    Case("DepthToSpace", ((3, 8, 2, 3),), {"blocksize": 2, "mode": "CRD"}),
    Case("SpaceToDepth", ((3, 2, 4, 6),), {"blocksize": 2}),
    Case("Where", (X2, (4,)), {}, (np.array([True, False, True, False]),), constants_first=True),
    Case("CastLike", (X2,), {}, (number(0),)),
]

RESIZE = [
    Case("Resize", (IMAGE,), {"mode": "nearest"}, (None, np.array([1, 1, 2, 3], np.float32))),
    Case(
        "Resize",
        (IMAGE,),
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        (None, np.array([1, 1, 2, 2], np.float32)),
    ),
    Case("Resize", (IMAGE,), {"mode": "linear"}, (None, np.array([1, 1, 2, 1.5], np.float32))),
    Case("Resize", (IMAGE,), {"mode": "linear"}, (None, np.array([1, 1, 0.7, 1.1], np.float32)), note="scales-rounded"),
    Case("Resize", (IMAGE,), {"mode": "linear"}, (None, None, ints(3, 4, 5, 9)), fixed_batch=True),
    Case(
        "Resize",
        (IMAGE,),
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        (None, None, ints(3, 4, 10, 12)),
        fixed_batch=True,
    ),
    Case("Resize", (IMAGE,), {"mode": "cubic"}, (None, np.array([1, 1, 2, 2], np.float32))),
]

CASES = [
    *ELEMENTWISE,
    *ARITHMETIC,
    *CONVOLUTIONS,
    *MATRICES,
    *NORMALIZATIONS,
    *POOLING,
    *REDUCTIONS,
    *MOVEMENT,
    *RESIZE,
]
# Constants that only the backward graph differentiates: training takes them for settings.
SETTINGS = [Case("Clip", (X2, (), ()), note="between")]


def case_model(case: Case, operands: dict[str, Array]) -> onnx.ModelProto:
    """The case as a float32 model with output `y`; `operands` become constants instead of graph inputs."""
    inputs = [f"x{i}" for i in range(len(case.inputs))]
    extra = {f"c{i}": value for i, value in enumerate(case.constants) if value is not None}
    names = ["_" if value is None else f"c{i}" for i, value in enumerate(case.constants)]
    order = names + inputs if case.constants_first else inputs + names
    outputs = ["y"] if case.outputs == 1 else [f"y{i}" for i in range(case.outputs)]
    attributes = dict(case.attributes)
    if case.operator == "Cast":
        attributes["to"] = TensorProto.FLOAT
    nodes = [node(case.operator, " ".join(order), " ".join(outputs), **attributes)]
    if case.operator == "Split":
        nodes.append(node("Concat", " ".join(outputs[::-1]), "y", axis=1))
    elif case.outputs > 1:
        nodes.append(node("Neg", outputs[0], "y"))
    batch: int | str = BATCH if case.fixed_batch else "N"
    shapes = {
        name: [batch, *shape[1:]] if shape[:1] == (BATCH,) else list(shape)
        for name, shape in zip(inputs, case.inputs, strict=True)
        if name not in operands
    }
    return make_model(nodes, shapes, ["y"], extra | operands, opset=case.opset)
