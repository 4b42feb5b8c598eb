"""The whole net with the weights of one subnet: what steps together must compute, and what training runs.

W[o, c] stays where a[c] <= a[o], for the head of subnet k where a[c] <= k; the others are 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, helper

from onnx_cbq.graph.remove.links import Product
from onnx_cbq.model import Array, Model, read_only
from onnx_cbq.stepping.units import Units


@dataclass(frozen=True)
class Nested:
    """Nested subnets of one net.

    Attributes:
        assignment: subnet of each unit, int64 [units].
        constants: initializer name -> trained weights and biases of the layers, whole.
        biases: of the head in each subnet, [subnets, classes]; None if the head has none.
        steps: how many subnets there are.
    """

    assignment: Array
    constants: Mapping[str, Array]
    biases: Array | None
    steps: int


def weight_mask(units: Units, assignment: Array, product: Product) -> Array:
    """Which weights of a hidden layer obey the reuse rule, bool, of as many axes as the weight."""
    layer = product.layer
    if len(product.reads) > 1:
        return np.ones((1,) * len(layer.weight_shape), np.bool_)
    outputs, inputs = (assignment[units.of[name]] for name in (product.use.output, product.use.activation))
    return _shaped(product, inputs[None, :] <= outputs[:, None])


def head_mask(units: Units, assignment: Array, subnet: int) -> Array:
    """Which weights of the head a subnet has."""
    return _shaped(units.head, (assignment[units.of[units.features]] <= subnet)[None, :])


def owner(units: Units, assignment: Array, product: Product) -> Array:
    """The subnet that each weight belongs to: that of its output; in the head, that of its input."""
    if product is units.head:
        return _shaped(product, assignment[units.of[units.features]][None, :])
    return _shaped(product, assignment[units.of[product.use.output]][:, None])


def subnet_model(units: Units, nested: Nested, subnet: int) -> Model:
    """The net as subnet number `subnet` computes it, with all its channels, those of larger ones unread."""
    weights = {product.layer.weight: product for product in (*units.hidden, units.head)}
    values = dict(nested.constants)
    for name, product in weights.items():
        if product is units.head:
            mask = head_mask(units, nested.assignment, subnet)
        else:
            mask = weight_mask(units, nested.assignment, product)
        values[name] = np.where(mask, values[name], np.float32(0))
    if nested.biases is not None:
        values[str(units.head.use.bias)] = nested.biases[subnet - 1]
    return units.model.with_constants(values)


def split_model(units: Units) -> tuple[Model, Model]:
    """The net up to what the head reads, and the head with the nodes behind it up to the class scores."""
    body = units.model.with_graph(outputs=[units.features])
    skeleton = ModelProto()
    skeleton.CopyFrom(units.model.skeleton)
    nodes = [units.model.producers[units.head.use.output], *units.tail]
    shape: list[int | str] = list(units.shapes[units.features])
    shape[units.shapes.batch_axis[units.features] or 0] = "batch"
    names = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in skeleton.graph.initializer if tensor.name in names]
    for field, content in (
        ("node", nodes),
        ("input", [helper.make_tensor_value_info(units.features, 1, shape)]),
        ("initializer", kept),
    ):
        skeleton.graph.ClearField(field)
        getattr(skeleton.graph, field).extend(content)
    weights = {name: read_only(value) for name, value in units.model.weights.items() if name in names}
    return body, Model(skeleton, weights).with_graph(outputs=[units.logits.tensor])


def _shaped(product: Product, matrix: Array) -> Array:
    """[outputs, inputs] -> as the weight has it; either may be 1."""
    rows = matrix if product.layer.weight_axis == 0 else matrix.T
    return rows.reshape(*rows.shape, *(1,) * (len(product.layer.weight_shape) - 2))
