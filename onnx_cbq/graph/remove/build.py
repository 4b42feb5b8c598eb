"""From the nodes of a graph to links between the channels of their tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto

from onnx_cbq.graph.remove.links import Flattened, Joined, Link, Opaque, Product, Same, Widened
from onnx_cbq.graph.shapes import Shapes
from onnx_cbq.model import STANDARD, Array, Model, attributes
from onnx_cbq.records import Layer, Layers, LayerWeights, Use

# They treat every number alike.
UNARY = frozenset(
    ("Relu", "Clip", "LeakyRelu", "Elu", "Selu", "Celu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Softplus")
    + ("Softsign", "Gelu", "Mish", "Erf", "Exp", "Log", "Sqrt", "Abs", "Neg", "Reciprocal", "Identity", "Cast")
)
# They treat the numbers at one place of two tensors.
BINARY = frozenset(("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "PRelu"))
# They treat every channel, on axis 1, by itself.
PER_CHANNEL = frozenset(
    ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "GlobalLpPool", "BatchNormalization")
)
FLATTENING = frozenset(("Flatten", "Reshape", "Squeeze"))


@dataclass(frozen=True)
class Channels:
    """How the channels of all tensors hang together.

    Attributes:
        axis: of each tensor along which its channels lie, out of `ranks` axes; it has `sizes` of them.
        links: in the order of the nodes.
    """

    axis: Mapping[str, int]
    ranks: Mapping[str, int]
    sizes: Mapping[str, int]
    links: tuple[Link, ...]


def find_channels(
    model: Model, layers: Layers, weights: Mapping[str, LayerWeights], shapes: Shapes, values: Mapping[str, Array]
) -> Channels:
    """Follow the channels through the graph.

    `values` says for the activation that a layer reads what each of its channels is, if it is a constant: [channels],
    nan where it is not the same everywhere.
    """
    return _Builder(model, layers, weights, shapes, values).build()


def input_axis(layer: Layer, rank: int) -> int:
    """The axis of an activation of that rank along which a layer's inputs lie."""
    return 1 if layer.operator in ("Conv", "ConvTranspose", "Gemm") else rank - 1


def reads(layer: Layer, codes: Array) -> Array:
    """Whether a channel of a layer has codes other than 0 for an input of its group, bool [g, O/g, I/g]."""
    by_input = inputs_first(layer, codes).any(axis=2)
    return by_input.reshape(layer.groups, -1, by_input.shape[1])


def inputs_first(layer: Layer, codes: Array) -> Array:
    """Codes as [channels, inputs per group, positions of the kernel]."""
    inputs = layer.weight_shape[1] if layer.operator == "Conv" else layer.weight_shape[1 - layer.weight_axis]
    return layer.rows(codes).reshape(layer.channels, inputs, -1)


def title(node: NodeProto) -> str:
    """How a reason speaks of a node."""
    return f"{node.op_type} {node.name or node.output[0]}"


class _Builder:
    """Walks the graph once, in order."""

    def __init__(
        self,
        model: Model,
        layers: Layers,
        weights: Mapping[str, LayerWeights],
        shapes: Shapes,
        values: Mapping[str, Array],
    ) -> None:
        self._model = model
        self._weights = weights
        self._shapes = shapes
        self._values = values
        self._uses = {use.output: (layer, use) for layer in layers.products for use in layer.uses}
        self._axis: dict[str, int] = {}
        # Tensors all of whose channels are kept anyway, so that any axis is as good as another.
        self._free: set[str] = set()

    def build(self) -> Channels:
        self._axis = {spec.name: 1 for spec in self._model.inputs}
        self._free = set(self._axis)
        links = tuple(self._link(node) for node in self._model.nodes)
        ranks = {name: len(self._shapes[name]) if name in self._shapes else 0 for name in self._axis}
        return Channels(self._axis, ranks, {name: self._size(name) for name in self._axis}, links)

    def _link(self, node: NodeProto) -> Link:
        """The link of a node whose channels can be followed, or one that keeps everything."""
        link: Link | None = None
        inputs = [name for name in node.input if name and not self._model.is_constant(name)]
        if node.output[0] in self._uses:
            link = self._product(node, *self._uses[node.output[0]])
        elif self._free.issuperset(inputs):
            pass
        elif node.domain in STANDARD and len(node.output) == 1 and not _has_graphs(node):
            make = self._makers().get(node.op_type)
            link = make(node) if make else None
        if link is not None:
            return link
        for name in filter(None, node.output):
            rank = len(self._shapes[name]) if name in self._shapes else 0
            self._axis[name] = min(1, max(rank - 1, 0))
            self._free.add(name)
        return Opaque(title(node), inputs, [name for name in node.output if name])

    def _makers(self) -> Mapping[str, Callable[[NodeProto], Link | None]]:
        return {
            **dict.fromkeys(UNARY, self._unary),
            **dict.fromkeys(BINARY, self._binary),
            **dict.fromkeys(PER_CHANNEL, self._per_channel),
            **dict.fromkeys(FLATTENING, self._flattened),
            "Concat": self._joined,
            "Transpose": self._transposed,
            "Pad": self._padded,
            "Slice": self._sliced,
        }

    def _product(self, node: NodeProto, layer: Layer, use: Use) -> Link | None:
        self._axis[use.output] = use.channel_axis
        grouped_transpose = layer.operator == "ConvTranspose" and layer.groups > 1
        matrix = use.weight_index == 1 and len(layer.weight_shape) == 2
        looked_up = len(self._model.consumers[layer.weight]) > len(layer.uses)
        if grouped_transpose or looked_up or (layer.operator == "MatMul" and not matrix):
            return None
        if not self._agree([use.activation], input_axis(layer, len(self._shapes[use.activation]))):
            return None
        codes, values = self._weights[layer.name].codes, self._values[use.activation]
        return Product(title(node), layer, use, reads(layer, codes), values, self._takes(layer, use))

    def _takes(self, layer: Layer, use: Use) -> str:
        if layer.operator == "ConvTranspose" or layer.groups > 1:
            return "none"
        bias = None if use.bias is None else self._model.constant(use.bias)
        if bias is None or bias.shape != (layer.channels,) or len(self._model.consumers[use.bias or ""]) > 1:
            return "no bias"
        padded = use.windows is not None and (any(use.windows.before) or max(use.windows.after) > 0)
        return "zero padding" if padded else "all"

    def _unary(self, node: NodeProto) -> Link | None:
        if any(name and not self._is_single(name) for name in node.input[1:]):
            return None
        return self._same(node, [node.input[0]])

    def _per_channel(self, node: NodeProto) -> Link | None:
        known = all(self._model.is_constant(name) for name in node.input[1:])
        return self._same(node, [node.input[0]]) if known and self._axis[node.input[0]] == 1 else None

    def _binary(self, node: NodeProto) -> Link | None:
        inputs = [name for name in node.input if not self._model.is_constant(name)]
        if not self._agree(inputs, next(self._axis[name] for name in inputs if name not in self._free)):
            return None
        ranks = {len(self._shapes[name]) for name in (*inputs, node.output[0])}
        constants = [self._shapes[name] for name in node.input if name not in inputs]
        if len(ranks) > 1 or any(len(shape) > min(ranks) for shape in constants):
            return None
        return self._same(node, inputs)

    def _padded(self, node: NodeProto) -> Link | None:
        """Pads that leave the channels alone, or put zeros beside them."""
        pads = self._model.constant(node.input[1]) if len(node.input) in (2, 3) else None
        axis = self._axis[node.input[0]]
        if pads is None:
            return None
        before, after = int(pads[axis]), int(pads[axis + len(pads) // 2])
        if before or after:
            return self._widened(node, before, after)
        return self._same(node, [node.input[0]]) if all(map(self._is_single, filter(None, node.input[2:]))) else None

    def _widened(self, node: NodeProto, before: int, after: int) -> Link | None:
        source, output = node.input[0], node.output[0]
        value = self._model.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        zeros = attributes(node).get("mode", "constant") == "constant" and (value is None or not value.any())
        if min(before, after) < 0 or not zeros:
            return None
        self._axis[output] = self._axis[source]
        return Widened(title(node), [source], [output], before=before, count=self._size(source))

    def _sliced(self, node: NodeProto) -> Link | None:
        """Parts of axes that are not those of the channels, named one by one."""
        axes = self._model.constant(node.input[3]) if len(node.input) > 3 else None
        if axes is None or self._axis[node.input[0]] in axes % len(self._shapes[node.input[0]]):
            return None
        return self._same(node, [node.input[0]]) if all(map(self._model.is_constant, node.input[1:])) else None

    def _same(self, node: NodeProto, inputs: list[str]) -> Link | None:
        self._axis[node.output[0]] = self._axis[inputs[0]]
        if any(self._size(name) != self._size(node.output[0]) for name in inputs):
            return None
        return Same(title(node), inputs, node.output[0])

    def _transposed(self, node: NodeProto) -> Link:
        order = list(attributes(node).get("perm", range(len(self._shapes[node.input[0]]) - 1, -1, -1)))
        self._axis[node.output[0]] = order.index(self._axis[node.input[0]])
        return Same(title(node), [node.input[0]], node.output[0])

    def _joined(self, node: NodeProto) -> Link | None:
        axis = attributes(node)["axis"] % len(self._shapes[node.output[0]])
        if any(map(self._model.is_constant, node.input)) or not self._agree(node.input, axis):
            return None
        self._axis[node.output[0]] = axis
        return Joined(list(node.input), node.output[0])

    def _flattened(self, node: NodeProto) -> Link | None:
        """[N, ...] -> [N, product of the rest], the batch in front of both."""
        source, output = node.input[0], node.output[0]
        before, after = self._shapes[source], self._shapes[output]
        flat = len(after) == 2 and len(before) >= 2 and after == (before[0], int(np.prod(before[1:])))
        batched = {self._shapes.batch_axis[name] for name in (source, output)} == {0}
        if not flat or not batched or self._axis[source] < 1:
            return None
        self._axis[output] = 1
        return Flattened(source, output, before[1:], self._axis[source] - 1)

    def _agree(self, names: Iterable[str], axis: int) -> bool:
        """Whether the channels of all these tensors lie on one axis, or can be taken to."""
        for name in self._free.intersection(names):
            if axis < len(self._shapes[name]):
                self._axis[name] = axis
                self._free.discard(name)
        return all(self._axis[name] == axis for name in names)

    def _is_single(self, name: str) -> bool:
        value = self._model.constant(name)
        return value is not None and value.size == 1

    def _size(self, name: str) -> int:
        shape = self._shapes.sizes.get(name, ())
        return shape[self._axis[name]] if self._axis[name] < len(shape) else 1


def _has_graphs(node: NodeProto) -> bool:
    return any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute)
