"""A net that changes from front to back, run a stretch at a time: what is final in front is computed once.

While layers are rounded in order, a node is final as soon as it depends on no layer that is still to come. The tensors
that final nodes give to others are kept for every batch, and the next stretch begins at them: one pass through the net
for all layers together, where running it from the start for each takes half a pass per layer.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from onnx import ModelProto, helper

from onnx_cbq.calibration.samples import Batch, Indices, Samples
from onnx_cbq.model import Array, Model
from onnx_cbq.records import Layer
from onnx_cbq.runtime import Feeds, Session

# What is kept of one net, in bytes; beyond it a stretch begins where the last one did.
KEPT_BYTES = 512 << 20


class Passes:
    """The same batches again and again, read anew only for those who need their inputs.

    Args:
        samples, indices, size: which, and how many at a time.
        limit: inputs that take at most so many bytes altogether are kept.

    Memory: the labels, and up to `limit`.
    """

    def __init__(self, samples: Samples, indices: Indices, size: int, limit: int = 0) -> None:
        self._samples, self._indices, self._size = samples, indices, size
        one = sum(value.nbytes for value in samples.read(indices[:1]).values()) if limit else 0
        self._keeps_inputs = 0 < one * len(indices) <= limit
        self._known: list[Batch] = []

    def __iter__(self) -> Iterator[Batch]:
        """Batches with their inputs."""
        if self._keeps_inputs and self._known:
            yield from self._known
            return
        known = []
        for batch in self._samples.batches(self._indices, self._size):
            known.append(batch if self._keeps_inputs else replace(batch, feeds={}))
            yield batch
        self._known = known

    def without_inputs(self) -> Iterator[Batch]:
        """Batches of labels alone, where they are known from a pass before."""
        yield from self._known or self

    @property
    def count(self) -> int:
        """The number of batches."""
        return math.ceil(len(self._indices) / (self._samples.fixed_batch or self._size))


@dataclass
class Stretch:
    """A part of the net that gives tensors of a batch, from what was kept of it.

    Attributes:
        needs_inputs: whether it begins at the net's own inputs, in part at least.
    """

    track: Track
    session: Session | None
    names: tuple[str, ...]
    ends: tuple[str, ...]
    needs_inputs: bool

    def run(self, number: int, feeds: Feeds) -> dict[str, Array]:
        """The tensors of the batch of that number."""
        kept = self.track.kept(number)
        values = {**feeds, **kept}
        if self.session is not None:
            values |= self.session.run({name: values[name] for name in self.session.inputs})
        self.track.keep(number, {name: values[name] for name in self.ends})
        return {name: values[name] for name in self.names}


@dataclass(frozen=True)
class Relay:
    """The float net and the one that sees quantized layers in front, on their way through the same batches.

    Attributes:
        pending: constants of the layers that are still to come.
    """

    passes: Passes
    aimed: Track
    changed: Track
    pending: frozenset[str]

    @staticmethod
    def of(samples: Samples, indices: Indices, size: int) -> Relay:
        """At the start."""
        passes = Passes(samples, indices, size)
        return Relay(passes, Track(passes.count), Track(passes.count), frozenset())


class Track:
    """One net on its way through its stretches.

    Args:
        batches: how many there are.
        limit: bytes that may be kept.
    """

    def __init__(self, batches: int, limit: int = KEPT_BYTES) -> None:
        self._batches, self._limit = batches, limit
        self._values: list[dict[str, Array]] = []
        self._next: list[dict[str, Array]] | None = []

    def stretch(self, model: Model, names: Sequence[str], pending: Collection[str]) -> Stretch:
        """The part up to the tensors `names`, and to the end of what depends on none of the constants `pending`.

        The stretch is to be run for every batch, in order. Constants that are not pending must stay as they are.
        """
        known = self._values[0] if self._values else {}
        ends = final_ends(model, pending)
        outputs = [name for name in dict.fromkeys((*names, *ends)) if name not in known and name in model.producers]
        self._next = []
        part = begin_at(model, known, outputs) if outputs else None
        inputs = {spec.name for spec in model.inputs} - known.keys()
        begins = {*(spec.name for spec in part.inputs)} if part is not None else set()
        return Stretch(
            self, None if part is None else Session(part), tuple(names), ends, bool(inputs & {*begins, *names, *ends})
        )

    @property
    def keeps(self) -> bool:
        """Whether the tensors of the stretch that is run are kept, as far as is known."""
        return self._next is not None

    def kept(self, number: int) -> dict[str, Array]:
        """What is kept of a batch."""
        return self._values[number] if self._values else {}

    def keep(self, number: int, values: dict[str, Array]) -> None:
        """Take these tensors of a batch in place of what was kept of it, unless they are too large."""
        if number == 0 and sum(value.nbytes for value in values.values()) * self._batches > self._limit:
            self._next = None
        if self._next is None:
            return
        self._next.append(values)
        if self._values:
            self._values[number] = {}
        if number == self._batches - 1:
            self._values = self._next


def constants_of(layers: Iterable[Layer]) -> frozenset[str]:
    """The names of the weights and biases of some layers."""
    each = ((layer.weight, *(use.bias for use in layer.uses)) for layer in layers)
    return frozenset(name for name in chain.from_iterable(each) if name)


def final_ends(model: Model, pending: Collection[str]) -> tuple[str, ...]:
    """The tensors that depend on no constant of `pending` and are read by what does, in the order of the graph."""
    changing = dependents(model, pending)
    read = dict.fromkeys(name for node in model.nodes if not changing.isdisjoint(node.input) for name in node.input)
    return tuple(name for name in read if name and name not in changing and not model.is_constant(name))


def dependents(model: Model, constants: Collection[str]) -> set[str]:
    """Some constants, and the tensors that depend on them."""
    found = set(constants)
    for node in model.nodes:
        if not found.isdisjoint(node.input):
            found.update(node.output)
    return found


def begin_at(model: Model, known: dict[str, Array], outputs: Sequence[str]) -> Model:
    """The part of a model that computes `outputs` from the tensors `known`, which become its inputs."""
    skeleton = ModelProto()
    skeleton.CopyFrom(model.skeleton)
    for node in skeleton.graph.node:
        # One that gives another tensor too stays, and else is left out below.
        for i, name in enumerate(node.output):
            node.output[i] = f"{name} computed again" if name in known else name
    inputs = {spec.name for spec in model.inputs}
    for name, value in known.items():
        if name in inputs:
            continue
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        skeleton.graph.input.append(helper.make_tensor_value_info(name, kind, [None] * value.ndim))
    return Model(skeleton, model.weights).with_graph(outputs=outputs).without_idle_inputs()
