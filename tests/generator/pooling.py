"""Pooling, normalization and affine operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from tests.generator.layers import divisors
from tests.generator.net import CONTRIB, Net, Value


def pool(net: Net, x: Value) -> Value:
    """MaxPool, AveragePool or LpPool, attributes at and off their defaults."""
    operator = net.pick(("MaxPool", "AveragePool", "LpPool"))
    if operator == "LpPool" and len(x.space) == 3:
        operator = "MaxPool"
    ceil = net.opset >= 10 and operator != "LpPool" and net.chance(25)
    auto_pad = net.pick(("SAME_UPPER", "SAME_LOWER", "VALID")) if not ceil and net.chance(20) else None
    axes = [_window(net, size, auto_pad, ceil=ceil, at_least=6 if x.dynamic else 0) for size in x.space]
    kernel, strides, begins, ends, space = (list(values) for values in zip(*axes, strict=True))
    outputs = 2 if operator == "MaxPool" and net.opset >= 8 and net.uses("MaxPool with indices", 10) else 1
    name, *_ = net.ops(
        operator,
        [x.name],
        outputs,
        kernel_shape=kernel,
        strides=strides if any(s != 1 for s in strides) or net.chance(50) else None,
        auto_pad=auto_pad,
        pads=begins + ends if auto_pad is None and any(begins + ends) else None,
        ceil_mode=1 if ceil else None,
        count_include_pad=net.pick((None, 0, 1)) if operator == "AveragePool" else None,
        p=net.pick((None, 1, 2, 3)) if operator == "LpPool" else None,
        storage_order=net.pick((None, 0)) if operator == "MaxPool" and net.opset >= 8 else None,
    )
    return net.value(x, name, (x.channels, *space))


def _window(net: Net, size: int, auto_pad: str | None, *, ceil: bool, at_least: int) -> tuple[int, int, int, int, int]:
    """Kernel, stride, pads, and the size behind them, along one axis."""
    kernel, stride = (min(net.pick((2, 3)), size), net.pick((2, 1))) if size >= at_least else (1, 1)
    before, after = (net.between(0, kernel // 2), net.between(0, kernel // 2)) if auto_pad is None else (0, 0)
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        return kernel, stride, before, after, -(-size // stride)
    rest = size + before + after - kernel
    out = (math.ceil(rest / stride) if ceil else rest // stride) + 1
    # A window that starts in the padding behind is left out.
    return kernel, stride, before, after, out - int(ceil and (out - 1) * stride >= size + before)


def reduce(net: Net, x: Value, axes: list[int], *, keep: bool, operator: str | None = None) -> str:
    """A reduction over `axes`, the batch counted, written as the opset wants it; may be negative."""
    safe = ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceL2", "ReduceL1", "ReduceLogSumExp")
    operator = operator or net.pick(safe)
    rank = len(x.shape) + 1
    written = [axis - rank for axis in axes] if net.opset >= 11 and net.chance(40) else axes
    first = 13 if operator == "ReduceSum" else 18
    keepdims = net.pick((None, 1)) if keep else 0
    if net.opset >= first:
        return net.op(operator, [x.name, net.ints(*written)], keepdims=keepdims)
    return net.op(operator, [x.name], axes=written, keepdims=keepdims)


def global_pool(net: Net, x: Value) -> Value:
    """[C, *space] -> [C, 1, ...]."""
    operator = net.pick(("GlobalAveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "reduction"))
    ones = (x.channels, *(1 for _ in x.space))
    if operator.startswith("Global"):
        return net.value(x, net.op(operator, [x.name]), ones, dynamic=False)
    axes = list(range(2, len(x.shape) + 1))
    name = reduce(net, x, axes, keep=True, operator="ReduceMean" if operator == "ReduceMean" else None)
    return net.value(x, name, ones, dynamic=False)


def affine(net: Net, x: Value) -> Value:
    """A constant added, subtracted, multiplied or divided by: a number, or one for each channel."""
    operator = net.pick(("Mul", "Add", "Sub", "Div"))
    ones = (1,) * len(x.space)
    per_channel = (x.channels, *ones) if x.kind == "channels" else (x.channels,)
    numbers = np.abs(net.numbers(net.pick((per_channel, (1, *per_channel), (), (1,))), 0.3)) + 0.5
    sides = [x.name, net.const(numbers)]
    if operator in ("Mul", "Add", "Sub") and net.chance(30):
        sides.reverse()
    return net.value(x, net.op(operator, sides))


def batch_norm(net: Net, x: Value) -> Value:
    """BatchNormalization for inference."""
    size = x.channels
    parameters = [
        net.const(np.abs(net.numbers((size,), 0.3)) + 0.5),
        net.const(net.numbers((size,), 0.2)),
        net.const(net.numbers((size,), 0.2)),
        net.const(np.abs(net.numbers((size,), 0.3)) + 0.5),
    ]
    name = net.op(
        "BatchNormalization",
        [x.name, *parameters],
        epsilon=net.pick((None, 1e-3)),
        momentum=net.pick((None, 0.9)),
        training_mode=0 if net.opset >= 14 and net.chance(30) else None,
    )
    return net.value(x, name)


def normalize(net: Net, x: Value) -> Value:
    """Normalization by what the sample holds itself."""
    options = _NORMALIZATIONS_OF_CHANNELS if x.kind == "channels" else _NORMALIZATIONS_OF_TOKENS
    count = math.prod(x.space) if x.kind == "channels" else x.channels
    allowed = [
        name
        for name, (first, rank, _) in options.items()
        if first <= net.opset and rank in (0, len(x.space)) and (count >= 4 or name == "LpNormalization")
    ]
    operator = net.pick([name for name in allowed if name not in net.off] or ["LpNormalization"])
    net.features.add(operator)
    return net.value(x, options[operator][2](net, x))


def _parameters(net: Net, x: Value) -> tuple[str, str]:
    return net.const(np.abs(net.numbers((x.channels,), 0.2)) + 0.8), net.bias(x.channels)


def _epsilon(net: Net) -> float | None:
    return net.pick((None, 1e-3))


def _lrn(net: Net, x: Value) -> str:
    return net.op("LRN", [x.name], size=net.pick((3, 5)), alpha=net.pick((None, 0.01)), beta=net.pick((None, 0.5)))


def _lp(net: Net, x: Value) -> str:
    axis = x.axis if net.chance(50) else x.axis - len(x.shape) - 1
    unit = net.op("LpNormalization", [x.name], axis=axis, p=net.pick((None, 1)))
    return net.op("Mul", [unit, net.const(float(np.sqrt(x.channels)))])


def _group(net: Net, x: Value) -> str:
    groups = net.pick(divisors(x.channels))
    return net.op("GroupNormalization", [x.name, *_parameters(net, x)], num_groups=groups, epsilon=_epsilon(net))


def _instance(net: Net, x: Value) -> str:
    return net.op("InstanceNormalization", [x.name, *_parameters(net, x)], epsilon=_epsilon(net))


def _layer(net: Net, x: Value) -> str:
    """Below opset 17 onnxruntime has it in the default domain as well."""
    inputs = [x.name, *_parameters(net, x)]
    axis = net.pick((None, -1, len(x.shape)))
    return net.op("LayerNormalization", inputs if net.chance(70) else inputs[:2], axis=axis, epsilon=_epsilon(net))


def _rms(net: Net, x: Value) -> str:
    return net.op("RMSNormalization", [x.name, _parameters(net, x)[0]], epsilon=_epsilon(net))


def _bias_gelu(net: Net, x: Value) -> str:
    return net.op("BiasGelu", [x.name, net.bias(x.channels)], domain=CONTRIB)


def _mean_variance(net: Net, x: Value) -> str:
    return net.op("MeanVarianceNormalization", [x.name], axes=net.pick((None, [2, 3], [1, 2, 3])))


def _by_parts(net: Net, x: Value) -> str:
    """LayerNormalization as exporters write it below opset 17."""
    mean = reduce(net, x, [len(x.shape)], keep=True, operator="ReduceMean")
    centred = x.renamed(net.op("Sub", [x.name, mean]))
    square = centred.renamed(net.op("Pow", [centred.name, net.const(2.0)]))
    variance = reduce(net, square, [len(x.shape)], keep=True, operator="ReduceMean")
    deviation = net.op("Sqrt", [net.op("Add", [variance, net.const(1e-5)])])
    return net.op("Mul", [net.op("Div", [centred.name, deviation]), _parameters(net, x)[0]])


# Name -> (first opset, axes of space or 0 for any, what adds it).
_NORMALIZATIONS_OF_CHANNELS: Mapping[str, tuple[int, int, Callable[[Net, Value], str]]] = {
    "InstanceNormalization": (7, 0, _instance),
    "LpNormalization": (7, 0, _lp),
    "LRN": (7, 2, _lrn),
    "MeanVarianceNormalization": (9, 2, _mean_variance),
    "GroupNormalization": (21, 0, _group),
}
_NORMALIZATIONS_OF_TOKENS: Mapping[str, tuple[int, int, Callable[[Net, Value], str]]] = {
    "LayerNormalization": (17, 0, _layer),
    "LayerNormalization by parts": (7, 0, _by_parts),
    "LayerNormalization below opset 17": (7, 0, _layer),
    "LpNormalization": (7, 0, _lp),
    "RMSNormalization": (23, 0, _rms),
    "com.microsoft BiasGelu": (7, 0, _bias_gelu),
}
