"""A net that changes from front to back, run a stretch at a time: what is final in front is computed once.

While layers are rounded in order, a node is final as soon as it depends on no layer that is still to come. The tensors
that final nodes give to others are kept for every batch, and the next stretch begins at them: one pass through the net
for all layers together, where running it from the start for each takes half a pass per layer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

from onnx import ModelProto, helper

from onnx_cbq.execution import Place
from onnx_cbq.model import Array, Model
from onnx_cbq.records import Layer
from onnx_cbq.runtime import Feeds, Session

# What is kept of one net, in bytes; beyond it a stretch begins where the last one did.
KEPT_BYTES = 512 << 20
HERE = Place()


class Track:
    """One net on its way through its stretches, batch by batch.

    Args:
        samples: that all batches have together, here and elsewhere.
        place: where stretches run.
        limit: bytes that may be kept of all batches; `KEPT_BYTES` if it is left out.
    """

    def __init__(self, samples: int, place: Place = HERE, limit: int | None = None) -> None:
        self.place = place
        self._samples, self._limit = samples, KEPT_BYTES if limit is None else limit
        self._kept: dict[int, dict[str, Array]] = {}

    def stretch(self, model: Model, names: Sequence[str], pending: Collection[str]) -> Stretch:
        """The part up to the tensors `names`, and to the end of what depends on none of the constants `pending`.

        Constants that are not pending must stay as they are.
        """
        return Stretch(self, model, tuple(names), final_ends(model, pending))

    def kept(self, number: int) -> dict[str, Array]:
        """What is kept of a batch."""
        return self._kept.get(number, {})

    def keep(self, number: int, values: dict[str, Array], fed: int) -> bool:
        """Take these tensors of a batch of `fed` samples in place of what was kept of it, unless they are too large.

        What is too large does not depend on which batches are here.
        """
        fits = sum(value.nbytes for value in values.values()) * self._samples <= self._limit * fed
        if fits:
            self._kept[number] = values
        return fits


@dataclass(frozen=True)
class Stretch:
    """A part of the net that gives tensors of a batch, from what was kept of it.

    Attributes:
        model: the whole net.
        names: the tensors that are asked for; `ends` those that are kept.
    """

    track: Track
    model: Model
    names: tuple[str, ...]
    ends: tuple[str, ...]
    _sessions: dict[tuple[str, ...], Session | None] = field(default_factory=dict, repr=False)

    def needs_inputs(self, number: int) -> bool:
        """Whether the part for the batch of that number begins at the net's own inputs, in part at least."""
        known = self.track.kept(number)
        session = self._session(known)
        begins = () if session is None else session.inputs
        return not (self._inputs - known.keys()).isdisjoint({*begins, *self.names, *self.ends})

    def run(self, number: int, feeds: Feeds, fed: int) -> dict[str, Array]:
        """The tensors of the batch of that number, of `fed` samples."""
        return self._run(number, feeds, fed)[0]

    def advance(self, number: int, feeds: Feeds, fed: int) -> bool:
        """Bring the track as far as this, and say whether what it leaves there is kept."""
        return self._run(number, feeds, fed)[1]

    def _run(self, number: int, feeds: Feeds, fed: int) -> tuple[dict[str, Array], bool]:
        kept = self.track.kept(number)
        values, session = {**feeds, **kept}, self._session(kept)
        if session is not None:
            values |= session.run({name: values[name] for name in session.inputs})
        fits = self.track.keep(number, {name: values[name] for name in self.ends}, fed)
        return {name: values[name] for name in self.names}, fits

    @cached_property
    def _inputs(self) -> set[str]:
        return {spec.name for spec in self.model.inputs}

    def _session(self, known: dict[str, Array]) -> Session | None:
        """For batches of which these tensors are known; None where there is nothing to compute."""
        key = tuple(known)
        if key not in self._sessions:
            wanted = [name for name in dict.fromkeys((*self.names, *self.ends)) if name not in known]
            outputs = [name for name in wanted if name in self.model.producers]
            part = begin_at(self.model, known, outputs) if outputs else None
            self._sessions[key] = None if part is None else self.track.place.session(part)
        return self._sessions[key]


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
