"""Activations: element by element, attributes at and off their defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from onnx import TensorProto

from tests.generator.net import CONTRIB, Net, Value

Made = str


def _maybe(net: Net, *options: float) -> float | None:
    """Left out, or one of `options`."""
    return net.pick((None, *options))


def _clip(net: Net, x: str) -> Made:
    low, high = net.pick(((0.0, 6.0), (-1.0, 1.0), (0.0, None), (None, 1.5), (None, None), (-0.5, 3.0)))
    if net.opset < 11:
        return net.op("Clip", [x], min=low, max=high)
    bounds = ["" if bound is None else net.const(bound) for bound in (low, high)]
    while bounds and not bounds[-1]:
        bounds.pop()
    return net.op("Clip", [x, *bounds])


def _silu(net: Net, x: str) -> Made:
    gate = net.op(
        net.pick(("Sigmoid", "Tanh") if "HardSigmoid" in net.off else ("Sigmoid", "HardSigmoid", "Tanh")), [x]
    )
    return net.op("Mul", [x, gate] if net.chance(50) else [gate, x])


def _gelu(net: Net, x: str) -> Made:
    inner = net.op("Erf", [net.op("Div", [x, net.const(np.sqrt(2.0))])])
    return net.op("Mul", [net.op("Mul", [x, net.op("Add", [inner, net.const(1.0)])]), net.const(0.5)])


def _hard_swish(net: Net, x: str) -> Made:
    moved = net.op("Add", [x, net.const(3.0)])
    net_clip = (
        net.op("Clip", [moved], min=0.0, max=6.0)
        if net.opset < 11
        else net.op("Clip", [moved, net.const(0.0), net.const(6.0)])
    )
    return net.op("Mul", [x, net.op("Div", [net_clip, net.const(6.0)])])


def _where(net: Net, x: str) -> Made:
    condition = net.op("Greater", [x, net.const(0.0)])
    if net.opset < 9:
        return net.op("Relu", [x])
    return net.op("Where", [condition, x, net.op("Mul", [x, net.const(0.1)])])


def _cast(net: Net, x: str) -> Made:
    back = {np.float32: TensorProto.FLOAT, np.float64: TensorProto.DOUBLE, np.float16: TensorProto.FLOAT16}[net.dtype]
    return net.op("Cast", [net.op("Cast", [x], to=net.pick((TensorProto.DOUBLE, TensorProto.FLOAT16)))], to=back)


def _log(net: Net, x: str) -> Made:
    return net.op("Log", [net.op("Add", [net.op("Abs", [x]), net.const(1.0)])])


def _max_min(net: Net, x: str) -> Made:
    return net.op("Min", [net.op("Max", [x, net.const(-0.5)]), net.const(2.5)])


def _dropout(net: Net, x: str) -> Made:
    if net.opset < 12:
        return net.op("Dropout", [x], ratio=0.3)
    inputs = [x] if net.chance(50) else [x, net.const(0.3, np.float32), net.const(np.bool_(0), np.bool_)]
    return net.op("Dropout", inputs)


# Operator -> (first opset, how to add it).
ELEMENTWISE: Mapping[str, tuple[int, Callable[[Net, str], Made]]] = {
    "Relu": (7, lambda net, x: net.op("Relu", [x])),
    "LeakyRelu": (7, lambda net, x: net.op("LeakyRelu", [x], alpha=_maybe(net, 0.1, 0.3))),
    "Elu": (7, lambda net, x: net.op("Elu", [x], alpha=_maybe(net, 0.5, 2.0))),
    "Selu": (7, lambda net, x: net.op("Selu", [x], alpha=_maybe(net, 1.2), gamma=_maybe(net, 0.9))),
    "Celu": (12, lambda net, x: net.op("Celu", [x], alpha=_maybe(net, 0.5, 2.0))),
    "ThresholdedRelu": (10, lambda net, x: net.op("ThresholdedRelu", [x], alpha=_maybe(net, 0.1, 0.5))),
    "HardSigmoid": (7, lambda net, x: net.op("HardSigmoid", [x], alpha=_maybe(net, 1 / 6), beta=_maybe(net, 0.4))),
    "HardSwish": (14, lambda net, x: net.op("HardSwish", [x])),
    "Sigmoid": (7, lambda net, x: net.op("Sigmoid", [x])),
    "Tanh": (7, lambda net, x: net.op("Tanh", [x])),
    "Softplus": (7, lambda net, x: net.op("Softplus", [x])),
    "Softsign": (7, lambda net, x: net.op("Softsign", [x])),
    "Erf": (9, lambda net, x: net.op("Erf", [x])),
    "Gelu": (20, lambda net, x: net.op("Gelu", [x], approximate=net.pick((None, "none", "tanh")))),
    "Mish": (18, lambda net, x: net.op("Mish", [x])),
    "Swish": (24, lambda net, x: net.op("Swish", [x], alpha=_maybe(net, 1.5))),
    "Shrink": (9, lambda net, x: net.op("Shrink", [x], bias=_maybe(net, 0.1), lambd=_maybe(net, 0.2))),
    "Abs": (7, lambda net, x: net.op("Abs", [x])),
    "Neg": (7, lambda net, x: net.op("Neg", [x])),
    "Sqrt": (7, lambda net, x: net.op("Sqrt", [net.op("Abs", [x])])),
    "Exp": (7, lambda net, x: net.op("Exp", [net.op("Neg", [net.op("Abs", [x])])])),
    "Log": (7, _log),
    "Sin": (7, lambda net, x: net.op("Sin", [x])),
    "Atan": (7, lambda net, x: net.op("Atan", [x])),
    "Pow": (7, lambda net, x: net.op("Pow", [net.op("Tanh", [x]), net.const(2.0)])),
    "Square": (7, lambda net, x: net.op("Mul", [net.op("Tanh", [x])] * 2)),
    "Clip": (7, _clip),
    "Max and Min": (8, _max_min),
    "SiLU": (7, _silu),
    "GELU by Erf": (9, _gelu),
    "hard swish by parts": (7, _hard_swish),
    "Where": (7, _where),
    "Identity": (7, lambda net, x: net.op("Identity", [x])),
    "Dropout": (7, _dropout),
    "Cast there and back": (9, _cast),
    "com.microsoft Gelu": (7, lambda net, x: net.op("Gelu", [x], domain=CONTRIB)),
    "com.microsoft QuickGelu": (7, lambda net, x: net.op("QuickGelu", [x], domain=CONTRIB, alpha=_maybe(net, 1.0))),
    "com.microsoft FastGelu": (7, lambda net, x: net.op("FastGelu", [x], domain=CONTRIB)),
}


def activation(net: Net, x: Value) -> Value:
    """Any of them; a Relu in a third of the cases, as in practice."""
    allowed = [name for name, (first, _) in ELEMENTWISE.items() if first <= net.opset and name not in net.off]
    name = "Relu" if net.chance(30) else net.pick(allowed)
    net.features.add(f"activation {name}")
    return net.value(x, ELEMENTWISE[name][1](net, x.name))


def prelu(net: Net, x: Value) -> Value:
    """PRelu with a slope for each channel, or one."""
    ones = (1,) * len(x.space)
    per_channel = (x.channels, *ones) if x.kind == "channels" else (x.channels,)
    slope = np.abs(net.numbers(net.pick((per_channel, (1,))), 0.3))
    return net.value(x, net.op("PRelu", [x.name, net.const(slope)]))


def softmax(net: Net, x: Value) -> Value:
    """Softmax, LogSoftmax or Hardmax in the middle of a net, along the channels."""
    operator = net.pick(("Softmax", "LogSoftmax"))
    axis = x.axis if net.chance(50) or net.opset < 11 else x.axis - len(x.shape) - 1
    if net.opset < 13 and x.axis != len(x.shape):
        return x  # flattens the axes behind it there
    name = net.op(operator, [x.name], axis=axis)
    return net.value(x, net.op("Mul", [name, net.const(3.0)]))
