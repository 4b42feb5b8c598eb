"""Operators that move numbers, or make others of their neighbours."""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto

from tests.generator.layers import divisors
from tests.generator.net import Net, Value


def squeeze(net: Net, name: str, axes: list[int]) -> str:
    """Squeeze as the opset wants it."""
    return net.op("Squeeze", [name, net.ints(*axes)]) if net.opset >= 13 else net.op("Squeeze", [name], axes=axes)


def unsqueeze(net: Net, name: str, axes: list[int]) -> str:
    """Unsqueeze as the opset wants it."""
    return net.op("Unsqueeze", [name, net.ints(*axes)]) if net.opset >= 13 else net.op("Unsqueeze", [name], axes=axes)


def pad(net: Net, x: Value) -> Value:
    """Pad, each mode."""
    modes = ["constant", "reflect", "edge"] + (["wrap"] if net.opset >= 19 else [])
    mode = net.pick(modes) if min(x.space) >= 3 else "constant"
    begins, ends = [net.between(0, 1) for _ in x.space], [net.between(0, 2) for _ in x.space]
    pads = [0, 0, *begins, 0, 0, *ends]
    value = net.pick((None, 0.0, 0.5, -1.0)) if mode == "constant" else None
    mode_given = mode if mode != "constant" or net.chance(50) else None
    if net.opset < 11:
        name = net.op("Pad", [x.name], pads=pads, mode=mode_given, value=value)
    else:
        inputs = [x.name, net.ints(*pads)] + ([] if value is None else [net.const(value)])
        name = net.op("Pad", inputs, mode=mode_given)
    space = [size + b + e for size, b, e in zip(x.space, begins, ends, strict=True)]
    return net.value(x, name, (x.channels, *space))


def cut(net: Net, name: str, axis: int, start: int, end: int, step: int = 1) -> str:
    """Slice along one axis, as the opset wants it."""
    if net.opset < 10:
        return net.op("Slice", [name], axes=[axis], starts=[start], ends=[end])
    inputs = [name, net.ints(start), net.ints(end), net.ints(axis)]
    return net.op("Slice", inputs + ([net.ints(step)] if step != 1 or net.chance(50) else []))


def slices(net: Net, x: Value) -> Value:
    """A part of the space, every second element, or the reverse."""
    axis = net.between(2, len(x.shape))
    size = x.shape[axis - 1]
    way = net.pick(("part", "every second", "reverse")) if net.opset >= 10 and not x.dynamic else "part"
    if size < 6 or way == "part":
        start = net.between(0, 1)
        out, name = size - start, cut(net, x.name, axis, start, net.pick((2**31 - 1, 2**63 - 1)))
    elif way == "every second":
        out, name = -(-size // 2), cut(net, x.name, axis, 0, size, 2)
    else:
        out, name = size, cut(net, x.name, axis, -1, -(2**31), -1)
    shape = list(x.shape)
    shape[axis - 1] = out
    return net.value(x, name, shape) if out >= 1 else x


def gather(net: Net, x: Value) -> Value:
    """Some channels, in another order, some of them twice."""
    count = net.between(2, x.channels + 2)
    places = net.random.integers(0, x.channels, count)
    if net.opset >= 11 and net.chance(30):
        places = places - x.channels
    dtype = net.pick((np.int64, np.int32))
    name = net.op("Gather", [x.name, net.const(places, dtype, "index")], axis=x.axis)
    shape = (count, *x.space) if x.kind == "channels" else (*x.space, count)
    return net.value(x, name, shape)


def split_concat(net: Net, x: Value) -> Value:
    """Channels split, and joined in another order, one part perhaps through an activation."""
    if x.channels < 2:
        return x
    first = net.between(1, x.channels - 1)
    sizes = [first, x.channels - first]
    if net.opset >= 13:
        parts = net.ops("Split", [x.name, net.ints(*sizes)], 2, axis=x.axis)
    else:
        parts = net.ops("Split", [x.name], 2, axis=x.axis, split=sizes)
    if net.chance(50):
        parts[0] = net.op(net.pick(("Relu", "Tanh", "Sigmoid")), [parts[0]])
    return net.value(x, net.op("Concat", parts[::-1], axis=x.axis))


def concat_constant(net: Net, x: Value) -> Value:
    """A constant for each sample beside what there is (a class token, coordinates): fixed batch 1 is expanded."""
    extra = net.between(1, 3)
    part = net.op("Mul", [cut(net, x.name, x.axis, 0, 1), net.const(0.0)])
    parts = [net.op("Add", [part, net.const(0.5)])] * extra + [x.name]
    shape = (x.channels + extra, *x.space) if x.kind == "channels" else (*x.space, x.channels + extra)
    return net.value(x, net.op("Concat", parts, axis=x.axis), shape)


def transpose_back(net: Net, x: Value) -> Value:
    """Channels last, something there, and channels first again."""
    rank = len(x.shape) + 1
    there = [0, *range(2, rank), 1]
    name = net.op("Transpose", [x.name], perm=there)
    if net.chance(60):
        name = net.op(net.pick(("Relu", "Sigmoid", "Tanh")), [name])
    return net.value(x, net.op("Transpose", [name], perm=[0, rank - 1, *range(1, rank - 1)]))


def shuffle(net: Net, x: Value) -> Value:
    """ShuffleNet's channel shuffle: Reshape, Transpose, Reshape."""
    group = net.pick(divisors(x.channels))
    space = [-1] if x.dynamic else list(x.space)
    if x.dynamic:
        return x
    wide = net.op("Reshape", [x.name, net.ints(-1, group, x.channels // group, *space)])
    turned = net.op("Transpose", [wide], perm=[0, 2, 1, *range(3, 3 + len(space))])
    target = [0, x.channels, *space] if net.chance(50) else [-1, x.channels, *space]
    return net.value(x, net.op("Reshape", [turned, net.ints(*target)]))


def reshape_by_shape(net: Net, x: Value) -> Value:
    """[C, *space] -> [C, S] -> [C, *space], the sizes computed as TorchScript's exporter does."""
    shape = net.op("Shape", [x.name])
    flat = net.op("Reshape", [x.name, net.ints(0, 0, -1)])
    name = net.op(net.pick(("Relu", "Identity", "Tanh")), [flat])
    whole = net.op("Cast", [shape], to=TensorProto.INT64)
    return net.value(x, net.op("Reshape", [name, whole]))


def expand(net: Net, x: Value) -> Value:
    """A new axis, Expand or Tile along it, and its mean."""
    if net.opset < 8:
        return x
    wide = unsqueeze(net, x.name, [1])
    rank = len(x.shape) + 2
    if net.chance(50):
        name = net.op("Expand", [wide, net.ints(1, 2, *([1] * (rank - 2)))])
    else:
        name = net.op("Tile", [wide, net.ints(1, 2, *([1] * (rank - 2)))])
    if net.opset >= 18:
        return net.value(x, net.op("ReduceMean", [name, net.ints(1)], keepdims=0))
    return net.value(x, net.op("ReduceMean", [name], axes=[1], keepdims=0))


def where_mask(net: Net, x: Value) -> Value:
    """A constant mask over the channels, with a number in place of what it hides."""
    if net.opset < 9:
        return x
    ones = (1,) * len(x.space)
    mask = net.random.random((x.channels, *ones) if x.kind == "channels" else (x.channels,)) < 0.7
    sides = [x.name, net.const(net.pick((0.0, 1.0, -2.0)))]
    return net.value(
        x, net.op("Where", [net.const(mask, np.bool_, "mask"), *(sides if net.chance(60) else sides[::-1])])
    )


def depth_space(net: Net, x: Value) -> Value:
    """SpaceToDepth or DepthToSpace with blocks of 2."""
    if all(size % 2 == 0 for size in x.space) and not x.dynamic and x.channels <= 6:
        name = net.op("SpaceToDepth", [x.name], blocksize=2)
        return net.value(x, name, (x.channels * 4, *(size // 2 for size in x.space)))
    if x.channels % 4 == 0 and max(x.space) <= 8:
        mode = net.pick((None, "DCR", "CRD")) if net.opset >= 11 else None
        name = net.op("DepthToSpace", [x.name], blocksize=2, mode=mode)
        return net.value(x, name, (x.channels // 4, *(size * 2 for size in x.space)))
    return x


def resize(net: Net, x: Value) -> Value:
    """Upsample below opset 10, Resize from there; modes, coordinates, scales or sizes."""
    if max(x.space) > 8:
        return x
    factors = [net.pick((2.0, 1.0, 1.5, 0.5)) if size >= 4 else 2.0 for size in x.space]
    factors = [factor if (size * factor).is_integer() else 2.0 for size, factor in zip(x.space, factors, strict=True)]
    space = [int(size * factor) for size, factor in zip(x.space, factors, strict=True)]
    mode = net.pick(("nearest", "linear"))
    scales = net.const([1.0, 1.0, *factors], np.float32)
    if net.opset < 9:
        name = net.op("Upsample", [x.name], scales=[1.0, 1.0, *(max(f, 1.0) for f in factors)], mode=mode)
        return net.value(x, name, (x.channels, *(int(s * max(f, 1.0)) for s, f in zip(x.space, factors, strict=True))))
    if net.opset < 10:
        name = net.op(
            "Upsample", [x.name, net.const([1.0, 1.0, *(max(f, 1.0) for f in factors)], np.float32)], mode=mode
        )
        return net.value(x, name, (x.channels, *(int(s * max(f, 1.0)) for s, f in zip(x.space, factors, strict=True))))
    if net.opset < 11:
        return net.value(x, net.op("Resize", [x.name, scales], mode=mode), (x.channels, *space))
    mode = net.pick(("nearest", "linear", "cubic")) if len(space) == 2 else mode
    coordinates = net.pick((None, "half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"))
    nearest = net.pick((None, "floor", "round_prefer_ceil", "ceil")) if mode == "nearest" else None
    empty = "" if net.opset >= 13 else net.const([], np.float32)
    if net.chance(40) and not x.dynamic:
        shape = net.const([2**0 * size for size in (x.channels, *space)], np.int64, "index")
        batch = cut(net, net.op("Shape", [x.name]), 0, 0, 1)
        sizes = net.op("Concat", [batch, shape], axis=0)
        inputs = [x.name, empty, "" if net.opset >= 13 else net.const([], np.float32), sizes]
    else:
        inputs = [x.name, empty, scales]
    name = net.op(
        "Resize",
        inputs,
        mode=mode,
        coordinate_transformation_mode=coordinates,
        nearest_mode=nearest,
        cubic_coeff_a=-0.5 if mode == "cubic" and net.chance(50) else None,
    )
    return net.value(x, name, (x.channels, *space))


def cumulative(net: Net, x: Value) -> Value:
    """CumSum along the channels, scaled down."""
    if net.opset < 11:
        return x
    name = net.op(
        "CumSum",
        [x.name, net.const(x.axis, np.int64, "index")],
        exclusive=net.pick((None, 1)),
        reverse=net.pick((None, 1)),
    )
    return net.value(x, net.op("Mul", [name, net.const(1 / math.sqrt(x.channels))]))


def to_tokens(net: Net, x: Value) -> Value:
    """[C, *space] -> [T, C]: patches become tokens."""
    flat = net.op("Reshape", [x.name, net.ints(0, x.channels, -1)]) if len(x.space) > 1 else x.name
    name = net.op("Transpose", [flat], perm=[0, 2, 1])
    return net.value(x, name, (math.prod(x.space), x.channels), kind="tokens")


def to_channels(net: Net, x: Value) -> Value:
    """[T, D] -> [D, T]."""
    return net.value(x, net.op("Transpose", [x.name], perm=[0, 2, 1]), x.shape[::-1], kind="channels")
