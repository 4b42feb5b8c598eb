"""Fold what stands around a linear layer into it.

Batch normalization at inference, and a Mul or Add with one constant per channel, are all y = f x + o with a factor and
an offset per channel (ONNX operators, BatchNormalization):

    f = scale / sqrt(var + eps)        o = bias - f mean

Behind a linear layer x = W u + b they vanish into it: W' = f W, b' = f b + o. The arithmetic is in float64, rounded
once at the end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnx_cbq.graph.shapes import Example
from onnx_cbq.graph.surgeon import constant_value, from_surgeon, only_reader, set_constant, take_output, to_surgeon
from onnx_cbq.model import Array, Model

_FOLDS_AFFINE = ("Conv", "ConvTranspose", "Gemm")


def fold_gemm_factors(model: Model, example: Example) -> Model:
    """Gemm's alpha and beta go into its constant operands: alpha A B + beta C = A (alpha B) + (beta C)."""
    graph = to_surgeon(model)
    changed = False
    for node in graph.nodes:
        factors = (node.attrs.get("alpha", 1.0), node.attrs.get("beta", 1.0))
        if node.op != "Gemm" or factors == (1.0, 1.0):
            continue
        if any(constant_value(tensor) is None for tensor in node.inputs[1:]):
            continue
        for index, (tensor, factor) in enumerate(zip(list(node.inputs[1:]), factors, strict=False), start=1):
            set_constant(node, index, (tensor.values * np.float64(factor)).astype(tensor.dtype))
        node.attrs = {name: value for name, value in node.attrs.items() if name not in ("alpha", "beta")}
        changed = True
    return from_surgeon(graph, model) if changed else model


def fold_affine(model: Model, example: Example) -> Model:
    """Fold BatchNormalization, Mul and Add behind a Conv, ConvTranspose or Gemm into its weight and bias."""
    graph = to_surgeon(model)
    changed = False
    for layer in list(graph.nodes):
        while layer.op in _FOLDS_AFFINE and _fold_next(graph, layer):
            changed = True
    return from_surgeon(graph, model) if changed else model


def own_biases(model: Model, example: Example) -> Model:
    """Every Conv, ConvTranspose and Gemm gets a bias vector that no other node reads, so that it can be corrected."""
    graph = to_surgeon(model)
    changed = [_own_bias(node) for node in graph.nodes if node.op in ("Conv", "ConvTranspose", "Gemm")]
    return from_surgeon(graph, model) if any(changed) else model


def split_infinite_biases(model: Model, example: Example) -> Model:
    """What is infinite in a bias, as where a class is masked with -inf, is added behind it: no integer holds that."""
    graph = to_surgeon(model)
    changed = [_split_bias(graph, node) for node in list(graph.nodes) if node.op in ("Conv", "ConvTranspose", "Gemm")]
    return from_surgeon(graph, model) if any(changed) else model


def _split_bias(graph: Any, layer: Any) -> bool:
    bias, weight = constant_value(layer.inputs[2]) if len(layer.inputs) > 2 else None, constant_value(layer.inputs[1])
    if bias is None or weight is None or np.isfinite(bias).all():
        return False
    result, infinite = layer.outputs[0], ~np.isfinite(bias)
    mask = np.where(infinite, bias, np.zeros_like(bias))
    if layer.op != "Gemm":
        mask = mask.reshape(-1, *(1,) * (weight.ndim - 2))
    set_constant(layer, 2, np.where(infinite, np.zeros_like(bias), bias))
    finite = gs.Variable(f"{result.name}_unmasked", result.dtype)
    layer.outputs = [finite]
    added = gs.Constant(f"{result.name}_mask", mask)
    graph.nodes.append(gs.Node("Add", f"{result.name}_masked", inputs=[finite, added], outputs=[result]))
    return True


def _fold_next(graph: Any, layer: Any) -> bool:
    """Fold the node behind `layer` into it; False if it is not an affine map per channel, or is not the only reader."""
    weight = constant_value(layer.inputs[1])
    node = only_reader(graph, layer.outputs[0])
    if weight is None or node is None or layer.attrs.get("beta", 1.0) != 1.0 or layer.attrs.get("alpha", 1.0) != 1.0:
        return False
    has_bias = len(layer.inputs) > 2 and not layer.inputs[2].is_empty()
    bias = constant_value(layer.inputs[2]) if has_bias else np.zeros(1, weight.dtype)
    channels = _output_channels(layer, weight)
    affine = _affine(node, layer.outputs[0], channels, weight.ndim)
    if bias is None or bias.size not in (1, channels) or affine is None:
        return False
    factor, offset = affine
    if not np.isfinite(factor).all():
        return False
    set_constant(layer, 1, _scale_channels(layer, weight, factor))
    set_constant(layer, 2, (factor * bias.reshape(-1) + offset).astype(weight.dtype))
    take_output(layer, node)
    return True


def _affine(node: Any, source: Any, channels: int, rank: int) -> tuple[Array, Array] | None:
    """Factor and offset per channel of y = node(source), each [channels] in float64, or None if it is no such map."""
    if node.op == "BatchNormalization":
        constant = all(constant_value(tensor) is not None for tensor in node.inputs[1:5])
        if not constant or node.attrs.get("training_mode", 0) or len(node.outputs) > 1:
            return None
        scale, bias, mean, variance = (tensor.values.astype(np.float64) for tensor in node.inputs[1:5])
        factor = scale / np.sqrt(variance + node.attrs.get("epsilon", 1e-5))
        return factor, bias - factor * mean
    if node.op not in ("Add", "Mul") or node.inputs[0] is node.inputs[1]:
        return None
    value = constant_value(node.inputs[1] if node.inputs[0] is source else node.inputs[0])
    if value is None or value.ndim > rank:
        return None
    shape = (1,) * (rank - value.ndim) + value.shape
    if any(size != 1 for axis, size in enumerate(shape) if axis != 1) or shape[1] not in (1, channels):
        return None
    operand = np.broadcast_to(value.reshape(-1).astype(np.float64), channels)
    return (operand, np.zeros(channels)) if node.op == "Mul" else (np.ones(channels), operand)


def _output_channels(layer: Any, weight: Array) -> int:
    if layer.op == "ConvTranspose":
        return int(weight.shape[1] * layer.attrs.get("group", 1))
    return int(weight.shape[0] if layer.op == "Conv" or layer.attrs.get("transB", 0) else weight.shape[1])


def _scale_channels(layer: Any, weight: Array, factor: Array) -> Array:
    """`weight` with each output channel multiplied by its factor [channels]."""
    if layer.op == "ConvTranspose":
        # [I, O/g, *k] -> [g, I/g, O/g, *k], the output channel being (group, index in the group)
        groups = layer.attrs.get("group", 1)
        split = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
        per_channel = factor.reshape(groups, 1, weight.shape[1], *(1,) * (weight.ndim - 2))
        return (split * per_channel).reshape(weight.shape).astype(weight.dtype)
    axis = 0 if layer.op == "Conv" or layer.attrs.get("transB", 0) else 1
    shape = [1] * weight.ndim
    shape[axis] = -1
    return (weight * factor.reshape(shape)).astype(weight.dtype)


def _own_bias(node: Any) -> bool:
    weight = constant_value(node.inputs[1])
    if weight is None:
        return False
    channels = _output_channels(node, weight)
    if len(node.inputs) < 3:
        set_constant(node, 2, np.zeros(channels, weight.dtype))
        return True
    bias = constant_value(node.inputs[2])
    alone = len(node.inputs[2].outputs) == 1
    if bias is None or (alone and bias.shape == (channels,)) or bias.size not in (1, channels):
        return False
    if bias.size == channels and bias.shape[-1] != channels:
        return False
    set_constant(node, 2, np.broadcast_to(bias.reshape(-1), (channels,)).copy())
    return True
