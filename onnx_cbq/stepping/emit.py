"""One ONNX model per step, which computes what its subnet adds and nothing else.

The channels of a tensor that subnet k adds are its group k; groups lie one after the other, each in the order of the
original. Step k makes group k of every tensor. A layer reads the groups 1 .. k of its input, so those that earlier
steps made come in as `<tensor>@<step>`, and group k is put behind them. What a later step reads goes out under the
same kind of name. The head adds what group k of its input gives to the sum that came in, and then its bias:

    s_k = s_(k-1) + W[:, group k] x[group k]        logits of step k = tail(s_k + b_k)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from onnx_cbq.graph.remove.build import BINARY
from onnx_cbq.graph.remove.links import Flattened, Joined, Link, Product, Same, Widened
from onnx_cbq.graph.shapes import fixed_batch
from onnx_cbq.model import Array, FreshNames, Model
from onnx_cbq.stepping.masks import Nested
from onnx_cbq.stepping.units import Units


@dataclass(frozen=True)
class StepModel:
    """One step: the model, and the names of what it reads and makes; its class scores come first."""

    model: Model
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def emit_steps(units: Units, nested: Nested) -> tuple[StepModel, ...]:
    """The models of all steps, in order."""
    groups = Groups(units, nested)
    return tuple(Writer(units, nested, groups, step).write() for step in range(1, nested.steps + 1))


class Groups:
    """Which channels of a tensor each step makes, and what it is called."""

    def __init__(self, units: Units, nested: Nested) -> None:
        self._of = {name: nested.assignment[numbers] for name, numbers in units.of.items()}
        self._given = {spec.name for spec in units.model.inputs}
        self._mark = "@"
        constants = [tensor.name for tensor in units.model.skeleton.graph.initializer]
        while any(self._mark in name for name in (*units.of, units.head.use.output, *constants)):
            self._mark += "@"
        self._last_read: dict[str, int] = {}
        for product in units.hidden:
            if len(product.reads) == 1:
                last = max((s for s in range(1, nested.steps + 1) if self.size(product.use.output, s)), default=0)
                source = product.use.activation
                self._last_read[source] = max(last, self._last_read.get(source, 0))

    def members(self, tensor: str, step: int) -> Array:
        """The channels of group `step`, in order."""
        return np.flatnonzero(self._of[tensor] == step)

    def size(self, tensor: str, step: int) -> int:
        """How many channels group `step` has."""
        return int((self._of[tensor] == step).sum())

    def up_to(self, tensor: str, step: int) -> Array:
        """The channels of the groups up to `step`, one group after the other."""
        return np.concatenate([self.members(tensor, s) for s in range(1, step + 1)])

    def latest(self, tensor: str, step: int) -> int:
        """The last step up to `step` that made a group of the tensor; 0 if none did."""
        return max((s for s in range(1, step + 1) if self.size(tensor, s)), default=0)

    def joined(self, tensor: str, step: int) -> str:
        """The name of all groups up to `step`."""
        return tensor if tensor in self._given else f"{tensor}{self._mark}{self.latest(tensor, step)}"

    def own(self, tensor: str, step: int) -> str:
        """The name of group `step` by itself."""
        first = self.latest(tensor, step - 1) == 0
        return self.joined(tensor, step) if first else f"{tensor}{self._mark}{step}{self._mark}new"

    def sums(self, head: str, step: int) -> str:
        """The name of what the head has summed up to `step`."""
        return f"{head}{self._mark}{step}"

    def is_given(self, tensor: str) -> bool:
        """Whether it is an input of the model."""
        return tensor in self._given

    def carried(self, step: int) -> list[str]:
        """The tensors of which `step` makes a group that a later step reads."""
        return [
            name
            for name, last in self._last_read.items()
            if last > step and name not in self._given and self.size(name, step)
        ]


class Writer:
    """Writes the model of one step."""

    def __init__(self, units: Units, nested: Nested, groups: Groups, step: int) -> None:
        self._units, self._nested, self._groups, self._step = units, nested, groups, step
        self._fresh = FreshNames((*units.of, *(name for node in units.model.nodes for name in node.output)))
        self._nodes: list[NodeProto] = []
        self._constants: dict[str, Array] = {}
        self._copied: dict[str, str] = {}
        self._inputs: dict[str, ValueInfoProto] = {}
        self._made: set[str] = set()
        # Groups of nothing but padded zeros, which an addition does without.
        self._zero: set[str] = set()

    def write(self) -> StepModel:
        """The model of the step."""
        for node, link in self._units.links:
            if any(name and self._groups.size(name, self._step) for name in node.output):
                self._node(node, link)
        carried = {self._joined(name): name for name in self._groups.carried(self._step)}
        sums = self._head()
        logits = self._units.logits
        outputs = [self._info(name, name, None) for name in (logits.output, logits.tensor)]
        outputs += [self._info(name, tensor, self._step) for name, tensor in carried.items()]
        outputs += [self._info(name, self._units.head.use.output, None) for name in sums]
        return self._model({info.name: info for info in outputs})

    def _model(self, outputs: Mapping[str, ValueInfoProto]) -> StepModel:
        source = self._units.model.skeleton
        skeleton = ModelProto(ir_version=source.ir_version, producer_name="onnx-cbq")
        skeleton.opset_import.extend(source.opset_import)
        skeleton.graph.name = f"step {self._step}"
        skeleton.graph.node.extend(self._nodes)
        skeleton.graph.input.extend(self._inputs.values())
        skeleton.graph.output.extend(outputs.values())
        model = Model(skeleton, {}).with_graph(constants=self._constants, outputs=list(outputs))
        return StepModel(model, tuple(self._inputs), tuple(outputs))

    def _node(self, node: NodeProto, link: Link) -> None:
        """Group k of what a node makes."""
        output = node.output[0]
        own = self._groups.members(output, self._step)
        match link:
            case Product():
                self._product(node, link)
            case Widened():
                self._widened(node, link, own)
            case Flattened():
                # A Reshape would name the number of columns.
                self._add("Flatten", [self._read(link.input)], output, node, axis=1)
            case Same():
                self._same(node, link, own)
            case Joined():
                parts = [self._read(name) for name in link.inputs if self._groups.size(name, self._step)]
                self._copy(node, parts, [self._own(output)])
            case _:
                # It reads inputs of the model only, all channels of which are in group 1.
                inputs = [self._read(name) if name in self._units.of else self._constant(name) for name in node.input]
                self._copy(node, inputs, [self._own(name) if name else "" for name in node.output])

    def _product(self, node: NodeProto, product: Product) -> None:
        layer, use = product.layer, product.use
        rows = self._groups.members(use.output, self._step)
        weight = self._value(layer.weight)
        if len(product.reads) > 1:
            source = self._read(use.activation)
            weight = weight.take(
                rows if layer.weight_axis == 0 else self._groups.members(use.activation, self._step), 0
            )
        else:
            source = self._joined(use.activation)
            columns = self._groups.up_to(use.activation, self._step)
            weight = self._taken(product, rows, columns)
        inputs = [source, self._store(layer.weight, weight)]
        if use.bias is not None:
            inputs.append(self._store(use.bias, self._value(use.bias)[rows]))
        self._copy(node, inputs, [self._own(use.output)])
        for attribute in self._nodes[-1].attribute:
            if attribute.name == "group" and layer.groups > 1:
                size = len(self._units.of[use.activation]) // layer.groups
                attribute.i = self._groups.size(use.activation, self._step) // size

    def _taken(self, product: Product, rows: Array, columns: Array) -> Array:
        """The weights of some outputs for some inputs."""
        axis = product.layer.weight_axis
        return self._value(product.layer.weight).take(rows, axis).take(columns, 1 - axis)

    def _same(self, node: NodeProto, link: Same, own: Array) -> None:
        """An elementwise operator, pooling and the like, with constants that have the channels too."""
        axis = self._units.axis[link.output] - len(self._units.shapes[link.output])
        inputs = []
        for index, name in enumerate(node.input):
            value = self._units.model.constant(name) if name else None
            if value is None:
                inputs.append(self._read(name) if name else "")
            elif node.op_type == "BatchNormalization" and index > 0:
                inputs.append(self._store(name, value[own]))
            elif (
                node.op_type in BINARY and value.ndim >= -axis and value.shape[axis] == len(self._units.of[link.output])
            ):
                inputs.append(self._store(name, value.take(own, axis)))
            else:
                inputs.append(self._constant(name))
        left = [name for name in inputs if name not in self._zero]
        if len(left) < len(inputs):
            self._add("Identity", left, link.output, node)
        else:
            self._copy(node, inputs, [self._own(link.output)])

    def _widened(self, node: NodeProto, link: Widened, own: Array) -> None:
        source, output = link.inputs[0], link.outputs[0]
        if not self._groups.size(source, self._step):
            self._zero.add(self._own(output))
            return
        pads = self._units.model.weight(node.input[1]).copy()
        axis = self._units.axis[output]
        pads[axis] = (own < link.before).sum()
        pads[axis + len(pads) // 2] = (own >= link.before + link.count).sum()
        inputs = [self._read(source), self._store(node.input[1], pads)]
        inputs += [self._constant(name) if name else "" for name in node.input[2:]]
        self._copy(node, inputs, [self._own(output)])

    def _head(self) -> list[str]:
        """The head and what lies behind it; returns the names of sums that later steps go on from."""
        use, total = self._units.head.use, self._sum()
        if self._nested.biases is None:
            self._nodes.append(helper.make_node("Identity", [total], [use.output]))
        else:
            bias = self._nested.biases[self._step - 1]
            bias = bias.reshape(-1, *(1,) * (len(self._units.shapes[use.output]) - 1 - use.channel_axis))
            self._nodes.append(helper.make_node("Add", [total, self._store(str(use.bias), bias)], [use.output]))
        self._tail()
        goes_on = self._step < self._nested.steps and total not in self._inputs
        return [total] if goes_on else []

    def _tail(self) -> None:
        for node in self._units.tail:
            inputs = [self._constant(name) if self._units.model.is_constant(name) else name for name in node.input]
            self._copy(node, inputs, list(node.output))

    def _sum(self) -> str:
        """s_k: what the head gives for the groups up to this step, without its bias."""
        head, groups = self._units.head, self._groups
        output, features = head.use.output, head.use.activation
        before = groups.sums(output, groups.latest(features, self._step - 1))
        first = groups.latest(features, self._step - 1) == 0
        if not first:
            self._inputs[before] = self._info(before, output, None)
        if not groups.size(features, self._step):
            return before
        columns = groups.members(features, self._step)
        weight = self._value(head.layer.weight).take(columns, 1 - head.layer.weight_axis)
        total = groups.sums(output, self._step)
        part = total if first else self._fresh(f"{output} part")
        inputs = [self._read(features), self._store(head.layer.weight, weight)]
        self._copy(self._units.model.producers[output], inputs, [part])
        if not first:
            self._nodes.append(helper.make_node("Add", [before, part], [total]))
        return total

    def _own(self, tensor: str) -> str:
        return self._groups.own(tensor, self._step)

    def _read(self, tensor: str) -> str:
        """Group k of a tensor."""
        if self._groups.is_given(tensor):
            self._take_input(tensor, tensor)
            return tensor
        return self._own(tensor)

    def _joined(self, tensor: str) -> str:
        """All groups of a tensor up to this step, put together once; those of earlier steps come in."""
        name = self._groups.joined(tensor, self._step)
        before = self._groups.joined(tensor, self._step - 1)
        if self._groups.is_given(tensor) or not self._groups.size(tensor, self._step):
            self._take_input(name, tensor)
        elif self._groups.latest(tensor, self._step - 1) and name not in self._made:
            self._take_input(before, tensor)
            axis = self._units.axis[tensor]
            self._nodes.append(helper.make_node("Concat", [before, self._own(tensor)], [name], axis=axis))
            self._made.add(name)
        return name

    def _take_input(self, name: str, tensor: str) -> None:
        if self._groups.is_given(tensor):
            infos = {info.name: info for info in self._units.model.skeleton.graph.input}
            self._inputs[name] = infos[name]
        else:
            self._inputs[name] = self._info(name, tensor, self._step - 1)

    def _info(self, name: str, tensor: str, step: int | None) -> ValueInfoProto:
        """Type and shape of the groups of a tensor up to a step, or of the whole of it."""
        shape: list[int | str] = list(self._units.shapes[tensor])
        batch = self._units.shapes.batch_axis[tensor]
        if batch is not None and fixed_batch(self._units.model) is None:
            shape[batch] = "batch"
        if step is not None:
            shape[self._units.axis[tensor]] = len(self._groups.up_to(tensor, step))
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    def _value(self, name: str) -> Array:
        """A constant, trained if it was."""
        found = self._nested.constants.get(name)
        return self._units.model.weight(name) if found is None else found

    def _store(self, name: str, value: Array) -> str:
        """A constant of this step's own."""
        stored = self._fresh(name)
        self._constants[stored] = np.ascontiguousarray(value)
        return stored

    def _constant(self, name: str) -> str:
        """A constant as it is, once."""
        if name and name not in self._copied:
            self._copied[name] = self._store(name, self._units.model.weight(name))
        return self._copied.get(name, "")

    def _copy(self, node: NodeProto, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.ClearField("doc_string")
        copy.ClearField("metadata_props")
        copy.input[:], copy.output[:] = list(inputs), list(outputs)
        self._nodes.append(copy)

    def _add(self, operator: str, inputs: Sequence[str], output: str, node: NodeProto, **attributes: Any) -> None:
        self._nodes.append(helper.make_node(operator, inputs, [self._own(output)], name=node.name, **attributes))
