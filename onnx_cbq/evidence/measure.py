"""What a plan does to a model: the float model with its weights rounded as planned, on held-back samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from onnx_cbq.calibration.samples import Indices, Samples
from onnx_cbq.evidence.kept import NO_MEMORY, Measurement, Memory, Part
from onnx_cbq.evidence.relay import Passes, Track, begin_at, constants_of
from onnx_cbq.gradient.further import Further
from onnx_cbq.graph.logits import Logits
from onnx_cbq.model import Array, Model
from onnx_cbq.quantize.grid import Channels, quantize_rows
from onnx_cbq.quantize.table import Table
from onnx_cbq.records import Grouping, Layer, Layers, Plan, Seen
from onnx_cbq.records.spread import Spread, squared_distances
from onnx_cbq.runtime import Session

# Samples that plans are measured on stay in memory up to this size, and are read again for every plan beyond it.
HELD_BYTES = 128 << 20
# Elements of a sample's further output, and positions that have labels, that are compared.
MOST_ELEMENTS, MOST_POSITIONS = 4096, 4096
# Probabilities that differ by less are the same.
_SAME_SHARE = 1e-6
# What an answer that is no number loses, in nats: as unlikely as numbers go.
_BROKEN = -float(np.log(np.finfo(np.float64).tiny))
_BY_CLASS, _BY_SAMPLE = ("answers", "hits"), ("divergences", "further")


@dataclass(frozen=True)
class Measured:
    """What a plan does on the held-back samples.

    Attributes:
        answers, hits: answers by the class of their label, and those of them that are right, [classes].
        counted: what the samples count by class: 1 in their own; in positions, if each has a label, [classes].
        divergences: from the float model by class, Kullback-Leibler, in nats, [samples, classes].
        further: distance of the outputs that count beside the class scores (see `gradient.further`), [samples].
    """

    answers: Array
    hits: Array
    counted: Array
    divergences: Array
    further: Array

    @property
    def counts(self) -> Array:
        """Samples, or positions, of each class."""
        return self.answers

    @property
    def divergence(self) -> Array:
        """Sum over samples of the divergence, [classes]."""
        return np.asarray(self.divergences.sum(axis=0))

    @property
    def accuracy(self) -> float:
        """Share of answers that are right, in [0, 1]."""
        return float(self.hits.sum() / self.answers.sum())

    @property
    def quality(self) -> float:
        """The accuracy less the mean distance of further outputs."""
        return self.accuracy - float(self.further.mean())

    def loss(self, class_weights: Array) -> float:
        """Mean divergence, a sample counting as its class does, and the mean distance of further outputs."""
        return float(self.losses(class_weights).mean())

    def losses(self, class_weights: Array) -> Array:
        """What each sample adds to the loss, so that their mean is the loss, [samples]."""
        scale = len(self.divergences) / (class_weights @ self.counted)
        return np.asarray(scale * (self.divergences @ class_weights) + self.further)


class Rounder(Protocol):
    """How measured plans are rounded."""

    def rows(self, layer: Layer, bits: Array) -> Array:
        """The layer's weights at these widths, float32 [channels, weights per channel]."""

    def shift(self, layer: Layer, use: int, bits: Array) -> Array | None:
        """What the bias of a use takes up, [channels]; None for nothing."""


class NearestRounder:
    """Rounding to nearest. A layer is rounded to a width once and kept: a byte per weight and width."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._rounded: dict[tuple[str, int], Channels] = {}

    def rows(self, layer: Layer, bits: Array) -> Array:
        """The nearest levels."""
        rows = np.empty((layer.channels, layer.weights_per_channel), np.float32)
        for width in np.unique(bits):
            chosen = bits == width
            rows[chosen] = self._all(layer, int(width)).values[chosen]
        return rows

    def shift(self, layer: Layer, use: int, bits: Array) -> None:
        """Biases stay."""

    def _all(self, layer: Layer, width: int) -> Channels:
        if (layer.name, width) not in self._rounded:
            rows = layer.rows(self._model.weight(layer.weight))
            self._rounded[layer.name, width] = quantize_rows(
                rows, np.full(len(rows), width, np.int8), layer.rules, layer.lanes
            )
        return self._rounded[layer.name, width]


class TableRounder:
    """Rounding looked up in tables: layer name -> table."""

    def __init__(self, tables: Mapping[str, Table]) -> None:
        self._tables = tables

    def rows(self, layer: Layer, bits: Array) -> Array:
        """The compensated levels."""
        return self._tables[layer.name].rows(bits)

    def shift(self, layer: Layer, use: int, bits: Array) -> Array | None:
        """The mean of what rounding adds."""
        return self._tables[layer.name].shift(use, bits)


@dataclass(frozen=True)
class _Answer:
    """Logits and scores [samples, positions, classes], further outputs [samples, elements], and labels."""

    logits: Array
    scores: Array
    further: tuple[Array, ...]
    labels: Array


class PlanMeasure:
    """Measures plans, activations in float. A layer whose widths stay as they were is not rounded again."""

    def __init__(
        self,
        model: Model,
        layers: Layers,
        held: tuple[Samples, Indices, int],
        outputs: tuple[Logits, Grouping],
        rounder: Rounder | None,
        further: Sequence[Further] = (),
        memory: Memory = NO_MEMORY,
    ) -> None:
        """Without `rounder` only `run` works. `memory` holds what plans were measured to do."""
        self.memory = memory
        self._logits, self._groups = outputs
        self._further = tuple(further)
        self._names = tuple(dict.fromkeys((*self._logits.tensors, *(one.tensor for one in self._further))))
        self._source = model
        self._model = model.with_graph(outputs=self._names)
        self._layers = layers
        self._rounder = rounder
        self._values: dict[str, tuple[bytes, dict[str, Array]]] = {}
        samples, indices, size = held
        self._passes = Passes(samples, spread_out(indices, samples.fixed_batch or size), size, HELD_BYTES)
        self._count, self._counted = 0, np.zeros(self._logits.kind.classes)
        self._reference: list[tuple[Array, tuple[Array, ...]]] = []
        spreads = {one.tensor: Spread() for one in self._further}
        for answer in self._run(self._model, self._names):
            self._reference.append((self._log_shares(answer.logits), answer.further))
            self._count += len(answer.labels)
            self._counted += self._logits.kind.counts(answer.labels).sum(axis=0)
            for one, values in zip(self._further, answer.further, strict=True):
                spreads[one.tensor].add(values)
        self._variances = [spreads[one.tensor].variance for one in self._further]

    @property
    def sameness(self) -> str:
        """What may keep all plans from measuring differently, for people."""
        shares = np.exp(np.concatenate([reference for reference, _ in self._reference]))
        if np.ptp(shares, axis=0).max(initial=0) < _SAME_SHARE:
            return "the class scores are the same for every sample"
        if np.minimum(shares, 1 - shares).max(initial=0) < _SAME_SHARE:
            return "the class scores are saturated: one class has everything, whatever the sample"
        return "no layer changes the class scores of these samples"

    def __call__(self, plan: Plan, stop: Callable[[Measured], bool] | None = None) -> Measured:
        """Run the model that `plan` makes over the held-back samples.

        After each batch `stop` may say, of what the samples so far have given, that the others need not be run.
        """
        known = self.memory.find(plan)
        if known is not None:
            found, stopped = self._total(known.parts, stop)
            if stopped or known.complete:
                return found
        parts: list[Part] = []
        model = self._model.with_constants(self.constants(plan))
        found, _ = self._total(self._parts(model, self._names), stop, parts)
        self.memory.keep(plan, Measurement(tuple(parts), len(found.further) == self._count))
        return found

    def alone(
        self, base: Mapping[str, Array], changes: Iterable[tuple[Layer, Mapping[str, Array]]]
    ) -> Iterator[Measured]:
        """Measure the model of the constants `base` with those of one layer changed, the layers in order.

        Batches begin at what `base` gives in front of the layer, which is kept as far as it fits (see `relay`): half a
        pass for each on average.
        """
        model, left = self._model.with_constants(base), list(self._layers)
        track = Track(self._passes.count)
        for layer, constants in changes:
            del left[: left.index(layer)]
            stretch = track.stretch(model, (), constants_of(left))
            passes = self._passes if stretch.needs_inputs else self._passes.without_inputs()
            for number, batch in enumerate(passes):
                stretch.run(number, batch.feeds)
                if not track.keeps:
                    break
            yield self._total(self._parts(model.with_constants(constants), self._names, track))[0]

    def constants(self, plan: Plan, layers: Iterable[Layer] | None = None) -> dict[str, Array]:
        """The weights and biases of the layers, of all if none are named, rounded as planned."""
        constants: dict[str, Array] = {}
        for layer in self._layers if layers is None else layers:
            constants |= self._constants(layer, plan.bits[layer.name])
        return constants

    def run(self, constants: Mapping[str, Array]) -> Measured:
        """Run the model with some constants replaced over the held-back samples."""
        return self._total(self._parts(self._model.with_constants(constants), self._names))[0]

    def run_instead(self, seen: Seen) -> Measured:
        """Run another model over the held-back samples; `seen.names` says what stands for the scores in it."""
        names = tuple(seen.name(name) for name in self._names)
        return self._total(self._parts(seen.model.with_graph(outputs=dict.fromkeys(names)), names))[0]

    def _parts(self, model: Model, names: tuple[str, ...], track: Track | None = None) -> Iterator[Part]:
        """What a model does on each batch."""
        kind = self._logits.kind
        for (reference, others), answer in zip(self._reference, self._run(model, names, track), strict=True):
            labels = answer.labels
            found = kind.divergences(reference, self._log_shares(answer.logits), labels)
            given, right = kind.hits(answer.scores, labels, self._groups)
            distances = self._distances(others, answer.further, len(labels))
            yield Part(given, right, np.where(np.isnan(found), _BROKEN, found), distances)

    def _total(
        self, parts: Iterable[Part], stop: Callable[[Measured], bool] | None = None, taken: list[Part] | None = None
    ) -> tuple[Measured, bool]:
        """What a model does on the batches so far, when `stop` says that they are enough, and whether it did."""
        taken = [] if taken is None else taken
        for part in parts:
            taken.append(part)
            divergences, further = (np.concatenate([getattr(one, name) for one in taken]) for name in _BY_SAMPLE)
            # As if all classes were as frequent so far as they are in the end.
            counted = self._counted * (len(divergences) / self._count)
            answers, hits = (sum(getattr(one, name) for one in taken) for name in _BY_CLASS)
            measured = Measured(answers, hits, counted, divergences, further)
            if stop is not None and stop(measured):
                return measured, True
        return measured, False

    def _distances(self, reference: Sequence[Array], found: Sequence[Array], count: int) -> Array:
        """The distance of the further outputs of each sample, summed over the outputs, [samples]."""
        total = np.zeros(count)
        for before, after, variance in zip(reference, found, self._variances, strict=True):
            if variance and before.size:
                total += 0.5 * squared_distances(before, after).mean(axis=1) / variance
        return np.where(np.isnan(total), _BROKEN, total)

    def _log_shares(self, logits: Array) -> Array:
        return self._logits.kind.log_shares(logits, self._groups)

    def _run(self, model: Model, names: tuple[str, ...], track: Track | None = None) -> Iterator[_Answer]:
        """What a model answers to each batch; `names` stand for the tensors asked for. It begins where `track` is."""
        known = track.kept(0) if track is not None else {}
        open_names = [name for name in names if name not in known]
        session = Session(begin_at(model, known, open_names) if known and open_names else model)
        given = dict(zip(self._names, names, strict=True))
        logits, scores = (given[name] for name in self._logits.tensors)
        reading = replace(self._logits.reading, keys=())
        needed = {spec.name for spec in self._model.inputs} - known.keys()
        passes = self._passes.without_inputs() if needed.isdisjoint(session.inputs) else self._passes
        for number, batch in enumerate(passes):
            feeds = {**batch.feeds, **(track.kept(number) if track is not None else {})}
            values = {**feeds, **session.run({name: feeds[name] for name in session.inputs})}
            count = batch.count
            phi, answers = self._logits.phi.rows(values[logits])[:count], reading.rows(values[scores])[:count]
            labels = batch.labels
            if phi.shape[1] > MOST_POSITIONS:
                chosen = _spread(phi.shape[1], MOST_POSITIONS)
                phi, answers, labels = phi[:, chosen], answers[:, chosen], labels.reshape(count, -1)[:, chosen]
            further = (_some_elements(values[given[one.tensor]], one.batch_axis, count) for one in self._further)
            yield _Answer(phi, answers, tuple(further), labels)

    def _constants(self, layer: Layer, bits: Array) -> dict[str, Array]:
        assert self._rounder is not None
        key = bits.tobytes()
        known = self._values.get(layer.name)
        if known is None or known[0] != key:
            constants = {layer.weight: layer.unrows(self._rounder.rows(layer, bits))}
            for i, use in enumerate(layer.uses):
                shift = self._rounder.shift(layer, i, bits) if use.bias else None
                if shift is not None:
                    bias = self._source.weight(str(use.bias))
                    constants[str(use.bias)] = (bias + shift).astype(np.float32)
            self._values[layer.name] = (key, constants)
        return self._values[layer.name][1]


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


def spread_out(indices: Indices, size: int) -> Indices:
    """The samples in an order in which every batch has some from everywhere: sources often have a class in a row."""
    batches = -(-len(indices) // size)
    return np.concatenate([indices[first::batches] for first in range(batches)])
