"""The net that learns, as an ONNX graph: its weights are inputs, its outputs their gradients.

The float model's graph with the activations on their grids (`learned.grids`), the divergence from what the float model
answers behind it, and the backward graph of that (`gradient.backward`) with respect to weights, biases and scales of
activations. Grids are put into the expanded graph: the graph of a file lacks the Relus that its grids make superfluous,
and gradients need them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from onnx import ModelProto, helper

from onnx_cbq.evidence.workload import Workload
from onnx_cbq.execution import Place
from onnx_cbq.gradient.backward import build_backward
from onnx_cbq.gradient.expand import expand
from onnx_cbq.gradient.rules import RULES
from onnx_cbq.gradient.site import Builder
from onnx_cbq.learned.grids import LearnedScale, on_grids
from onnx_cbq.model import Array, Model
from onnx_cbq.records import ActivationGrid, Grouping, Seen
from onnx_cbq.records.answers import Kind, Reading
from onnx_cbq.runtime import Session


@dataclass(frozen=True)
class Student:
    """A net that can be differentiated.

    Attributes:
        net: the net itself, and what stands in it for tensors of the float model.
        backward: gives the gradients; the constants that they are of are inputs.
        gradients: constant -> the output that holds its gradient; of those that the answers depend on.
        scales: of activations, by the constant that holds each; of those that the answers depend on.
        taught: tensor -> the input for what the float model says; `counts` likewise for what its elements count.
        place: what runs it.
    """

    net: Seen
    backward: Model
    gradients: Mapping[str, str]
    scales: Mapping[str, LearnedScale]
    taught: Mapping[str, str]
    counts: Mapping[str, str]
    place: Place

    @cached_property
    def _session(self) -> Session:
        return self.place.session(self.backward, plain=True)

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
    """The net of a workload with its activations on their grids.

    The constants `learned`, and the scales of activations that can be learned, become inputs.

    Raises:
        UnsupportedOperatorError: an operator on the way has no gradient.
    """
    logits, further = work.logits, [one.tensor for one in work.further.counted]
    gridded = on_grids(expand(work.model, work.example).model, grids, work)
    expanded, learned = gridded.model, [*learned, *gridded.scales]
    tensors = {name: gridded.stand_ins.get(name, name) for name in dict.fromkeys((logits.tensor, *further))}
    shapes = work.example.shapes(expanded)
    rules = {**RULES, **gridded.rules}
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
    scales = {name: one for name, one in gridded.scales.items() if name in backward.gradients}
    return Student(Seen(expanded, tensors), given, backward.gradients, scales, taught, counts, work.engine.place)


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
