"""Gradients of Softmax and of the normalizations that the standard does not define by simpler operators.

LayerNormalization, GroupNormalization, RMSNormalization and MeanVarianceNormalization are expanded before the walk.
"""

from __future__ import annotations

import numpy as np

from onnx_cbq.gradient.step import Gradients, Rule, Step
from onnx_cbq.model import Array


def softmax(step: Step) -> Gradients:
    """y = softmax(x): dx = y (dy - sum(dy y))."""
    b = step.build
    total = b.reduce_sum(b.op("Mul", step.grad, step.y), [step.axis(-1)])
    return [b.op("Mul", step.y, b.op("Sub", step.grad, total))]


def log_softmax(step: Step) -> Gradients:
    """y = log softmax(x): dx = dy - softmax(x) sum(dy)."""
    b = step.build
    total = b.reduce_sum(step.grad, [step.axis(-1)])
    return [b.op("Sub", step.grad, b.op("Mul", b.op("Exp", step.y), total))]


def batch_norm(step: Step) -> Gradients:
    """y = (x - mean) scale / sqrt(var + eps) + bias with constant statistics: one factor per channel."""
    if step.attrs.get("training_mode", 0):
        raise step.unsupported("statistics of the batch (training_mode)")
    scale, variance = step.required(1).astype(np.float64), step.required(4).astype(np.float64)
    factor = scale / np.sqrt(variance + float(step.attrs.get("epsilon", 1e-5)))
    return [step.build.op("Mul", step.grad, _per_channel(step, factor))]


def instance_norm(step: Step) -> Gradients:
    """y = scale xhat + bias, xhat = (x - mean) / s over each channel's positions, s = sqrt(var + eps).

    dx = scale / s (dy - mean(dy) - xhat mean(dy xhat))
    """
    b = step.build
    axes = range(2, len(step.shape()))
    positions = float(np.prod(step.shape()[2:]))

    def mean(name: str) -> str:
        return b.op("Div", b.reduce_sum(name, axes), b.number(positions))

    centred = b.op("Sub", step.x, mean(step.x))
    variance = b.op("Add", mean(b.op("Mul", centred, centred)), b.number(float(step.attrs.get("epsilon", 1e-5))))
    deviation = b.op("Sqrt", variance)
    xhat = b.op("Div", centred, deviation)
    along = b.op("Mul", xhat, mean(b.op("Mul", step.grad, xhat)))
    inner = b.op("Sub", b.op("Sub", step.grad, mean(step.grad)), along)
    return [b.op("Mul", b.op("Div", inner, deviation), _per_channel(step, step.required(1)))]


def _per_channel(step: Step, values: Array) -> str:
    """Values [C] as a constant [C, 1, ...] that broadcasts along axis 1 of the input."""
    shape = (-1, *(1,) * (len(step.shape()) - 2))
    return step.build.constant(values.reshape(shape).astype(step.build.dtype))


RULES: dict[str, Rule] = {
    "Softmax": softmax,
    "LogSoftmax": log_softmax,
    "BatchNormalization": batch_norm,
    "InstanceNormalization": instance_norm,
}
