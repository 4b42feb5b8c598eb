"""Walks the float graph once, in order, and writes the quantized one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
from onnx import AttributeProto, NodeProto, TensorProto, helper

from onnx_cbq.graph.integer_rules import MOVEMENT, SATURATION
from onnx_cbq.graph.placement import Placement, moves_integers
from onnx_cbq.model import Array, Model
from onnx_cbq.model.captures import is_sealed
from onnx_cbq.records import KERNELS, ActivationGrid, FileRules, Layer, LayerWeights, Use
from onnx_cbq.settings import MOST_BITS
from onnx_cbq.storage.codes import CodeWriter
from onnx_cbq.storage.entries import float_entries
from onnx_cbq.storage.fields import PackedLayer

LARGEST_CODE = 127
# What a node with two inputs takes in the file; a constant's name and shape take about half of that.
NODE_BYTES = 32
# From this operator set on QuantizeLinear has an attribute for the type of what it gives.
_OUTPUT_TYPES = 21


def bias_codes(bias: Array, scale: Array) -> Array:
    """A bias in whole multiples of its scale, as float64 [channels]."""
    return np.asarray(np.rint(bias.reshape(-1).astype(np.float64) / scale))


def power_of_two_codes(values: Array) -> tuple[Array, Array]:
    """int8 codes and the power of two that they are multiples of, the smallest that holds all values."""
    reach = float(np.abs(values).max(initial=0)) / LARGEST_CODE
    unit = np.float32(2.0 ** math.ceil(math.log2(reach))) if reach > 0 else np.float32(1)
    return np.rint(values / unit).astype(np.int8), np.array(unit, np.float32)


def _before_branches(model: Model) -> set[str]:
    """What branches read from outside, and what that is moved from."""
    waiting = [name for node in model.nodes if is_sealed(node) for name in node.input]
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in found and moves_integers(model, name):
            found.add(name)
            waiting.append(model.producers[name].input[0])
    return found


class Writer:
    """Walks the float graph once, in order, and writes the quantized one."""

    def __init__(
        self,
        model: Model,
        placement: Placement,
        grids: Mapping[str, ActivationGrid],
        codes: CodeWriter,
        rules: FileRules = KERNELS,
    ) -> None:
        self._rules = rules
        self._written_codes = codes
        self._model = model
        self._placement = placement
        self._grids = dict(grids)
        self._fresh = model.fresh_names()
        self._nodes: list[NodeProto] = []
        self._constants: dict[str, Array] = {}
        self._pool: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._uses: dict[str, tuple[Layer, Use, LayerWeights]] = {}
        self._integers: dict[str, str] = {}  # float tensor -> the integers that stand for it
        self._floats: dict[str, str] = {}  # float tensor -> what its readers read in its place
        self._before_branches = _before_branches(model)
        self._tables: dict[str, tuple[Use, LayerWeights]] = {}  # what is looked up in codes
        self._turned: set[str] = set()  # what a Gemm computes whose matrix lies with its channels first

    def add_weight(self, layer: Layer, weights: LayerWeights) -> None:
        """The codes of a layer and their DequantizeLinear, in place of its float weight."""
        self._uses.update({use.output: (layer, use, weights) for use in layer.uses})
        codes, are_floats = self._codes(layer, weights)
        if layer.kind == "table" and not are_floats and not self._written_codes.computes:
            self._floats[layer.weight] = codes  # only the entries that are looked up become floats
            self._tables |= {use.output: (use, weights) for use in layer.uses}
            return
        axis = 0 if self._lies_turned(layer) else layer.weight_axis
        if not are_floats and self._written_codes.computes and not self._meets_integers(layer):
            # onnxruntime would compute a DequantizeLinear on every run; these two it folds when it opens the file.
            codes, are_floats = self._add("Cast", [codes], f"{layer.weight}_float", to=TensorProto.FLOAT), True
        elif not are_floats and layer.operator == "MatMul" and len(layer.weight_shape) > 2:
            # onnxruntime fuses such a MatMul if it can, and then refuses to run it with scales per channel.
            unscaled = [codes, self._pooled(np.array(1, np.float32), "scale")]
            codes, are_floats = self._add("DequantizeLinear", unscaled, f"{layer.weight}_dq"), True
        if are_floats:
            self._floats[layer.weight] = self._scaled(layer, weights, codes, axis)
            return
        if len(layer.weight_shape) == 2 and axis == 1 and not self._meets_integers(layer):
            # The same axis; of a matrix behind axis 1 onnxruntime makes a MatMulNBits, which rounds float activations
            # to 8 bits (found with 1.32).
            axis = -1
        if layer.rules.per_tensor:
            inputs = [codes, self._pooled(weights.scale.max(), "scale"), self._pooled(np.array(0, np.int8), "zero")]
            self._floats[layer.weight] = self._add("DequantizeLinear", inputs, f"{layer.weight}_dq")
            return
        inputs = [codes, self._pooled(weights.scale, "scale")]
        if weights.grid.zero_point is not None:
            inputs.append(self._pooled(weights.grid.zero_point, "zero"))
        elif layer.operator in ("Gemm", "MatMul") or self._rules.units:
            # Without an explicit zero point onnxruntime does not fuse a Gemm, and TensorRT takes another type.
            inputs.append(self._pooled(np.zeros(layer.channels, np.int8), "zero"))
        self._floats[layer.weight] = self._add("DequantizeLinear", inputs, f"{layer.weight}_dq", axis=axis)

    def _scaled(self, layer: Layer, weights: LayerWeights, plain: str, axis: int) -> str:
        """Codes that have become floats, less their zero points, times their scales."""
        shape = [-1 if i == axis else 1 for i in range(len(layer.weight_shape))]
        if weights.grid.zero_point is not None:
            zero = self._pooled(weights.grid.zero_point.astype(np.float32).reshape(shape), "zero")
            plain = self._add("Sub", [plain, zero], f"{layer.weight}_centred")
        return self._add("Mul", [plain, self._pooled(weights.scale.reshape(shape), "scale")], f"{layer.weight}_scaled")

    def _meets_integers(self, layer: Layer) -> bool:
        """Whether a node that uses the weight reads an activation that is quantized."""
        read = (self._placement.grid_of(use.activation) for use in layer.uses if layer.kind == "product")
        return any(name in self._grids for name in read)

    def _lies_turned(self, layer: Layer) -> bool:
        """Whether a matrix is written with its channels first, so that unpacking needs no Transpose.

        OpenVINO 2026.4 does not fold one in front of a DequantizeLinear.
        """
        return self._written_codes.computes and layer.operator == "Gemm" and layer.weight_axis == 1

    def _codes(self, layer: Layer, weights: LayerWeights) -> tuple[str, bool]:
        """The name of a layer's codes, a constant or unpacked or looked up, and whether what was found are floats."""
        found = weights.grid.lookup(weights.codes, shared=self._written_codes.looks_up)
        if found is None:
            return self._stored(layer, weights.codes, weights), False
        stored = self._stored(layer, found.positions, weights)
        position = self._add("Cast", [stored], f"{layer.weight}_at", to=TensorProto.INT32)
        table = self._pooled(found.table, f"{found.what}s")
        looked_up = self._add("Gather", [table, position], f"{layer.weight}_{found.what}")
        return looked_up, found.table.dtype == np.float32

    def _stored(self, layer: Layer, codes: Array, weights: LayerWeights) -> str:
        """The name of numbers in the shape of a layer's weight, in whatever form they are written."""
        name = self._fresh(f"{layer.weight}_q")
        rows, shape, axis = layer.rows(codes), layer.weight_shape, layer.weight_axis
        if self._lies_turned(layer):
            self._turned.update(use.output for use in layer.uses)
            shape, axis = rows.shape, 0
        constant = self._written_codes.add(PackedLayer(name, rows, weights.bits, shape, axis))
        if constant is not None:
            self._constants[name] = layer.unrows(constant)
        return name

    def quantize(self, name: str, source: str) -> None:
        """Put the float tensor `source`, which stands for `name`, on the grid of `name` if it has one."""
        grid = self._grids.get(name)
        if grid is not None:
            if grid.bits < MOST_BITS:
                # The integers have room for more; any runtime must saturate at the same level.
                ends = [self._pooled(np.array(end, np.float32), "end") for end in grid.ends]
                source = self._add("Clip", [source, *ends], f"{name}_clipped")
            self._integers[name] = self._add("QuantizeLinear", [source, *self._parameters(name)], f"{name}_q")

    def add_node(self, node: NodeProto) -> None:
        """One node of the float graph, on integers where the placement says so."""
        output = node.output[0]
        if node.input and node.input[0] in self._integers and self._moves(node):
            self._move(node)
        elif output in self._placement.saturated and self._grid_saturates(node):
            self.quantize(output, self._read(node.input[0]))
        else:
            self._compute(node)

    def _moves(self, node: NodeProto) -> bool:
        """Whether the node works on the integers: as placed, or since onnxruntime would break the file otherwise.

        Behind an int8 DequantizeLinear and a node that moves numbers it puts a QuantizeLinear to uint8,
        from operator set 21 on; and where a branch reads what such a node gives, its process ends (found with 1.32).
        """
        output = node.output[0]
        if output in self._placement.shared or output in self._before_branches:
            return True
        broken = self._grids[node.input[0]].signed and self._model.opset >= _OUTPUT_TYPES
        return broken and moves_integers(self._model, output)

    def write(self) -> Model:
        """The whole model, once the weights have been added."""
        for spec in self._model.inputs:
            self.quantize(spec.name, spec.name)
        for node in self._model.nodes:
            self.add_node(node)
        return self.finish()

    def names(self) -> dict[str, str]:
        """Float tensor -> what stands for it in the model written, where that has another name."""
        return dict(self._floats)

    def finish(self) -> Model:
        """The model written, without the constants that nothing reads any more."""
        for name in self._model.outputs:
            self._read(name)
        computing, read_there = self._written_codes.finish(self._fresh)
        self._nodes = [*computing, *self._nodes]
        self._constants |= read_there
        whole = self._model.with_graph(constants=self._constants)
        read = {name for node in self._nodes for name in node.input}
        constants = [t for t in whole.skeleton.graph.initializer if t.name in read]
        for field, content in (("node", self._nodes), ("initializer", constants)):
            whole.skeleton.graph.ClearField(field)
            getattr(whole.skeleton.graph, field).extend(content)
        return Model(whole.skeleton, {name: value for name, value in whole.weights.items() if name in read})

    def _compute(self, node: NodeProto) -> None:
        """The node in float, its outputs quantized where they have a grid."""
        copy = NodeProto(op_type=node.op_type, domain=node.domain, name=node.name)
        copy.attribute.extend(self._attributes(node))
        # A shape can be read from the integers as well, where operators work on integers.
        shape = node.op_type == "Shape" and not self._rules.units
        copy.input.extend(self._integers.get(name, name) if shape else self._read(name) for name in node.input)
        use = self._uses.get(node.output[0])
        if use is not None and use[1].bias is not None:
            copy.input[2] = self._bias(*use)
        made = [self._raw(name) for name in node.output]
        copy.output.extend(made)
        self._nodes.append(copy)
        if node.output[0] in self._tables:
            copy.output[0] = self._fresh(f"{made[0]}_codes")
            factors = float_entries(copy, *self._tables[node.output[0]], self._add, self._pooled)
            self._nodes.append(helper.make_node("Mul", factors, made))
        for name, raw in zip(node.output, made, strict=True):
            self.quantize(name, raw)

    def _move(self, node: NodeProto) -> None:
        """The node on integers, or between floats; its outputs keep the grid of its input."""
        grid = self._grids[node.input[0]]
        if self._rules.units or node.op_type not in MOVEMENT:
            self._grids |= dict.fromkeys(node.output, grid)
            self._compute(node)
            return
        copy = NodeProto(op_type=node.op_type, domain=node.domain, name=node.name)
        copy.attribute.extend(node.attribute)
        copy.input.extend([self._integers[node.input[0]], *node.input[1:]])
        if (node.op_type == "Pad" and len(node.input) > 2) or (node.op_type == "Pad" and grid.zero_point):
            copy.input.extend([""] * (3 - len(copy.input)))
            copy.input[2] = self._pooled(grid.stored_zero, "zero")
        for name in node.output:
            self._grids[name] = grid
            self._integers[name] = self._fresh(f"{name}_q")
            copy.output.append(self._integers[name])
        self._nodes.append(copy)

    def _attributes(self, node: NodeProto) -> Iterable[AttributeProto]:
        """Those of a node that is computed: a matrix may lie turned, and a Conv may have to say everything."""
        if node.output[0] in self._turned:
            return [*(a for a in node.attribute if a.name != "transB"), helper.make_attribute("transB", 1)]
        layer, use, _ = self._uses.get(node.output[0], (None, None, None))
        if not self._rules.attributes or layer is None or use is None or use.windows is None:
            return list(node.attribute)
        windows = use.windows
        said = {
            "dilations": windows.dilations,
            "group": layer.groups,
            "kernel_shape": windows.kernel,
            "pads": (*windows.before, *(max(size, 0) for size in windows.after)),
            "strides": windows.strides,
        }
        own = [attribute for attribute in node.attribute if attribute.name != "auto_pad"]
        missing = said.keys() - {attribute.name for attribute in own}
        return [*own, *(helper.make_attribute(name, said[name]) for name in sorted(missing))]

    def _grid_saturates(self, node: NodeProto) -> bool:
        """Whether the output's grid ends where this Relu or Clip would cut."""
        grid = self._grids[node.output[0]]
        if node.op_type not in SATURATION or grid.zero_point != grid.bottom:
            return False
        high = self._model.constant(node.input[2]) if len(node.input) > 2 else None
        return high is None or grid.ends[1] <= high.item()

    def _read(self, name: str) -> str:
        """What a reader of the float tensor `name` reads now; its DequantizeLinear is written when first wanted."""
        if name in self._integers and name not in self._floats:
            own = name in self._model.outputs and name in self._model.producers
            output = name if own else self._fresh(f"{name}_dq")
            inputs = [self._integers[name], *self._parameters(name)]
            self._nodes.append(helper.make_node("DequantizeLinear", inputs, [output]))
            self._floats[name] = output
        return self._floats.get(name, name)

    def _raw(self, name: str) -> str:
        """The name of a computed output before it is quantized; a graph output's own name goes to what comes after."""
        return self._fresh(f"{name}_raw") if name in self._grids and name in self._model.outputs else name

    def _bias(self, layer: Layer, use: Use, weights: LayerWeights) -> str:
        """The bias as int32 with scale s_x s_w or its value, in float where the input is not, or as the rules say."""
        bias = self._model.constant(use.bias or "")
        assert bias is not None
        if use.activation not in self._integers:
            return str(use.bias)
        if self._rules.bias == "int8":
            codes, unit = power_of_two_codes(bias)
            inputs = [self._constant(f"{use.bias}_q", codes), self._pooled(unit, "scale")]
            return self._add(
                "DequantizeLinear", [*inputs, self._pooled(np.array(0, np.int8), "zero")], f"{use.bias}_dq"
            )
        if bias.size not in (1, len(weights.scale)):
            return str(use.bias)
        scale = weights.bias_scale(self._grids[use.activation].scale)
        multiples = bias_codes(bias, scale)
        if self._rules.bias == "float":
            # On the multiples of the sums, since a runtime of integers will put it there (onnxruntime does).
            return self._constant(f"{use.bias}_rounded", (multiples * scale).astype(np.float32))
        codes = multiples.astype(np.int32)
        if layer.rules.per_tensor:
            inputs = [self._constant(f"{use.bias}_q", codes), self._pooled(scale.max(), "scale")]
            return self._add("DequantizeLinear", inputs, f"{use.bias}_dq")
        inputs = [self._constant(f"{use.bias}_q", codes), self._bias_scale(use, weights, scale)]
        return self._add("DequantizeLinear", inputs, f"{use.bias}_dq", axis=0)

    def _bias_scale(self, use: Use, weights: LayerWeights, scale: Array) -> str:
        """The scale s_x s_w, computed in the graph where that takes fewer bytes."""
        if not self._written_codes.computes or scale.nbytes <= NODE_BYTES:
            return self._pooled(scale, "scale")
        factors = [self._pooled(weights.scale, "scale"), self._parameters(use.activation)[0]]
        return self._add("Mul", factors, f"{use.bias}_scale")

    def _parameters(self, name: str) -> list[str]:
        grid = self._grids[name]
        return [self._pooled(np.array(grid.scale, np.float32), "scale"), self._pooled(grid.stored_zero, "zero")]

    def _add(self, operator: str, inputs: Iterable[str], output: str, **attrs: int) -> str:
        output = self._fresh(output)
        node = helper.make_node(operator, list(inputs), [output])
        node.attribute.extend(helper.make_attribute(name, value) for name, value in attrs.items())
        self._nodes.append(node)
        return output

    def _constant(self, name: str, value: Array) -> str:
        name = self._fresh(name)
        self._constants[name] = value
        return name

    def _pooled(self, value: Array, name: str) -> str:
        """A constant that is written once, however often it is used."""
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._pool:
            self._pool[key] = self._constant(name, value)
        return self._pool[key]
