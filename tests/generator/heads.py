"""From whatever a net has built to class scores, what stands behind them, and further outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from onnx import TensorProto, helper

from tests.generator.blocks import mix_tokens
from tests.generator.moving import squeeze
from tests.generator.net import Net, Value
from tests.generator.pooling import global_pool, reduce


def to_vector(net: Net, x: Value) -> Value:
    """[C, *space] or [T, D] -> a vector for each sample."""
    if x.kind == "vector":
        return x
    if x.kind == "tokens":
        return mix_tokens(net, x)
    small = math.prod(x.shape) <= 256 and not x.dynamic
    way = net.pick(("pool", "reduce", "flatten") if small else ("pool", "reduce"))
    if way == "reduce":
        name = reduce(net, x, list(range(2, len(x.shape) + 1)), keep=False, operator="ReduceMean")
        return net.value(x, name, (x.channels,), kind="vector", dynamic=False)
    x = global_pool(net, x) if way == "pool" else x
    size = math.prod(x.shape)
    options = ("Flatten", "Reshape", "Squeeze") if way == "pool" else ("Flatten", "Reshape")
    operator = net.pick(options)
    if operator == "Flatten":
        name = net.op("Flatten", [x.name], axis=net.pick((None, 1)))
    elif operator == "Reshape":
        name = net.op("Reshape", [x.name, net.ints(net.pick((0, -1)), size)])
    else:
        name = squeeze(net, x.name, list(range(2, len(x.shape) + 1)))
    return net.value(x, name, (size,), kind="vector", dynamic=False)


def classifier(net: Net, x: Value, classes: int) -> Value:
    """Class scores: a last layer on a vector, or a 1 x 1 Conv in front of the pooling, as in SqueezeNet."""
    if x.kind == "channels" and net.uses("scores in front of the pooling", 25):
        ones = [1] * len(x.space)
        scores = net.op("Conv", [x.name, net.weight((classes, x.channels, *ones), x.channels), net.bias(classes)])
        x = net.value(x, scores, (classes, *x.space))
        if net.chance(40):
            x = net.value(x, net.op("Relu", [x.name]))
        pooled = net.value(x, net.op("GlobalAveragePool", [x.name]), (classes, *ones), dynamic=False)
        if net.uses("scores with axes of size 1", 20):
            return pooled
        return net.value(pooled, net.op("Flatten", [pooled.name]), (classes,), kind="vector")
    x = to_vector(net, x)
    if net.chance(60):
        weight = net.weight((classes, x.channels), x.channels)
        name = net.op("Gemm", [x.name, weight, net.bias(classes)], transB=1)
    else:
        name = net.op("MatMul", [x.name, net.weight((x.channels, classes), x.channels)])
        name = net.op("Add", [name, net.bias(classes)])
    return net.value(x, name, (classes,))


def _temperature(net: Net, x: Value) -> str:
    return net.op("Div", [x.name, net.const(net.pick((1.5, 0.7)))])


def _cast(net: Net, x: Value) -> str:
    return net.op("Cast", [x.name], to=net.pick((TensorProto.DOUBLE, TensorProto.FLOAT)))


def ending(net: Net, x: Value) -> Value:
    """What stands between the last layer and the output."""
    ends: Mapping[str, Callable[[Value], str]] = {
        "nothing": lambda v: v.name,
        "Softmax": lambda v: net.op("Softmax", [v.name], axis=1),
        "LogSoftmax": lambda v: net.op("LogSoftmax", [v.name], axis=1),
        "Sigmoid": lambda v: net.op("Sigmoid", [v.name]),
        "Identity": lambda v: net.op("Identity", [v.name]),
        "temperature": lambda v: _temperature(net, v),
        "Cast": lambda v: _cast(net, v),
        "Reshape": lambda v: net.op("Reshape", [v.name, net.ints(-1, *v.shape)]),
        "Neg": lambda v: net.op("Neg", [v.name]),
    }
    for _ in range(net.pick((1, 0, 2))):
        allowed = [name for name in ends if f"scores behind {name}" not in net.off]
        way = net.pick(allowed)
        if way != "nothing" and net.uses(f"scores behind {way}"):
            x = replace(x, name=ends[way](x))
            if way == "Cast":
                return x
    return x


def further_outputs(net: Net, scores: Value) -> list[str]:
    """Names of what else the model gives: heads, features, labels, inputs, constants, shapes."""
    names: list[str] = []
    if net.uses("label as an output", 15):
        names.append(net.op("ArgMax", [scores.name], axis=1, keepdims=net.pick((0, 1))))
    if net.uses("a feature as an output", 15):
        names.append(net.pick(net.values).name)
    if net.uses("a second head", 12):
        source = net.pick(net.values)
        head = to_vector(net, source)
        names.append(net.op("Gemm", [head.name, net.weight((3, head.channels), head.channels), net.bias(3)], transB=1))
    if net.uses("an input as an output", 5):
        names.append(net.inputs[0].name)
    if net.uses("a constant as an output", 5):
        net.initializers.append(helper.make_tensor("a constant", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0]))
        names.append("a constant")
    if net.uses("a shape as an output", 5):
        names.append(net.op("Shape", [net.values[0].name]))
    if net.uses("the same scores twice", 8):
        names.append(net.op("Identity", [scores.name]))
    return names


def idle_nodes(net: Net) -> None:
    """Nodes that nothing reads, some of them layers."""
    if net.uses("idle nodes", 15):
        source = net.pick(net.values)
        name = net.op("Relu", [source.name])
        if source.kind == "vector":
            net.op("MatMul", [name, net.const(np.ones((source.channels, 2)), base="weight")])
    if net.uses("idle constants", 10):
        net.const(np.ones((40, 40)), base="weight")
