"""Which operators may stand on integers, and with which attributes.

An operator goes there only with the attributes whose meaning does not depend on what the codes stand for, and which the
integer kernel computes as the float kernel does. A test tries every attribute of every operator here beside the float
operator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from onnx import NodeProto

from onnx_cbq.model import Model, attributes

_Allows = Callable[[Model, NodeProto], bool]


def _always(_: Model, __: NodeProto) -> bool:
    return True


def _one_output(_: Model, node: NodeProto) -> bool:
    """The second output of MaxPool, the places, has no kernel for integers."""
    return len(node.output) == 1


def _nearest(_: Model, node: NodeProto) -> bool:
    """Others compute between numbers; outside of a cropped image the attribute gives a number, not a code."""
    attrs = attributes(node)
    cropped = attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    return bool(attrs.get("mode", "nearest") == "nearest") and not cropped


def _pads_with_zero(model: Model, node: NodeProto) -> bool:
    """With a constant other than 0 the code that stands for it would have to be on the grid."""
    if attributes(node).get("mode", "constant") != "constant" or len(node.input) < 3 or not node.input[2]:
        return True
    value = model.constant(node.input[2])
    return value is not None and not np.any(value)


def _plain_windows(_: Model, node: NodeProto) -> bool:
    """QLinearAveragePool has no dilations, and counts pads that nobody gave (`ceil_mode`; `auto_pad` in 1.22)."""
    attrs = attributes(node)
    dilated = any(size != 1 for size in attrs.get("dilations", ()))
    reaches = attrs.get("ceil_mode", 0) or attrs.get("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER")
    return not dilated and not (reaches and attrs.get("count_include_pad", 0))


# They move numbers; on integers they do just the same. SpaceToDepth is not among them: 1.22 has no kernel for it.
MOVEMENT: Mapping[str, _Allows] = {
    "Reshape": _always,
    "Flatten": _always,
    "Squeeze": _always,
    "Unsqueeze": _always,
    "Transpose": _always,
    "Slice": _always,
    "MaxPool": _one_output,
    "Gather": _always,
    "Expand": _always,
    "Tile": _always,
    "Split": _always,
    "DepthToSpace": _always,
    "Pad": _pads_with_zero,
    "Resize": _nearest,
}
# They have kernels that take and give integers of different grids.
ARITHMETIC: Mapping[str, _Allows] = {
    "Add": _always,
    "Mul": _always,
    "Concat": _always,
    "AveragePool": _plain_windows,
    "GlobalAveragePool": _always,
    "LeakyRelu": _always,
    "Sigmoid": _always,
}
# The end of a grid may stand for them.
SATURATION = frozenset(("Relu", "Clip"))
# Operators of the other format, whose inputs are codes: where the activation, the weight and their zero points are.
ON_CODES = {
    "QLinearConv": (0, 3, 2),
    "QLinearMatMul": (0, 3, 2),
    "QGemm": (0, 3, 2),
    "ConvInteger": (0, 1, 2),
    "MatMulInteger": (0, 1, 2),
    "MatMulIntegerToFloat": (0, 1, 4),
    "DynamicQuantizeMatMul": (0, 1, -1),
}
