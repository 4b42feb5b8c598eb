"""Operators y = f(x) on every element.

Where a slope jumps, the one taken is the backward graph's: Clip passes nothing on at its bounds, as Relu at 0.
"""

from __future__ import annotations

import math

import torch
from onnx import TensorProto
from torch import Tensor
from torch.nn import functional

from onnx_cbq.torch_graph.node import Compile, OnnxNode, Run, plain

DTYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.BOOL: torch.bool,
}


def leaky_relu(node: OnnxNode) -> Run:
    """y = x where x >= 0, else alpha x."""
    alpha = float(node.attrs.get("alpha", 0.01))
    return lambda x: functional.leaky_relu(x, alpha)


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """y = x where x >= 0, else slope x; the slope is broadcast to x."""
    return torch.where(x > 0, x, slope * x)


def clip(node: OnnxNode) -> Run:
    """y = min(max(x, low), high)."""
    low, high = node.number(1, -math.inf), node.number(2, math.inf)
    if low is None or high is None:
        return _clip_by_tensors

    def run(x: Tensor, *_: None) -> Tensor:
        # hardtanh has slope 0 at its bounds, clamp has 1; hardtanh wants bounds in order.
        return functional.hardtanh(x, low, high) if x.is_floating_point() and low <= high else x.clamp(low, high)

    return run


def _clip_by_tensors(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    if low is not None:
        x = torch.where(x > low, x, low)
    return x if high is None else torch.where(x < high, x, high)


def elu(node: OnnxNode) -> Run:
    """y = x where x > 0, else alpha (e^x - 1)."""
    alpha = float(node.attrs.get("alpha", 1.0))
    return lambda x: functional.elu(x, alpha)


def celu(node: OnnxNode) -> Run:
    """y = max(x, 0) + min(0, alpha (e^(x/alpha) - 1))."""
    alpha = float(node.attrs.get("alpha", 1.0))
    return lambda x: functional.celu(x, alpha)


def selu(node: OnnxNode) -> Run:
    """y = gamma x where x > 0, else gamma alpha (e^x - 1)."""
    alpha = float(node.attrs.get("alpha", 1.67326319217681884765625))
    gamma = float(node.attrs.get("gamma", 1.05070102214813232421875))
    return lambda x: gamma * functional.elu(x, alpha)


def hard_sigmoid(node: OnnxNode) -> Run:
    """y = alpha x + beta, kept between 0 and 1."""
    alpha, beta = float(node.attrs.get("alpha", 0.2)), float(node.attrs.get("beta", 0.5))
    return lambda x: functional.hardtanh(alpha * x + beta, 0.0, 1.0)


def thresholded_relu(node: OnnxNode) -> Run:
    """y = x where x > alpha, else 0."""
    alpha = float(node.attrs.get("alpha", 1.0))
    return lambda x: functional.threshold(x, alpha, 0.0)


def shrink(node: OnnxNode) -> Run:
    """y = x + bias where x < -lambd, x - bias where x > lambd, else 0."""
    bias, bound = float(node.attrs.get("bias", 0.0)), float(node.attrs.get("lambd", 0.5))
    return lambda x: torch.where(x.abs() > bound, x - bias * x.sign(), 0.0)


def gelu(node: OnnxNode) -> Run:
    """y = x Phi(x), by erf or by tanh."""
    approximate = str(node.attrs.get("approximate", "none"))
    return lambda x: functional.gelu(x, approximate=approximate)


def swish(node: OnnxNode) -> Run:
    """y = x sigmoid(alpha x)."""
    alpha = float(node.attrs.get("alpha", 1.0))
    return lambda x: x * torch.sigmoid(alpha * x)


def power(node: OnnxNode) -> Run:
    """y = x^p in the type of x; a constant p of one element is a setting, for its gradient takes log x."""
    exponent = node.number(1, 1.0)
    if exponent is None:
        return lambda x, p: torch.pow(x, p).to(x.dtype)
    return lambda x, _: torch.pow(x, exponent).to(x.dtype)


def cast(node: OnnxNode) -> Run:
    """To the type `to`."""
    dtype = DTYPES.get(int(node.attrs["to"]))
    if dtype is None:
        raise node.unsupported(f"a cast to {TensorProto.DataType.Name(int(node.attrs['to']))}")
    return lambda x: x.to(dtype)


OPERATORS: dict[str, Compile] = {
    "Relu": plain(torch.relu),
    "LeakyRelu": leaky_relu,
    "PRelu": plain(prelu),
    "Clip": clip,
    "Elu": elu,
    "Celu": celu,
    "Selu": selu,
    "Sigmoid": plain(torch.sigmoid),
    "HardSigmoid": hard_sigmoid,
    "HardSwish": plain(functional.hardswish),
    "Swish": swish,
    "Mish": plain(functional.mish),
    "Softplus": plain(functional.softplus),
    "Softsign": plain(functional.softsign),
    "ThresholdedRelu": thresholded_relu,
    "Shrink": shrink,
    "Tanh": plain(torch.tanh),
    "Erf": plain(torch.erf),
    "Gelu": gelu,
    "Exp": plain(torch.exp),
    "Log": plain(torch.log),
    "Sqrt": plain(torch.sqrt),
    "Abs": plain(torch.abs),
    "Neg": plain(torch.neg),
    "Reciprocal": plain(torch.reciprocal),
    "Sin": plain(torch.sin),
    "Cos": plain(torch.cos),
    "Pow": power,
    "Cast": cast,
    "CastLike": plain(lambda x, like: x.to(like.dtype)),
    "Ceil": plain(torch.ceil),
    "Floor": plain(torch.floor),
    "Round": plain(torch.round),
    "Sign": plain(torch.sign),
}
