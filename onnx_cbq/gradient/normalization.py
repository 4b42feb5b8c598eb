"""Gradients of Softmax and of the normalizations that the standard does not define by simpler operators.

LayerNormalization, GroupNormalization, RMSNormalization and MeanVarianceNormalization are expanded before the walk.
"""

from __future__ import annotations

import numpy as np

from onnx_cbq.gradient.site import Gradients, Rule, Site
from onnx_cbq.model import Array


def softmax(site: Site) -> Gradients:
    """y = softmax(x): dx = y (dy - sum(dy y))."""
    b = site.build
    total = b.reduce_sum(b.op("Mul", site.grad, site.y), [site.axis(-1)])
    return [b.op("Mul", site.y, b.op("Sub", site.grad, total))]


def log_softmax(site: Site) -> Gradients:
    """y = log softmax(x): dx = dy - softmax(x) sum(dy)."""
    b = site.build
    total = b.reduce_sum(site.grad, [site.axis(-1)])
    return [b.op("Sub", site.grad, b.op("Mul", b.op("Exp", site.y), total))]


def batch_norm(site: Site) -> Gradients:
    """y = (x - mean) scale / sqrt(var + eps) + bias with constant statistics: one factor per channel."""
    if site.attrs.get("training_mode", 0):
        raise site.unsupported("statistics of the batch (training_mode)")
    scale, variance = site.required(1).astype(np.float64), site.required(4).astype(np.float64)
    factor = scale / np.sqrt(variance + float(site.attrs.get("epsilon", 1e-5)))
    return [site.build.op("Mul", site.grad, _per_channel(site, factor))]


def instance_norm(site: Site) -> Gradients:
    """y = scale xhat + bias, xhat = (x - mean) / s over each channel's positions, s = sqrt(var + eps).

    dx = scale / s (dy - mean(dy) - xhat mean(dy xhat))
    """
    b = site.build
    axes = range(2, len(site.shape()))
    positions = float(np.prod(site.shape()[2:]))

    def mean(name: str) -> str:
        return b.op("Div", b.reduce_sum(name, axes), b.number(positions))

    centred = b.op("Sub", site.x, mean(site.x))
    variance = b.op("Add", mean(b.op("Mul", centred, centred)), b.number(float(site.attrs.get("epsilon", 1e-5))))
    deviation = b.op("Sqrt", variance)
    xhat = b.op("Div", centred, deviation)
    along = b.op("Mul", xhat, mean(b.op("Mul", site.grad, xhat)))
    inner = b.op("Sub", b.op("Sub", site.grad, mean(site.grad)), along)
    return [b.op("Mul", b.op("Div", inner, deviation), _per_channel(site, site.required(1)))]


def _per_channel(site: Site, values: Array) -> str:
    """Values [C] as a constant [C, 1, ...] that broadcasts along axis 1 of the input."""
    shape = (-1, *(1,) * (len(site.shape()) - 2))
    return site.build.constant(values.reshape(shape).astype(site.build.dtype))


RULES: dict[str, Rule] = {
    "Softmax": softmax,
    "LogSoftmax": log_softmax,
    "BatchNormalization": batch_norm,
    "InstanceNormalization": instance_norm,
}
