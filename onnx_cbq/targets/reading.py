"""What a file with QuantizeLinear and DequantizeLinear says: which node multiplies which codes, on which grids."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from onnx import NodeProto

from onnx_cbq.errors import ModelError
from onnx_cbq.graph.integer_rules import MOVEMENT, ON_CODES, SATURATION
from onnx_cbq.graph.load import LAYER_OPERATORS
from onnx_cbq.graph.passes.constants import QUANTIZING, fold_constants
from onnx_cbq.graph.shapes import Example
from onnx_cbq.model import STANDARD, Array, Model, attributes

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_CODES_OPERATOR = {
    "QLinearConv": "Conv",
    "ConvInteger": "Conv",
    "QLinearMatMul": "MatMul",
    "MatMulInteger": "MatMul",
    "MatMulIntegerToFloat": "MatMul",
    "DynamicQuantizeMatMul": "MatMul",
    "QGemm": "Gemm",
}


@dataclass(frozen=True)
class Grid:
    """Scale and zero point of a QuantizeLinear or DequantizeLinear; None where they are computed.

    Attributes:
        tensor: the codes.
        axis: of a scale per channel, None where none is written.
    """

    tensor: str
    scale: Array | None
    zero_point: Array | None
    axis: int | None

    @property
    def dtype(self) -> np.dtype[np.generic] | None:
        """The type of the codes; without a zero point it is uint8."""
        return None if self.zero_point is None else self.zero_point.dtype

    def same_as(self, other: Grid) -> bool:
        """Whether both stand for the same numbers."""
        pairs = ((self.scale, other.scale), (self.zero_point, other.zero_point))
        return all(a is not None and b is not None and a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


@dataclass(frozen=True)
class Product:
    """A node that multiplies an activation with a constant weight.

    Attributes:
        node: its node; `operator` is what it computes, whatever the format.
        activation: what it multiplies: the name of the codes, None where the activation is float.
        activation_type: of these codes.
        weight: the name of the weight's codes; `codes` are they, None where the weight is float.
        grids: of activation, weight and bias, where they are dequantized in front of the node.
        index: which input of the node the weight is.
    """

    node: NodeProto
    operator: str
    activation: str | None
    activation_type: np.dtype[np.generic] | None
    weight: str
    codes: Array | None
    grids: tuple[Grid | None, Grid | None, Grid | None] = (None, None, None)
    index: int = 1

    @property
    def name(self) -> str:
        """How a message speaks of it."""
        return self.node.name or self.node.output[0]

    @property
    def channel_axis(self) -> int:
        """The axis of the weight along which the output channels lie."""
        assert self.codes is not None
        if self.operator == "Conv":
            return 0
        if self.operator == "ConvTranspose":
            # One output channel for each group: those of the groups lie along the first axis.
            return 0 if self.groups > 1 and self.codes.shape[1] == 1 else 1
        if self.operator == "Gemm":
            return 0 if attributes(self.node).get("transB", 0) else 1
        return max(self.codes.ndim - (1 if self.index else 2), 0)

    @property
    def on_codes(self) -> bool:
        """Whether the node itself multiplies codes, with no DequantizeLinear in front."""
        return self.node.op_type in ON_CODES

    @property
    def by_group(self) -> Array:
        """The codes with the weights of each output channel in a row, in the order of its group's input channels."""
        assert self.codes is not None
        if self.operator != "ConvTranspose":
            return np.moveaxis(self.codes, self.channel_axis, 0)
        # [input channels, output channels of a group, kernel]
        grouped = self.codes.reshape(self.groups, -1, *self.codes.shape[1:])
        return np.moveaxis(grouped, 2, 1).reshape(-1, grouped.shape[1], *self.codes.shape[2:])

    @property
    def groups(self) -> int:
        """Of a convolution."""
        return int(attributes(self.node).get("group", 1))


class QdqFile:
    """A model with everything that does not depend on its inputs computed, packed weights among it."""

    def __init__(self, model: Model) -> None:
        self.source = model
        self.model = fold_constants(model, Example({}), QUANTIZING)

    @cached_property
    def nodes(self) -> list[NodeProto]:
        """All nodes, in order."""
        return self.model.nodes

    def of_type(self, *operators: str) -> Iterator[NodeProto]:
        """The nodes of some operators, whatever their domain."""
        return (node for node in self.nodes if node.op_type in operators)

    @property
    def is_quantized(self) -> bool:
        """Whether any number in it is quantized."""
        return any(node.op_type in (QUANTIZE, DEQUANTIZE, *ON_CODES) for node in self.nodes)

    def grid(self, node: NodeProto) -> Grid:
        """That of a QuantizeLinear or DequantizeLinear."""
        tensor = node.output[0] if node.op_type == QUANTIZE else node.input[0]
        if len(node.input) < 2:
            raise ModelError(
                f"node {node.name or node.output[0]!r} ({node.op_type}) has no scale: the model is damaged"
            )
        zero = self.model.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        return Grid(tensor, self.model.constant(node.input[1]), zero, attributes(node).get("axis"))

    def dequantizer(self, tensor: str) -> NodeProto | None:
        """The DequantizeLinear that makes a tensor."""
        producer = self.model.producers.get(tensor)
        return producer if producer is not None and producer.op_type == DEQUANTIZE else None

    def quantizers(self, tensor: str) -> list[NodeProto]:
        """The QuantizeLinear nodes that read a tensor."""
        return [node for node in self.model.consumers.get(tensor, ()) if node.op_type == QUANTIZE]

    @cached_property
    def products(self) -> tuple[Product, ...]:
        """Every product of an activation with a constant weight, in order."""
        return tuple(found for node in self.nodes if (found := self._product(node)) is not None)

    def largest_code(self, tensor: str) -> int:
        """The largest uint8 code that may stand in a tensor; that of int8 is what it becomes as uint8.

        A Clip in front of a QuantizeLinear says so where activations have less than 8 bits.
        """
        producer = self.model.producers.get(tensor)
        while producer is not None and producer.op_type in MOVEMENT:
            producer = self.model.producers.get(producer.input[0])
        if producer is None or producer.op_type != QUANTIZE:
            return 255
        high, grid = self._highest(producer.input[0]), self.grid(producer)
        if high is None or grid.scale is None or grid.zero_point is None or grid.scale.size != 1:
            return 255
        code = int(np.rint(high / float(grid.scale.reshape(-1)[0]))) + int(grid.zero_point.reshape(-1)[0])
        return min(code + (128 if grid.dtype == np.int8 else 0), 255)

    def _highest(self, tensor: str) -> float | None:
        """Where a Clip cuts a tensor off, one that onnxruntime has fused with a product too; None where none does."""
        node = self.model.producers.get(tensor)
        if node is None:
            return None
        if node.op_type == "Clip" and len(node.input) > 2:
            high = self.model.constant(node.input[2])
            return None if high is None else float(high.item())
        known = attributes(node)
        if node.op_type.startswith("Fused") and known.get("activation") == "Clip":
            return float(known["activation_params"][1])
        return None

    def behind(self, node: NodeProto) -> tuple[NodeProto, NodeProto | None]:
        """The node whose output is quantized if that of `node` is: itself, or the Relu or Clip that alone reads it."""
        readers = self.model.consumers.get(node.output[0], [])
        if len(readers) == 1 and readers[0].op_type in SATURATION and node.output[0] not in self.model.outputs:
            return readers[0], readers[0]
        return node, None

    @property
    def integer_products(self) -> int:
        """How many products stand in it as one node on codes: in a graph as it is run, those of integers."""
        return sum(product.node.op_type in ON_CODES for product in self.products)

    def _product(self, node: NodeProto) -> Product | None:
        if node.op_type in ON_CODES:
            return self._on_codes(node)
        operator = node.op_type.removeprefix("Fused")
        if operator not in LAYER_OPERATORS or len(node.input) < 2:
            return None
        if node.domain not in STANDARD and operator == node.op_type:
            return None
        for index in (1, 0) if operator == "MatMul" else (1,):
            dequantizer = self.dequantizer(node.input[index])
            if self.model.is_constant(node.input[index]):
                grids = self._grids(node, index)
                return Product(node, operator, None, None, node.input[index], None, grids, index)
            if dequantizer is not None and self.model.is_constant(dequantizer.input[0]):
                codes = self.model.weight(dequantizer.input[0])
                grids = self._grids(node, index)
                other = self.dequantizer(node.input[1 - index])
                activation = other.input[0] if other is not None else None
                kind = grids[0].dtype if grids[0] is not None else None
                return Product(node, operator, activation, kind, dequantizer.input[0], codes, grids, index)
        return None

    def _grids(self, node: NodeProto, index: int) -> tuple[Grid | None, Grid | None, Grid | None]:
        names = (node.input[1 - index], node.input[index], node.input[2] if len(node.input) > 2 else "")
        found = [self.dequantizer(name) if name else None for name in names]
        one, two, three = (None if dequantizer is None else self.grid(dequantizer) for dequantizer in found)
        return one, two, three

    def _on_codes(self, node: NodeProto) -> Product | None:
        activation, weight, zero = ON_CODES[node.op_type]
        codes = self.model.constant(node.input[weight]) if weight < len(node.input) else None
        if codes is None:
            return None
        known = 0 <= zero < len(node.input) and node.input[zero]
        point = self.model.constant(node.input[zero]) if known else None
        kind = np.dtype(np.uint8) if point is None else point.dtype
        name = node.input[activation]
        return Product(node, _CODES_OPERATOR[node.op_type], name, kind, node.input[weight], codes)
