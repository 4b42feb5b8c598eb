"""Cut channels out of a graph, its layers and their weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from onnx import ModelProto, NodeProto, helper

from onnx_cbq.graph.remove.analyse import Found
from onnx_cbq.graph.remove.build import BINARY
from onnx_cbq.model import Array, Model
from onnx_cbq.records import Layer, Layers, LayerWeights, Use, Written


def cut(written: Written, found: Found, biases: Mapping[str, Array]) -> Written:
    """`written` without the channels that do not stay; `biases` are those of layers that took up constants, whole."""
    return _Cutter(written, found, biases).cut()


class _Cutter:
    """Writes the nodes and constants that change."""

    def __init__(self, written: Written, found: Found, biases: Mapping[str, Array]) -> None:
        self._written = written
        self._model = written.model
        self._found = found
        self._biases = biases
        self._fresh = written.model.fresh_names()
        self._constants: dict[str, Array] = {}
        self._uses = {use.output: (layer, use) for layer in written.layers.products for use in layer.uses}
        self._new_uses: dict[str, Use] = {}

    def cut(self) -> Written:
        nodes = [self._node(node) for node in self._model.nodes]
        layers: list[Layer] = []
        weights: dict[str, LayerWeights] = {}
        for layer in self._written.layers:
            changed, weights[layer.name] = self._layer(layer)
            layers.append(changed)
        return Written(self._with(nodes), Layers(tuple(layers), self._written.layers.left_float), weights)

    def _node(self, node: NodeProto) -> NodeProto:
        """The node with its constants cut to fit."""
        copy = NodeProto()
        copy.CopyFrom(node)
        if node.output[0] in self._uses:
            self._use(copy, *self._uses[node.output[0]])
            return copy
        stays = self._found.stays(node.output[0]) if node.output[0] else np.ones(1, np.bool_)
        if stays.all():
            return copy
        if node.op_type == "BatchNormalization":
            for index in range(1, 5):
                self._replace(copy, index, self._model.weight(node.input[index])[stays])
        elif node.op_type == "Reshape":
            # Its shape would name the number of columns.
            return helper.make_node("Flatten", [node.input[0]], [node.output[0]], name=node.name, axis=1)
        elif node.op_type in BINARY:
            self._operands(copy, stays)
        return copy

    def _operands(self, node: NodeProto, stays: Array) -> None:
        """Constant operands that have the channels too."""
        from_end = self._found.channels.axis[node.output[0]] - self._found.channels.ranks[node.output[0]]
        for index, name in enumerate(node.input):
            value = self._model.constant(name)
            if value is not None and value.ndim >= -from_end and value.shape[from_end] == len(stays):
                self._replace(node, index, value.compress(stays, from_end))

    def _use(self, node: NodeProto, layer: Layer, use: Use) -> None:
        stays = self._found.stays(use.output)
        bias, shape = use.bias, list(use.output_shape)
        if bias is not None and (bias in self._biases or not stays.all()):
            value = self._biases.get(bias, self._model.weight(bias))
            bias = self._replace(node, 2, value[stays] if value.shape == stays.shape else value)
        if not stays.all():
            shape[use.channel_axis] = int(stays.sum())
        self._new_uses[use.output] = replace(use, bias=bias, output_shape=tuple(shape))
        for attribute in node.attribute:
            if attribute.name == "group":
                attribute.i = self._groups(layer)

    def _layer(self, layer: Layer) -> tuple[Layer, LayerWeights]:
        weights, stays = self._written.weights[layer.name], self._found.stays_of(layer)
        if layer.kind != "product":
            return layer, weights
        inputs = self._inputs(layer)

        def smaller(value: Array) -> Array:
            value = value.compress(stays, layer.weight_axis)
            return value if inputs is None else value.compress(inputs, 1 - layer.weight_axis)

        codes = smaller(weights.codes)
        if codes.shape != layer.weight_shape:
            self._constants[layer.weight] = smaller(self._model.weight(layer.weight))
        changed = replace(
            layer,
            weight_shape=codes.shape,
            groups=self._groups(layer),
            uses=tuple(self._new_uses[use.output] for use in layer.uses),
        )
        return changed, LayerWeights(codes, weights.scale[stays], weights.bits[stays], weights.grid.kept(stays))

    def _inputs(self, layer: Layer) -> Array | None:
        """Which inputs of the weight stay; None where groups go as a whole, or nothing goes."""
        stays = self._found.stays(layer.uses[0].activation)
        return None if layer.groups > 1 or stays.all() else stays

    def _groups(self, layer: Layer) -> int:
        if layer.groups == 1:
            return 1
        stays = self._found.stays(layer.uses[0].activation)
        return int(stays.sum()) * layer.groups // len(stays)

    def _replace(self, node: NodeProto, index: int, value: Array) -> str:
        """Give the node a constant of its own; its name stays if no other node reads it."""
        name = str(node.input[index])
        if len(self._model.consumers[name]) > 1:
            name = self._fresh(name)
        self._constants[name] = value
        node.input[index] = name
        return name

    def _with(self, nodes: list[NodeProto]) -> Model:
        skeleton = ModelProto()
        skeleton.CopyFrom(self._model.skeleton)
        kept = [t for t in skeleton.graph.initializer if t.name not in self._constants]
        skeleton.graph.ClearField("value_info")  # shapes that no longer hold
        for field, content in (("node", nodes), ("initializer", kept)):
            skeleton.graph.ClearField(field)
            getattr(skeleton.graph, field).extend(content)
        weights = {name: value for name, value in self._model.weights.items() if name not in self._constants}
        return Model(skeleton, weights).with_graph(constants=self._constants)
