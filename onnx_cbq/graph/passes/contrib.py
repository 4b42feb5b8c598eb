"""Operators of onnxruntime's own domain whose meaning is known, in terms of the standard's.

onnxruntime's optimizer writes them where it saves what it runs, and exporters of transformers do. Written out, their
layers are found, and everything that follows knows them; onnxruntime fuses them again when it loads the file. Nodes of
other domains stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from onnx_cbq.graph.shapes import Example, Shapes
from onnx_cbq.model import STANDARD, Array, FreshNames, Model, attributes

CONTRIB = "com.microsoft"
# onnxruntime takes these in the standard's domain, also where the standard's operator set does not have them yet.
_UNOFFICIAL = ("SimplifiedLayerNormalization", "LayerNormalization")
_LAYER_NORMALIZATION = 17
_AXES_ARE_INPUTS = 18


@dataclass
class _Rewrite:
    """One node and what it becomes; every method returns the name of the tensor that it makes."""

    node: NodeProto
    shapes: Shapes
    opset: int
    fresh: FreshNames
    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)

    def op(self, operator: str, *inputs: str, **attrs: Any) -> str:
        output = self.fresh(f"{self.node.output[0]}_{operator}")
        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attrs))
        return output

    def constant(self, value: Array) -> str:
        name = self.fresh(f"{self.node.output[0]}_constant")
        self.constants[name] = value
        return name

    def number(self, value: float) -> str:
        return self.constant(np.array(value, np.float32))

    def given(self, index: int) -> str:
        """Input `index`, or "" if it is left out."""
        return str(self.node.input[index]) if index < len(self.node.input) else ""

    def attr(self, name: str, default: float = 0.0) -> float:
        return float(attributes(self.node).get(name, default))

    def attrs_without(self, *names: str) -> dict[str, object]:
        return {name: value for name, value in attributes(self.node).items() if name not in names}

    def added(self, *names: str) -> str:
        """The sum of those that are given."""
        first, *rest = [name for name in names if name]
        for name in rest:
            first = self.op("Add", first, name)
        return first

    def mean(self, name: str) -> str:
        """Over the last axis, which stays."""
        if self.opset >= _AXES_ARE_INPUTS:
            return self.op("ReduceMean", name, self.constant(np.array([-1])), keepdims=1)
        return self.op("ReduceMean", name, axes=[-1], keepdims=1)


_Rule = Callable[[_Rewrite], str | None]


def expand_contrib(model: Model, example: Example) -> Model:
    """`model` with every such node written out whose attributes and outputs allow it."""
    if not any(_rule(node, model.opset) for node in model.nodes):
        return model
    shapes, fresh = example.shapes(model), model.fresh_names()
    nodes: list[NodeProto] = []
    constants: dict[str, Array] = {}
    for node in model.nodes:
        rule = _rule(node, model.opset)
        rewrite = _Rewrite(node, shapes, model.opset, fresh)
        result = rule(rewrite) if rule else None
        if result is None:
            nodes.append(node)
            continue
        for made in rewrite.nodes:
            made.output[:] = [node.output[0] if name == result else name for name in made.output]
            made.input[:] = [node.output[0] if name == result else name for name in made.input]
        rewrite.nodes[-1].name = node.name
        nodes += rewrite.nodes
        constants |= rewrite.constants
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(model.skeleton)
    skeleton.graph.ClearField("node")
    skeleton.graph.node.extend(nodes)
    skeleton.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return Model(skeleton, model.weights)


def _rule(node: NodeProto, opset: int) -> _Rule | None:
    if node.domain == CONTRIB:
        return _RULES.get(node.op_type)
    if node.domain in STANDARD and node.op_type in _UNOFFICIAL:
        known = node.op_type == "LayerNormalization" and opset >= _LAYER_NORMALIZATION
        return None if known else _RULES[node.op_type]
    return None


def _gelu(rewrite: _Rewrite) -> str:
    """x (1 + erf(x / sqrt 2)) / 2, of the sum of what is given: BiasGelu has a bias."""
    x = rewrite.added(rewrite.given(0), rewrite.given(1))
    erf = rewrite.op("Erf", rewrite.op("Div", x, rewrite.number(math.sqrt(2))))
    doubled = rewrite.op("Mul", x, rewrite.op("Add", erf, rewrite.number(1)))
    return rewrite.op("Mul", doubled, rewrite.number(0.5))


def _fast_gelu(rewrite: _Rewrite) -> str:
    """x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2."""
    x = rewrite.added(rewrite.given(0), rewrite.given(1))
    cube = rewrite.op("Mul", rewrite.op("Mul", x, x), x)
    inner = rewrite.op("Add", x, rewrite.op("Mul", cube, rewrite.number(0.044715)))
    tanh = rewrite.op("Tanh", rewrite.op("Mul", inner, rewrite.number(math.sqrt(2 / math.pi))))
    doubled = rewrite.op("Mul", x, rewrite.op("Add", tanh, rewrite.number(1)))
    return rewrite.op("Mul", doubled, rewrite.number(0.5))


def _quick_gelu(rewrite: _Rewrite) -> str:
    """x sigmoid(alpha x)."""
    scaled = rewrite.op("Mul", rewrite.given(0), rewrite.number(rewrite.attr("alpha", 1.702)))
    return rewrite.op("Mul", rewrite.given(0), rewrite.op("Sigmoid", scaled))


def _activated(rewrite: _Rewrite, x: str, parameters: list[float]) -> str | None:
    """The activation that the node has in its attributes, applied to `x`."""
    name = str(attributes(rewrite.node).get("activation", ""))
    if name in ("", "Relu", "Sigmoid", "Tanh"):
        return rewrite.op(name, x) if name else x
    if name == "LeakyRelu" and parameters:
        return rewrite.op(name, x, alpha=parameters[0])
    if name == "HardSigmoid" and len(parameters) > 1:
        return rewrite.op(name, x, alpha=parameters[0], beta=parameters[1])
    if name == "Clip" and len(parameters) > 1:
        return rewrite.op(name, x, *map(rewrite.number, parameters))
    return None


def _fused_conv(rewrite: _Rewrite) -> str | None:
    """Conv, plus what may be added to it, and an activation."""
    kept = rewrite.attrs_without("activation", "activation_params")
    product = rewrite.op("Conv", *(name for name in map(rewrite.given, range(3)) if name), **kept)
    parameters = [float(p) for p in attributes(rewrite.node).get("activation_params", [])]
    return _activated(rewrite, rewrite.added(product, rewrite.given(3)), parameters)


def _fused_gemm(rewrite: _Rewrite) -> str | None:
    names = ("activation_alpha", "activation_beta", "activation_gamma")
    product = rewrite.op("Gemm", *rewrite.node.input, **rewrite.attrs_without("activation", *names))
    given = attributes(rewrite.node)
    return _activated(rewrite, product, [float(given[name]) for name in names if name in given])


def _fused_matmul(rewrite: _Rewrite) -> str | None:
    """alpha A' B', where the last two axes of either may change places."""
    if rewrite.attr("transBatchA") or rewrite.attr("transBatchB"):
        return None
    sides = []
    for index, turned in enumerate(("transA", "transB")):
        name = rewrite.given(index)
        rank = len(rewrite.shapes[name])
        if rewrite.attr(turned) and rank > 1:
            name = rewrite.op("Transpose", name, perm=[*range(rank - 2), rank - 1, rank - 2])
        sides.append(name)
    product, alpha = rewrite.op("MatMul", *sides), rewrite.attr("alpha", 1.0)
    return product if alpha == 1 else rewrite.op("Mul", product, rewrite.number(alpha))


def _normalized(rewrite: _Rewrite, x: str, scale: str, bias: str, *, centred: bool) -> str:
    """(x - mean) / sqrt(var + epsilon) scale + bias over the last axis; not `centred`, x / sqrt(mean x^2 + epsilon)."""
    epsilon = rewrite.attr("epsilon", 1e-12 if rewrite.node.op_type.startswith("Skip") else 1e-5)
    if centred and rewrite.opset >= _LAYER_NORMALIZATION:
        inputs = [name for name in (x, scale, bias) if name]
        return rewrite.op("LayerNormalization", *inputs, axis=-1, epsilon=epsilon)
    difference = rewrite.op("Sub", x, rewrite.mean(x)) if centred else x
    variance = rewrite.mean(rewrite.op("Mul", difference, difference))
    root = rewrite.op("Sqrt", rewrite.op("Add", variance, rewrite.number(epsilon)))
    scaled = rewrite.op("Mul", rewrite.op("Div", difference, root), scale)
    return rewrite.added(scaled, bias)


def _layer_normalization(rewrite: _Rewrite) -> str | None:
    rank = len(rewrite.shapes[rewrite.given(0)])
    if any(rewrite.node.output[1:]) or int(rewrite.attr("axis", -1)) % rank != rank - 1:
        return None
    centred = rewrite.node.op_type == "LayerNormalization"
    return _normalized(rewrite, rewrite.given(0), rewrite.given(1), rewrite.given(2), centred=centred)


def _skip_layer_normalization(rewrite: _Rewrite) -> str | None:
    """Normalises x + skip + bias, and may give that sum as its fourth output."""
    centred = rewrite.node.op_type == "SkipLayerNormalization"
    beta, bias = (rewrite.given(3), rewrite.given(4)) if centred else ("", rewrite.given(3))
    given = list(rewrite.node.output)
    if any(given[1:3]):
        return None
    total = rewrite.added(rewrite.given(0), rewrite.given(1), bias)
    if len(given) > 3 and given[3]:
        rewrite.nodes[-1].output[0] = total = given[3]
    return _normalized(rewrite, total, rewrite.given(2), beta, centred=centred)


_RULES: Mapping[str, _Rule] = {
    "Gelu": _gelu,
    "BiasGelu": _gelu,
    "FastGelu": _fast_gelu,
    "QuickGelu": _quick_gelu,
    "FusedConv": _fused_conv,
    "FusedGemm": _fused_gemm,
    "FusedMatMul": _fused_matmul,
    "TransposeMatMul": _fused_matmul,
    "LayerNormalization": _layer_normalization,
    "SimplifiedLayerNormalization": _layer_normalization,
    "SkipLayerNormalization": _skip_layer_normalization,
    "SkipSimplifiedLayerNormalization": _skip_layer_normalization,
}
