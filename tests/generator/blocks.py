"""Blocks of several operators: residuals, gates, attention, recurrence, subgraphs, functions."""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto, helper

from tests.generator.activations import activation
from tests.generator.layers import conv, gemm, matmul
from tests.generator.moving import cut
from tests.generator.net import CONTRIB, Net, Value
from tests.generator.pooling import global_pool, reduce


def _same(net: Net, x: Value, channels: int | None = None) -> str:
    """A layer that keeps the space: 3 x 3 or 1 x 1, or a product."""
    channels = channels or x.channels
    if x.kind == "channels":
        k = net.pick((3, 1))
        weight = net.weight((channels, x.channels, *([k] * len(x.space))), x.channels * k ** len(x.space))
        pads = [k // 2] * 2 * len(x.space)
        inputs = [x.name, weight, net.bias(channels)]
        return net.op("Conv", inputs, pads=pads)
    made = net.op("MatMul", [x.name, net.weight((x.channels, channels), x.channels)])
    return net.op("Add", [made, net.bias(channels)])


def residual(net: Net, x: Value) -> Value:
    """x + f(x), perhaps with a Relu behind it."""
    inner = net.op("Relu", [_same(net, x)])
    branch = _same(net, x.renamed(inner))
    operator = net.pick(("Add", "Sum", "Mean", "Max")) if net.chance(30) else "Add"
    sides = [x.name, branch]
    name = net.op(operator, sides if net.chance(50) else sides[::-1])
    return net.value(x, net.op("Relu", [name]) if net.chance(50) else name)


def two_branches(net: Net, x: Value) -> Value:
    """Two layers on one tensor, joined by Concat or a product."""
    left, right = _same(net, x), _same(net, x)
    if net.chance(50):
        left = net.op("Relu", [left])
    if net.chance(40):
        return net.value(x, net.op("Mul", [left, net.op("Sigmoid", [right])]))
    shape = (2 * x.channels, *x.space) if x.kind == "channels" else (*x.space, 2 * x.channels)
    return net.value(x, net.op("Concat", [left, right], axis=x.axis), shape)


def squeeze_excite(net: Net, x: Value) -> Value:
    """Squeeze-and-excitation."""
    pooled = global_pool(net, x)
    middle = max(2, x.channels // 2)
    ones = [1] * len(x.space)
    small = net.op("Conv", [pooled.name, net.weight((middle, x.channels, *ones), x.channels), net.bias(middle)])
    small = net.op("Relu", [small])
    gate = net.op("Conv", [small, net.weight((x.channels, middle, *ones), middle), net.bias(x.channels)])
    gate = net.op(net.pick(("Sigmoid",) if "HardSigmoid" in net.off else ("Sigmoid", "HardSigmoid")), [gate])
    return net.value(x, net.op("Mul", [x.name, gate] if net.chance(70) else [gate, x.name]))


def attention(net: Net, x: Value) -> Value:
    """Softmax(Q K^T / sqrt(d)) V; one head, or several by Reshape and Transpose."""
    d = x.channels
    q, k, v = (_same(net, x) for _ in range(3))
    heads = 2 if d % 2 == 0 and net.chance(50) else 1
    if heads > 1:
        q, k, v = (
            net.op("Transpose", [net.op("Reshape", [part, net.ints(0, -1, heads, d // heads)])], perm=[0, 2, 1, 3])
            for part in (q, k, v)
        )
    keys = net.op("Transpose", [k], perm=[0, 1, 3, 2] if heads > 1 else [0, 2, 1])
    scores = net.op("MatMul", [q, keys])
    scores = net.op(*net.pick((("Div", [scores, net.const(math.sqrt(d))]), ("Mul", [scores, net.const(d**-0.5)]))))
    axis = -1 if net.opset >= 13 else (3 if heads > 1 else 2)
    mixed = net.op("MatMul", [net.op("Softmax", [scores], axis=axis), v])
    if heads > 1:
        mixed = net.op("Reshape", [net.op("Transpose", [mixed], perm=[0, 2, 1, 3]), net.ints(0, -1, d)])
    out = _same(net, x.renamed(mixed))
    return net.value(x, net.op("Add", [x.name, out]))


def recurrent(net: Net, x: Value) -> Value:
    """LSTM, GRU or RNN over tokens; all states, or the last."""
    operator, gates = net.pick((("LSTM", 4), ("GRU", 3), ("RNN", 1)))
    hidden = net.between(3, 6)
    direction = net.pick((None, "forward", "reverse", "bidirectional"))
    ways = 2 if direction == "bidirectional" else 1
    steps = net.op("Transpose", [x.name], perm=[1, 0, 2])
    inputs = [
        steps,
        net.const(net.numbers((ways, gates * hidden, x.channels), x.channels**-0.5), base="weight"),
        net.const(net.numbers((ways, gates * hidden, hidden), hidden**-0.5), base="weight"),
    ]
    if net.chance(60):
        inputs.append(net.const(net.numbers((ways, 2 * gates * hidden), 0.2)))
    linear = net.pick((None, 1)) if operator == "GRU" else None
    every, last, *_ = net.ops(operator, inputs, 2, hidden_size=hidden, direction=direction, linear_before_reset=linear)
    if net.chance(60):
        turned = net.op("Transpose", [every], perm=[2, 0, 1, 3])
        name = net.op("Reshape", [turned, net.ints(0, -1, ways * hidden)])
        return net.value(x, name, (x.shape[0], ways * hidden))
    turned = net.op("Transpose", [last], perm=[1, 0, 2])
    name = net.op("Reshape", [turned, net.ints(0, ways * hidden)])
    return net.value(x, name, (ways * hidden,), kind="vector", dynamic=False)


def if_branch(net: Net, x: Value) -> Value:
    """If on a constant or on what the input holds; its branches read tensors from outside, with layers or without."""
    layers = net.uses("layers in branches", 40)
    if net.chance(40):
        condition = net.const(net.chance(50), np.bool_, "condition")
    else:
        flat = x.renamed(net.op("Abs", [x.name]))
        largest = reduce(net, flat, list(range(len(x.shape) + 1)), keep=False, operator="ReduceMax")
        condition = net.op("Greater", [largest, net.const(net.pick((0.0, 1e4)))])
    graphs = []
    for name in ("then", "else"):
        with net.branch("If") as nodes:
            made = _same(net, x) if layers and name == "then" else net.op("Mul", [x.name, net.const(0.9)])
            made = net.op("Tanh" if name == "then" else "Relu", [made])
            graphs.append(
                helper.make_graph(nodes, name, [], [helper.make_empty_tensor_value_info(made)], net.initializers)
            )
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(net.dtype))
    for graph in graphs:
        graph.output[0].type.tensor_type.elem_type = kind
    return net.value(x, net.op("If", [condition], then_branch=graphs[0], else_branch=graphs[1]))


def loop(net: Net, x: Value) -> Value:
    """Loop of a few turns that carries one tensor."""
    layers = net.uses("layers in branches", 40)
    carried = net.fresh("carried")
    with net.branch("Loop") as nodes:
        inside = x.renamed(carried)
        made = net.op("Tanh", [_same(net, inside) if layers else net.op("Add", [carried, x.name])])
        state = net.fresh("going")
        nodes.append(helper.make_node("Identity", ["condition in"], [state]))
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(net.dtype))
        body = helper.make_graph(
            nodes,
            "body",
            [
                helper.make_tensor_value_info("turn", TensorProto.INT64, []),
                helper.make_tensor_value_info("condition in", TensorProto.BOOL, []),
                helper.make_tensor_value_info(carried, kind, None),
            ],
            [
                helper.make_tensor_value_info(state, TensorProto.BOOL, []),
                helper.make_tensor_value_info(made, kind, None),
            ],
            net.initializers,
        )
    turns, going = net.const(net.between(1, 3), np.int64, "turns"), net.const(np.bool_(1), np.bool_, "going")
    return net.value(x, net.op("Loop", [turns, going, x.name], body=body))


def function_block(net: Net, x: Value) -> Value:
    """A function of the model itself, perhaps with a layer in it."""
    if net.opset < 15:
        return x
    domain, name = "my.functions", f"Block{net.count}"
    inner = [helper.make_node("Relu", ["a"], ["r"]), helper.make_node("Mul", ["r", "s"], ["b"])]
    net.functions.append(
        helper.make_function(domain, name, ["a", "s"], ["b"], inner, [helper.make_opsetid("", net.opset)])
    )
    return net.value(x, net.op(name, [x.name, net.const(0.8)], domain=domain))


def mix_tokens(net: Net, x: Value) -> Value:
    """What tokens lose on the way to a vector: the first, the mean, or the maximum."""
    way = net.pick(("mean", "max", "first"))
    if way == "first":
        name = net.op("Gather", [x.name, net.const(0, np.int64, "index")], axis=1)
    else:
        name = reduce(net, x, [1], keep=False, operator="ReduceMean" if way == "mean" else "ReduceMax")
    return net.value(x, name, (x.channels,), kind="vector", dynamic=False)


def skip_normalization(net: Net, x: Value) -> Value:
    """onnxruntime's own SkipLayerNormalization."""
    scale, bias = net.const(np.abs(net.numbers((x.channels,), 0.2)) + 0.8), net.bias(x.channels)
    name = net.op("SkipLayerNormalization", [x.name, _same(net, x), scale, bias], domain=CONTRIB, epsilon=1e-5)
    return net.value(x, name)


def gated_half(net: Net, x: Value) -> Value:
    """A gated linear unit: one half times the sigmoid of the other."""
    if x.channels < 2 or x.channels % 2:
        return x
    half = x.channels // 2
    left, right = cut(net, x.name, x.axis, 0, half), cut(net, x.name, x.axis, half, x.channels)
    shape = (half, *x.space) if x.kind == "channels" else (*x.space, half)
    return net.value(x, net.op("Mul", [left, net.op("Sigmoid", [right])]), shape)


def perceptron(net: Net, x: Value) -> Value:
    """A layer and an activation."""
    layer = gemm if x.kind == "vector" and net.chance(60) else (conv if x.kind == "channels" else matmul)
    return activation(net, layer(net, x))
