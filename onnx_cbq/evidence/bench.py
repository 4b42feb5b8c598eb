"""What workers do to measure plans: the float model's answers to batches, and how far those of other models are off."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
from scipy.sparse import csr_array

from onnx_cbq.evidence.kept import Part
from onnx_cbq.evidence.reading import Numbered, Reader
from onnx_cbq.evidence.relay import Track, begin_at, constants_of
from onnx_cbq.evidence.rounders import RoundedConstants
from onnx_cbq.execution import Place
from onnx_cbq.gradient.further import Further
from onnx_cbq.graph.logits import Logits
from onnx_cbq.model import Array, Model
from onnx_cbq.records import Grouping, Layer, Plan
from onnx_cbq.records.spread import squared_distances
from onnx_cbq.runtime import Session

# Elements of a sample's further output, and positions that have labels, that are compared.
MOST_ELEMENTS, MOST_POSITIONS = 4096, 4096
# What an answer that is no number loses, in nats: as unlikely as numbers go.
BROKEN = -float(np.log(np.finfo(np.float64).tiny))


@dataclass(frozen=True)
class MeasureWork:
    """A float model whose outputs are `names`, how its answers are read, and samples.

    Attributes:
        rounded: how plans are rounded, if they are.
        count: of all samples.
        reader: reads the samples.
    """

    model: Model
    reader: Reader
    logits: Logits
    groups: Grouping
    names: tuple[str, ...]
    further: tuple[Further, ...]
    rounded: RoundedConstants | None
    count: int

    def start(self, place: Place) -> Bench:
        """Nothing measured yet."""
        return Bench(self, place, Track(self.count, place))


@dataclass(frozen=True)
class Answer:
    """Logits and scores [samples, positions, classes], further outputs [samples, elements], and labels."""

    logits: Array
    scores: Array
    further: tuple[Array, ...]
    labels: Array


@dataclass(frozen=True)
class Reference:
    """What the float model says to a batch: log shares, and further outputs [samples, elements]."""

    shares: Array
    further: tuple[Array, ...]


@dataclass
class Bench:
    """What a worker holds.

    Attributes:
        track: what layers alone begin at: the net of the constants `base`.
        references: by the number of the batch.
        variances: of further outputs over all samples.
    """

    work: MeasureWork
    place: Place
    track: Track
    base: Mapping[str, Array] = field(default_factory=dict)
    references: dict[int, Reference] = field(default_factory=dict)

    def answering(self, model: Model, names: Sequence[str], track: Track | None = None) -> Answering:
        """What asks a model; `names` stand in it for those of the work. With a track it begins at what that kept."""
        return Answering(self, model, tuple(names), track)

    def log_shares(self, logits: Array) -> Array:
        """Of the groups."""
        return self.work.logits.kind.log_shares(logits, self.work.groups)

    def measuring(
        self, answering: Answering, variances: Sequence[float]
    ) -> Callable[[Sequence[Numbered]], Iterator[Part]]:
        """How far the answers of a model are off; further outputs in units of what they vary."""
        kind, groups = self.work.logits.kind, self.work.groups

        def run(shards: Sequence[Numbered]) -> Iterator[Part]:
            for (number, _), answer in zip(shards, answering.of(shards), strict=True):
                reference, labels = self.references[number], answer.labels
                found = kind.divergences(reference.shares, self.log_shares(answer.logits), labels)
                given, right = kind.hits(answer.scores, labels, groups)
                distances = _distances(reference.further, answer.further, variances, len(labels))
                sparse = csr_array(np.where(np.isnan(found), BROKEN, found))
                yield Part(given, right, sparse, distances)

        return run


@dataclass(frozen=True)
class Answering:
    """Asks a model for batches, from the samples on or from what a track has kept of them."""

    bench: Bench
    model: Model
    names: tuple[str, ...]
    track: Track | None
    _sessions: dict[tuple[str, ...], tuple[Session, bool]] = field(default_factory=dict, repr=False)

    def of(self, shards: Sequence[Numbered]) -> Iterator[Answer]:
        """The answers to each batch."""
        work = self.bench.work
        given = dict(zip(work.names, self.names, strict=True))
        logits, scores = (given[name] for name in work.logits.tensors)
        reading = replace(work.logits.reading, keys=())
        reads = any(self._session(number)[1] for number, _ in shards)
        for (number, _), batch in zip(shards, work.reader.batches(shards, inputs=reads), strict=True):
            session, _ = self._session(number)
            feeds = {**batch.feeds, **self._kept(number)}
            values = {**feeds, **session.run({name: feeds[name] for name in session.inputs})}
            count, labels = batch.count, batch.labels
            phi, answers = work.logits.phi.rows(values[logits])[:count], reading.rows(values[scores])[:count]
            if phi.shape[1] > MOST_POSITIONS:
                chosen = _spread(phi.shape[1], MOST_POSITIONS)
                phi, answers, labels = phi[:, chosen], answers[:, chosen], labels.reshape(count, -1)[:, chosen]
            further = (_some_elements(values[given[one.tensor]], one.batch_axis, count) for one in work.further)
            yield Answer(phi, answers, tuple(further), labels)

    def _kept(self, number: int) -> dict[str, Array]:
        return {} if self.track is None else self.track.kept(number)

    def _session(self, number: int) -> tuple[Session, bool]:
        """A session for a batch, and whether it reads the samples."""
        known = self._kept(number)
        if tuple(known) not in self._sessions:
            open_names = [name for name in self.names if name not in known]
            part = begin_at(self.model, known, open_names) if known and open_names else self.model
            session = self.bench.place.session(part)
            inputs = {spec.name for spec in self.bench.work.model.inputs} - known.keys()
            self._sessions[tuple(known)] = session, not inputs.isdisjoint(session.inputs)
        return self._sessions[tuple(known)]


@dataclass(frozen=True)
class Answered:
    """What is known of the float model's answers to a batch.

    Attributes:
        samples: how many.
        counted: of each class, [classes].
        further: further outputs, [samples, elements] each.
        least, most: of the probabilities over the samples, [positions, groups]; `unsure` the largest distance of one
            from both 0 and 1.
    """

    samples: int
    counted: Array
    further: tuple[Array, ...]
    least: Array
    most: Array
    unsure: float


@dataclass(frozen=True)
class Refer:
    """Ask the float model, and remember its answers."""

    leaves: ClassVar[bool] = True

    def on(self, held: Bench) -> Callable[[Sequence[Numbered]], Iterator[Answered]]:
        """What it answers."""
        work = held.work
        answering = held.answering(work.model, work.names)

        def run(shards: Sequence[Numbered]) -> Iterator[Answered]:
            for (number, _), answer in zip(shards, answering.of(shards), strict=True):
                reference = held.references[number] = Reference(held.log_shares(answer.logits), answer.further)
                shares, counted = np.exp(reference.shares), work.logits.kind.counts(answer.labels).sum(axis=0)
                ends = shares.min(axis=0), shares.max(axis=0)
                unsure = float(np.minimum(shares, 1 - shares).max(initial=0))
                yield Answered(len(answer.labels), counted, reference.further, *ends, unsure)

        return run


@dataclass(frozen=True)
class MeasureModel:
    """The work's model with other constants, as a plan makes them or as they are; or another model in its place.

    Attributes:
        names: what stands for the work's outputs in another model.
    """

    variances: tuple[float, ...]
    plan: Plan | None = None
    constants: Mapping[str, Array] = field(default_factory=dict)
    other: tuple[Model, tuple[str, ...]] | None = None
    leaves: ClassVar[bool] = False

    def on(self, held: Bench) -> Callable[[Sequence[Numbered]], Iterator[Part]]:
        """How far it is off."""
        if self.other is not None:
            model, names = self.other
        else:
            rounded = held.work.rounded
            constants = self.constants if self.plan is None or rounded is None else rounded.of(self.plan)
            model, names = held.work.model.with_constants(constants), held.work.names
        return held.measuring(held.answering(model, names), self.variances)


@dataclass(frozen=True)
class Begin:
    """The constants that layers alone are measured with, at the start of the net."""

    base: Mapping[str, Array]
    leaves: ClassVar[bool] = True

    def on(self, held: Bench) -> Callable[[Sequence[Numbered]], Iterator[None]]:
        """Nothing is found out."""
        held.base = self.base
        held.track = Track(held.work.count, held.place)
        return lambda shards: iter([None] * len(shards))


@dataclass(frozen=True)
class MeasureAlone:
    """The net of the base with the constants of one layer changed; the nets in front of it are the same.

    Attributes:
        left: the layers that are still to come, it first.
    """

    variances: tuple[float, ...]
    left: tuple[Layer, ...]
    constants: Mapping[str, Array]
    leaves: ClassVar[bool] = True

    def on(self, held: Bench) -> Callable[[Sequence[Numbered]], Iterator[Part]]:
        """How far it is off."""
        model = held.work.model.with_constants(held.base)
        changed = model.with_constants(self.constants)
        stretch, fits = held.track.stretch(model, (), constants_of(self.left)), True
        measured = held.measuring(held.answering(changed, held.work.names, held.track), self.variances)

        def run(shards: Sequence[Numbered]) -> Iterator[Part]:
            nonlocal fits
            if fits:
                reads = any(stretch.needs_inputs(number) for number, _ in shards)
                for (number, _), batch in zip(shards, held.work.reader.batches(shards, inputs=reads), strict=True):
                    fed = held.work.reader.samples.fixed_batch or batch.count
                    fits = stretch.advance(number, batch.feeds, fed)
                    if not fits:
                        break
            yield from measured(shards)

        return run


def _distances(reference: Sequence[Array], found: Sequence[Array], variances: Sequence[float], count: int) -> Array:
    """The distance of the further outputs of each sample, summed over the outputs, [samples]."""
    total = np.zeros(count)
    for before, after, variance in zip(reference, found, variances, strict=True):
        if variance and before.size:
            total += 0.5 * squared_distances(before, after).mean(axis=1) / variance
    return np.where(np.isnan(total), BROKEN, total)


def _some_elements(values: Array, batch_axis: int, count: int) -> Array:
    """At most `MOST_ELEMENTS` of each sample, evenly spread and always the same, [samples, elements]."""
    moved = np.moveaxis(values, batch_axis, 0)[:count]
    flat = moved.reshape(count, -1)
    if flat.shape[1] <= MOST_ELEMENTS:
        return flat
    return flat[:, _spread(flat.shape[1], MOST_ELEMENTS)]


def _spread(count: int, most: int) -> Array:
    """`most` of `count` places, evenly spread."""
    return np.linspace(0, count - 1, most).astype(np.int64)
