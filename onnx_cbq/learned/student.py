"""The net that learns, as an ONNX graph: its weights are inputs, its outputs their gradients.

The float model's graph with the activations on their grids, the divergence from what the float model answers behind it,
and the backward graph of that (`gradient.backward`) with respect to weights and biases. Rounding of activations passes
gradients on as they are (straight-through), none where a grid of less than 8 bits ends. Grids are put into the expanded
graph here: the graph of a file lacks the Relus that its grids make superfluous, and gradients need them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from onnx import ModelProto, helper

from onnx_cbq.errors import UnsupportedOperatorError
from onnx_cbq.evidence.workload import Workload
from onnx_cbq.execution import Place
from onnx_cbq.gradient.backward import build_backward
from onnx_cbq.gradient.expand import expand
from onnx_cbq.gradient.rules import RULES
from onnx_cbq.gradient.site import Builder, Gradients, Site
from onnx_cbq.model import Array, Model
from onnx_cbq.records import ActivationGrid, Grouping, Seen
from onnx_cbq.records.answers import Kind, Reading
from onnx_cbq.runtime import Session
from onnx_cbq.settings import MOST_BITS


@dataclass(frozen=True)
class Student:
    """A net that can be differentiated.

    Attributes:
        net: the net itself, and what stands in it for tensors of the float model.
        backward: gives the gradients; the constants that they are of are inputs.
        gradients: constant -> the output that holds its gradient; of those that the answers depend on.
        taught: tensor -> the input for what the float model says; `counts` likewise for what its elements count.
        place: what runs it.
    """

    net: Seen
    backward: Model
    gradients: Mapping[str, str]
    taught: Mapping[str, str]
    counts: Mapping[str, str]
    place: Place

    @cached_property
    def _session(self) -> Session:
        return self.place.session(self.backward)

    def open(self) -> None:
        """Be ready to differentiate."""
        _ = self._session

    def of(self, constants: Mapping[str, Array]) -> Seen:
        """The net with these constants."""
        return Seen(self.net.model.with_constants(constants), self.net.names)

    def differentiate(
        self, feeds: Mapping[str, Array], constants: Mapping[str, Array], taught: Mapping[str, tuple[Array, Array]]
    ) -> dict[str, Array]:
        """The gradient of each constant; `taught` are targets and what they count, by tensor."""
        session, known = self._session, {**feeds, **constants}
        for tensor, (target, count) in taught.items():
            known |= {self.taught[tensor]: target, self.counts[tensor]: count}
        found = session.run({name: known[name] for name in session.inputs})
        return {constant: found[name] for constant, name in self.gradients.items()}


def make_student(
    work: Workload, grids: Mapping[str, ActivationGrid], groups: Grouping, learned: Sequence[str]
) -> Student:
    """The net of a workload with its activations on their grids; the constants `learned` become inputs.

    Raises:
        UnsupportedOperatorError: an operator on the way has no gradient.
    """
    logits, further = work.logits, [one.tensor for one in work.further.counted]
    expanded, stand_ins = on_grids(expand(work.model, work.example).model, grids)
    tensors = {name: stand_ins.get(name, name) for name in dict.fromkeys((logits.tensor, *further))}
    shapes = work.example.shapes(expanded)
    rules = {**RULES, **STRAIGHT_THROUGH}
    answer = tensors[logits.tensor]
    others = [name for name in tensors.values() if name != answer]
    backward = build_backward(expanded, shapes, answer, learned, others, rules)
    seeds = {answer: backward.seed, **backward.further}
    losses = Builder(backward.build.fresh, backward.build.dtype)
    taught, counts, infos = {}, {}, []
    element = helper.np_dtype_to_tensor_dtype(losses.dtype)
    for tensor, name in tensors.items():
        taught[tensor], counts[tensor] = losses.fresh("taught"), losses.fresh("counts")
        rank = len(shapes[name])
        infos += [
            helper.make_tensor_value_info(given, element, [None] * rank) for given in (taught[tensor], counts[tensor])
        ]
        pull = losses.op("Sub", name, taught[tensor])
        if tensor == logits.tensor:
            pull = _pull(losses, name, taught[tensor], (logits.kind, logits.phi, groups, rank))
        losses.nodes.append(helper.make_node("Mul", [pull, counts[tensor]], [seeds[name]]))
    nodes = [*losses.nodes, *backward.build.nodes]
    constants = {**losses.constants, **backward.build.constants}
    whole = expanded.with_graph(nodes, constants, infos, backward.gradients.values())
    given = as_inputs(whole, backward.gradients)
    return Student(Seen(expanded, tensors), given, backward.gradients, taught, counts, work.engine.place)


def _pull(build: Builder, logits: str, taught: str, how: tuple[Kind, Reading, Grouping, int]) -> str:
    """The gradient of the divergence by the logits.

    Exclusive: p - t. Of groups with the probabilities P and T: p (1 - T / P). Independent: the same with sigmoids.
    """
    kind, reading, groups, rank = how
    if kind.independent or reading.classes is None:
        return build.op("Sub", build.op("Sigmoid", logits), taught)
    axis = reading.classes % rank
    shares = build.op("Softmax", logits, axis=axis)
    if groups.is_trivial:
        return build.op("Sub", shares, taught)
    perm = [*(i for i in range(rank) if i != axis), axis]
    members = build.constant(np.asarray(groups.members, build.dtype))
    last = build.op("Transpose", shares, perm=perm)
    joined = build.op("MatMul", build.op("MatMul", last, build.op("Transpose", members, perm=[1, 0])), members)
    joined = build.op("Max", joined, build.number(1e-30))
    back = build.op("Transpose", joined, perm=[int(i) for i in np.argsort(perm)])
    return build.op("Mul", shares, build.op("Sub", build.number(1.0), build.op("Div", taught, back)))


def on_grids(model: Model, grids: Mapping[str, ActivationGrid]) -> tuple[Model, dict[str, str]]:
    """A model with some tensors on their grids, and what stands for each of these tensors where it is read.

    Raises:
        UnsupportedOperatorError: a tensor is not in the model.
    """
    build = Builder(model.fresh_names(), np.dtype(np.float32))
    stand_ins, after = {}, {}
    inputs = {spec.name for spec in model.inputs}
    for name, grid in grids.items():
        if name not in inputs and name not in model.producers:
            raise UnsupportedOperatorError(f"tensor {name!r} has a grid, but is gone once operators are expanded")
        stand_ins[name] = _on_grid(build, name, grid)
        after[name] = list(build.nodes)
        build.nodes.clear()
    skeleton = ModelProto()
    skeleton.CopyFrom(model.skeleton)
    nodes = list(skeleton.graph.node)
    skeleton.graph.ClearField("node")
    for name, added in after.items():
        skeleton.graph.node.extend(added if name in inputs else ())
    for node in nodes:
        for i, name in enumerate(node.input):
            node.input[i] = stand_ins.get(name, name)
        skeleton.graph.node.append(node)
        for name in node.output:
            skeleton.graph.node.extend(after.get(name, ()))
    return Model(skeleton, model.weights).with_graph(constants=build.constants), stand_ins


def _on_grid(build: Builder, name: str, grid: ActivationGrid) -> str:
    if grid.bits < MOST_BITS:
        low, high = grid.ends
        name = build.op("Clip", name, build.number(low), build.number(high))
    scale, zero = build.number(grid.scale), build.constant(grid.stored_zero)
    return build.op("DequantizeLinear", build.op("QuantizeLinear", name, scale, zero), scale, zero)


def _passed_on(site: Site) -> Gradients:
    return [site.grad, None, None]


STRAIGHT_THROUGH = {"QuantizeLinear": _passed_on, "DequantizeLinear": _passed_on}


def as_inputs(model: Model, constants: Iterable[str]) -> Model:
    """A model that is given some of its constants at every run."""
    chosen = set(constants)
    skeleton = ModelProto()
    skeleton.CopyFrom(model.skeleton)
    kept = [tensor for tensor in skeleton.graph.initializer if tensor.name not in chosen]
    for tensor in skeleton.graph.initializer:
        if tensor.name in chosen:
            info = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            skeleton.graph.input.append(info)
    skeleton.graph.ClearField("initializer")
    skeleton.graph.initializer.extend(kept)
    return Model(skeleton, {name: value for name, value in model.weights.items() if name not in chosen})
