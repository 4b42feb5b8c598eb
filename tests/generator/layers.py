"""Layers: a value and a constant weight become a value."""

from __future__ import annotations

import math
from collections.abc import Callable

from tests.generator.net import CONTRIB, Net, Value

Block = Callable[[Net, Value], Value]


def out_channels(net: Net, group: int = 1) -> int:
    """A few, of which `group` is a divisor."""
    return group * net.between(max(1, 4 // group), max(1, 12 // group))


def divisors(number: int) -> list[int]:
    """All of them."""
    return [n for n in range(1, number + 1) if number % n == 0]


def conv(net: Net, x: Value) -> Value:
    """Conv over any number of axes, every attribute at and off its default."""
    rank = len(x.space)
    groups = divisors(x.channels)
    group = net.pick(groups) if net.chance(40) else net.pick((1, x.channels))
    channels = out_channels(net, group)
    auto_pad = net.pick(("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")) if net.chance(25) else "NOTSET"
    kernel, strides, dilations, pads, space = _window(net, x, auto_pad)
    inputs = [x.name, net.weight((channels, x.channels // group, *kernel), x.channels // group * math.prod(kernel))]
    if net.chance(70):
        inputs.append(net.bias(channels))
    plain = all(n == 1 for n in (*strides, *dilations)) and not any(pads)
    given = not plain or net.chance(50)
    name = net.op(
        "Conv",
        inputs,
        auto_pad=None if auto_pad == "NOTSET" and net.chance(70) else auto_pad,
        pads=pads if auto_pad == "NOTSET" and given else None,
        strides=strides if given else None,
        dilations=dilations if given else None,
        group=group if group > 1 or net.chance(50) else None,
        kernel_shape=kernel if net.chance(70) else None,
    )
    net.features.add(f"Conv {rank}-D")
    return net.value(x, name, (channels, *space))


def _window(net: Net, x: Value, auto_pad: str) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
    """Kernel, strides, dilations, pads, and the sizes behind them, all of at least 1."""
    kernel, strides, dilations, begins, ends, space = [], [], [], [], [], []
    for size in x.space:
        k = net.pick((3, 1, 2, 5))
        dilation = net.pick((1, 1, 2)) if auto_pad in ("NOTSET", "VALID") else 1
        reach = (k - 1) * dilation + 1
        stride = net.pick((1, 1, 2))
        before, after = _pads(net, k, dilation) if auto_pad == "NOTSET" else (0, 0)
        if auto_pad in ("NOTSET", "VALID") and size + before + after < reach + (4 if x.dynamic else 0):
            k, dilation, reach, before, after = 1, 1, 1, 0, 0
        same = auto_pad.startswith("SAME")
        out = -(-size // stride) if same else (size + before + after - reach) // stride + 1
        kernel.append(k)
        strides.append(stride)
        dilations.append(dilation)
        begins.append(before)
        ends.append(after)
        space.append(out)
    return kernel, strides, dilations, begins + ends, space


def _pads(net: Net, kernel: int, dilation: int) -> tuple[int, int]:
    same = (kernel - 1) * dilation // 2
    return (same, same) if net.chance(70) else (net.between(0, 2), net.between(0, 2))


def conv_transpose(net: Net, x: Value) -> Value:
    """ConvTranspose with strides, pads, output padding, groups and dilations."""
    group = net.pick(divisors(x.channels)) if net.chance(30) else 1
    channels = out_channels(net, group)
    axes: list[tuple[int, ...]] = []
    for size in x.space:
        k, stride, dilation = net.pick((2, 3, 1)), net.pick((1, 2)), net.pick((1, 1, 2))
        stride = 1 if size > 8 else stride
        reach = (k - 1) * dilation + 1
        before, after = net.between(0, min(1, reach - 1)), net.between(0, min(1, reach - 1))
        more = net.between(0, max(stride, dilation) - 1) if net.chance(30) else 0
        out = stride * (size - 1) + more + reach - before - after
        if out < 1:
            before = after = 0
            out = stride * (size - 1) + more + reach
        axes.append((k, stride, dilation, before, after, more, out))
    kernel, strides, dilations, begins, ends, extra, space = (list(values) for values in zip(*axes, strict=True))
    fan_in = max(1, x.channels // group * math.prod(kernel) // math.prod(strides))
    inputs = [x.name, net.weight((x.channels, channels // group, *kernel), fan_in)]
    if net.chance(60):
        inputs.append(net.bias(channels))
    name = net.op(
        "ConvTranspose",
        inputs,
        strides=strides,
        pads=begins + ends,
        dilations=dilations,
        output_padding=extra if any(extra) else None,
        group=group if group > 1 else None,
        kernel_shape=kernel if net.chance(70) else None,
    )
    return net.value(x, name, (channels, *space))


def gemm(net: Net, x: Value) -> Value:
    """Gemm of a vector, all attributes; rarely transposed, with the weight on the left."""
    channels = out_channels(net)
    alpha, beta = net.pick((None, None, 0.5, 2.0)), net.pick((None, None, 0.5, 1.5))
    fan_in = x.channels
    if net.uses("Gemm with the weight on the left", 10):
        left = net.pick((0, 1))
        weight = net.weight((x.channels, channels) if left else (channels, x.channels), fan_in)
        inputs = [weight, x.name]
        if net.opset < 11 or net.chance(50):
            inputs.append(net.const(net.numbers((channels, 1), 0.2), base="bias"))
        product = net.op("Gemm", inputs, transA=left or None, transB=1, alpha=alpha, beta=beta)
        return net.value(x, net.op("Transpose", [product], perm=[1, 0]), (channels,))
    name, transposed = x.name, None
    if net.uses("Gemm of a transposed activation", 8):
        name, transposed = net.op("Transpose", [x], perm=[1, 0]), 1
    turned = net.chance(60)
    weight = net.weight((channels, x.channels) if turned else (x.channels, channels), fan_in)
    inputs = [name, weight]
    if net.opset < 11 or net.chance(70):
        shape = net.pick(((channels,), (1, channels), (1,), ()))
        inputs.append(net.const(net.numbers(shape, 0.2), base="bias"))
    made = net.op("Gemm", inputs, transA=transposed, transB=int(turned) or None, alpha=alpha, beta=beta)
    return net.value(x, made, (channels,))


def matmul(net: Net, x: Value) -> Value:
    """MatMul with the weight on the right, and mostly a bias behind it."""
    channels = out_channels(net)
    shape: tuple[int, ...] = (x.channels, channels)
    shape = (1, *shape) if x.kind == "tokens" and net.uses("MatMul with a weight of three axes", 15) else shape
    name = net.op("MatMul", [x.name, net.weight(shape, x.channels)])
    if net.chance(60):
        sides = [name, net.bias(channels)]
        name = net.op("Add", sides if net.chance(70) else sides[::-1])
    return net.value(x, name, (*x.space, channels))


def matmul_left(net: Net, x: Value) -> Value:
    """MatMul with the weight on the left: it mixes the rows of each sample."""
    rows = out_channels(net)
    net.features.add("MatMul with the weight on the left")
    name = net.op("MatMul", [net.weight((rows, x.shape[0]), x.shape[0]), x.name])
    return net.value(x, name, (rows, x.shape[1]))


def fused_conv(net: Net, x: Value) -> Value:
    """onnxruntime's own Conv with an activation."""
    channels = out_channels(net)
    kernel = [3] * len(x.space)
    activation, parameters = net.pick((("Relu", None), ("LeakyRelu", [0.1]), ("Sigmoid", None), ("Tanh", None)))
    weight = net.weight((channels, x.channels, *kernel), x.channels * math.prod(kernel))
    name = net.op(
        "FusedConv",
        [x.name, weight, net.bias(channels)],
        domain=CONTRIB,
        kernel_shape=kernel,
        pads=[1] * 2 * len(kernel),
        activation=activation,
        activation_params=parameters,
    )
    return net.value(x, name, (channels, *x.space))


def fused_matmul(net: Net, x: Value) -> Value:
    """onnxruntime's own MatMul with factors and transpositions."""
    channels = out_channels(net)
    turned = net.chance(50)
    weight = net.weight((channels, x.channels) if turned else (x.channels, channels), x.channels)
    name = net.op("FusedMatMul", [x.name, weight], domain=CONTRIB, transB=int(turned), alpha=net.pick((1.0, 0.5)))
    return net.value(x, name, (*x.space, channels))


def fused_gemm(net: Net, x: Value) -> Value:
    """onnxruntime's own Gemm with an activation."""
    channels = out_channels(net)
    weight = net.weight((channels, x.channels), x.channels)
    name = net.op(
        "FusedGemm",
        [x.name, weight, net.bias(channels)],
        domain=CONTRIB,
        transB=1,
        activation=net.pick(("Relu", "Tanh")),
    )
    return net.value(x, name, (channels,))


def einsum(net: Net, x: Value) -> Value:
    """A product written as Einsum."""
    channels = out_channels(net)
    letters = "abc"[: len(x.space)]
    name = net.op(
        "Einsum", [x.name, net.weight((x.channels, channels), x.channels)], equation=f"n{letters}d,de->n{letters}e"
    )
    return net.value(x, name, (*x.space, channels))
