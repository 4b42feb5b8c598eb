"""Every gradient rule, by operator."""

from __future__ import annotations

from onnx_cbq.gradient import (
    arithmetic,
    conv,
    elementwise,
    linear,
    movement,
    normalization,
    pooling,
    reduction,
    resize,
)
from onnx_cbq.gradient.site import Rule

RULES: dict[str, Rule] = {
    **arithmetic.RULES,
    **conv.RULES,
    **elementwise.RULES,
    **linear.RULES,
    **movement.RULES,
    **normalization.RULES,
    **pooling.RULES,
    **reduction.RULES,
    **resize.RULES,
}

# Constant almost everywhere, or not a number that can be differentiated: nothing flows back through these.
NO_GRADIENT = frozenset(
    ("ArgMax", "ArgMin", "Ceil", "ConstantOfShape", "Equal", "Floor", "Greater", "GreaterOrEqual", "IsInf", "IsNaN")
    + ("Less", "LessOrEqual", "And", "Not", "Or", "Xor", "NonZero", "OneHot", "Range", "Round", "Shape", "Sign", "Size")
)
