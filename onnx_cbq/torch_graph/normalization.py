"""Softmax and the normalizations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from onnx_cbq.torch_graph.node import Compile, OnnxNode, Run


def softmax(node: OnnxNode) -> Run:
    """y = e^x / sum e^x along an axis."""
    axis = int(node.attrs.get("axis", -1))
    return lambda x: torch.softmax(x, axis)


def log_softmax(node: OnnxNode) -> Run:
    """y = log softmax(x)."""
    axis = int(node.attrs.get("axis", -1))
    return lambda x: torch.log_softmax(x, axis)


def batch_norm(node: OnnxNode) -> Run:
    """y = (x - mean) scale / sqrt(var + eps) + bias with constant statistics."""
    node.inference_only()
    node.only_first_output()
    epsilon = float(node.attrs.get("epsilon", 1e-5))

    def run(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return functional.batch_norm(x, mean, variance, scale, bias, eps=epsilon)

    return run


def instance_norm(node: OnnxNode) -> Run:
    """y = scale (x - mean) / sqrt(var + eps) + bias over each channel's positions."""
    epsilon = float(node.attrs.get("epsilon", 1e-5))

    def run(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        # One group per channel: instance_norm refuses a single position, which is no error here.
        return functional.group_norm(x, x.shape[1], scale, bias, epsilon)

    return run


def group_norm(node: OnnxNode) -> Run:
    """The same over groups of channels; before opset 21 scale and bias are per group, then per channel."""
    epsilon, groups = float(node.attrs.get("epsilon", 1e-5)), int(node.attrs["num_groups"])

    def run(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        copies = x.shape[1] // len(scale)
        if copies > 1:
            scale, bias = scale.repeat_interleave(copies), bias.repeat_interleave(copies)
        return functional.group_norm(x, groups, scale, bias, epsilon)

    return run


def layer_norm(node: OnnxNode) -> Run:
    """y = scale (x - mean) / sqrt(var + eps) + bias over the axes from `axis` on."""
    node.only_first_output()
    axis, epsilon = int(node.attrs.get("axis", -1)), float(node.attrs.get("epsilon", 1e-5))

    def run(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        shape = x.shape[axis:]
        bias = None if bias is None else bias.expand(shape)
        return functional.layer_norm(x, shape, scale.expand(shape), bias, epsilon)

    return run


def rms_norm(node: OnnxNode) -> Run:
    """y = scale x / sqrt(mean(x^2) + eps) over the axes from `axis` on."""
    axis, epsilon = int(node.attrs.get("axis", -1)), float(node.attrs.get("epsilon", 1e-5))
    return lambda x, scale: functional.rms_norm(x, x.shape[axis:], scale.expand(x.shape[axis:]), epsilon)


def mean_variance_norm(node: OnnxNode) -> Run:
    """y = (x - mean) / (deviation + 1e-9) over `axes`; the 1e-9 is the standard's."""
    axes = [int(axis) for axis in node.attrs.get("axes", (0, 2, 3))]

    def run(x: Tensor) -> Tensor:
        centred = x - x.mean(axes, keepdim=True)
        return centred / (centred.square().mean(axes, keepdim=True).sqrt() + 1e-9)

    return run


OPERATORS: dict[str, Compile] = {
    "Softmax": softmax,
    "LogSoftmax": log_softmax,
    "BatchNormalization": batch_norm,
    "InstanceNormalization": instance_norm,
    "GroupNormalization": group_norm,
    "LayerNormalization": layer_norm,
    "RMSNormalization": rms_norm,
    "MeanVarianceNormalization": mean_variance_norm,
}
