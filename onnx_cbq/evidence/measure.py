"""What a plan does to a model: the float model with its weights rounded as planned, on held-back samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from weakref import finalize

import numpy as np
from scipy.sparse import csr_array, vstack

from onnx_cbq.calibration.samples import Indices, Samples
from onnx_cbq.evidence.bench import Answered, Begin, MeasureAlone, MeasureModel, MeasureWork, Refer
from onnx_cbq.evidence.kept import NO_MEMORY, Measurement, Memory, Part
from onnx_cbq.evidence.reading import Reader
from onnx_cbq.evidence.rounders import RoundedConstants, Rounder
from onnx_cbq.execution import IN_PROCESS, Engine
from onnx_cbq.gradient.further import Further
from onnx_cbq.graph.logits import Logits
from onnx_cbq.model import Array, Model
from onnx_cbq.records import Grouping, Layer, Layers, Plan, Seen
from onnx_cbq.records.spread import Spread

# Probabilities that differ by less are the same.
_SAME_SHARE = 1e-6
# So often it is asked whether the samples so far are enough, as long as a batch has so many.
_LOOKS, _FEWEST = 10, 16
_BY_CLASS = ("answers", "hits")


@dataclass(frozen=True)
class Measured:
    """What a plan does on the held-back samples.

    Attributes:
        answers, hits: answers by the class of their label, and those of them that are right, [classes].
        counted: what the samples count by class: 1 in their own; in positions, if each has a label, [classes].
        divergences: from the float model by class, Kullback-Leibler, in nats, [samples, classes], sparse: most samples
            are of one class.
        further: distance of the outputs that count beside the class scores (see `gradient.further`), [samples].
    """

    answers: Array
    hits: Array
    counted: Array
    divergences: csr_array
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
        scale = len(self.further) / (class_weights @ self.counted)
        return np.asarray(scale * (self.divergences @ class_weights) + self.further)


class PlanMeasure:
    """Measures plans, activations in float. A layer whose widths stay as they were is not rounded again."""

    def __init__(
        self,
        model: Model,
        layers: Layers,
        held: tuple[Samples, Indices, int],
        outputs: tuple[Logits, Grouping, Sequence[Further]],
        rounder: Rounder | None,
        memory: Memory = NO_MEMORY,
        engine: Engine = IN_PROCESS,
    ) -> None:
        """Without `rounder` only `run` works. `memory` holds what plans were measured to do."""
        self.memory = memory
        (logits, groups, further), (samples, indices, size) = outputs, held
        names = tuple(dict.fromkeys((*logits.tensors, *(one.tensor for one in further))))
        self._names, self._layers = names, layers
        self._rounded = None if rounder is None else RoundedConstants(model, layers, rounder)
        work = MeasureWork(
            model.with_graph(outputs=names),
            Reader.of(samples, indices),
            logits,
            groups,
            names,
            tuple(further),
            self._rounded,
            len(indices),
        )
        size = held_batch(len(indices), size)
        chunks = samples.chunks(spread_out(indices, samples.fixed_batch or size), size)
        self._crew = engine.crew(work, list(enumerate(chunks)))
        finalize(self, self._crew.close)
        self._refer(logits.kind.classes, further)

    def _refer(self, classes: int, further: Sequence[Further]) -> None:
        """Ask the float model."""
        spreads = {one.tensor: Spread() for one in further}
        self._count, self._counted = 0, np.zeros(classes)
        self._answered: list[Answered] = []
        for answered in self._crew.each(Refer()):
            self._count += answered.samples
            self._counted += answered.counted
            for one, values in zip(further, answered.further, strict=True):
                spreads[one.tensor].add(values)
            self._answered.append(replace(answered, further=()))
        self._variances = tuple(spreads[one.tensor].variance for one in further)

    @property
    def sameness(self) -> str:
        """What may keep all plans from measuring differently, for people."""
        least = np.min([one.least for one in self._answered], axis=0)
        most = np.max([one.most for one in self._answered], axis=0)
        if (most - least).max(initial=0) < _SAME_SHARE:
            return "the class scores are the same for every sample"
        if max(one.unsure for one in self._answered) < _SAME_SHARE:
            return "the class scores are saturated: one class has everything, whatever the sample"
        return "no layer changes the class scores of these samples"

    def __call__(self, plan: Plan, stop: Callable[[Measured], bool] | None = None) -> Measured:
        """Run the model that `plan` makes over the held-back samples.

        After each batch `stop` may say, of what the samples so far have given, that the others need not be run.
        """
        known = self.memory.find(plan)
        if known is not None:
            found, stopped = self._total(iter(known.parts), stop)
            if stopped or known.complete:
                return found
        parts: list[Part] = []
        pieces = self._crew.each(MeasureModel(self._variances, plan))
        found, _ = self._total(pieces, stop, parts)
        self.memory.keep(plan, Measurement(tuple(parts), len(found.further) == self._count))
        return found

    def alone(
        self, base: Mapping[str, Array], changes: Iterable[tuple[Layer, Mapping[str, Array]]]
    ) -> Iterator[Measured]:
        """Measure the model of the constants `base` with those of one layer changed, the layers in order.

        Batches begin at what `base` gives in front of the layer, which is kept as far as it fits (see `relay`): half a
        pass for each on average.
        """
        left = list(self._layers)
        for _ in self._crew.each(Begin(base)):
            pass
        for layer, constants in changes:
            del left[: left.index(layer)]
            yield self._total(self._crew.each(MeasureAlone(self._variances, tuple(left), constants)))[0]

    def constants(self, plan: Plan, layers: Iterable[Layer] | None = None) -> dict[str, Array]:
        """The weights and biases of the layers, of all if none are named, rounded as planned."""
        assert self._rounded is not None
        return self._rounded.of(plan, layers)

    def run(self, constants: Mapping[str, Array]) -> Measured:
        """Run the model with some constants replaced over the held-back samples."""
        return self._total(self._crew.each(MeasureModel(self._variances, constants=constants)))[0]

    def run_instead(self, seen: Seen, stop: Callable[[Measured], bool] | None = None) -> Measured:
        """Run another model over the held-back samples; `seen.names` says what stands for the scores in it.

        After each batch `stop` may say that the others need not be run.
        """
        names = tuple(seen.name(name) for name in self._names)
        other = seen.model.with_graph(outputs=dict.fromkeys(names)), names
        return self._total(self._crew.each(MeasureModel(self._variances, other=other)), stop)[0]

    def _total(
        self, parts: Iterator[Part], stop: Callable[[Measured], bool] | None = None, taken: list[Part] | None = None
    ) -> tuple[Measured, bool]:
        """What a model does on the batches so far, when `stop` says that they are enough, and whether it did."""
        taken = [] if taken is None else taken
        for part in parts:
            taken.append(part)
            if stop is not None and stop(measured := self._measured(taken)):
                return measured, True
        return self._measured(taken), False

    def _measured(self, taken: Sequence[Part]) -> Measured:
        """What a model does on these batches, the first ones."""
        divergences = vstack([one.divergences for one in taken], format="csr")
        further = np.concatenate([one.further for one in taken])
        # As if all classes were as frequent so far as they are in the end.
        counted = self._counted * (len(further) / self._count)
        answers, hits = (sum(getattr(one, name) for one in taken) for name in _BY_CLASS)
        return Measured(answers, hits, counted, divergences, further)


def held_batch(count: int, most: int) -> int:
    """How many of so many samples held back are run at once."""
    return min(most, max(-(-count // _LOOKS), _FEWEST))


def spread_out(indices: Indices, size: int) -> Indices:
    """The samples in an order in which every batch has some from everywhere: sources often have a class in a row."""
    batches = -(-len(indices) // size)
    return np.concatenate([indices[first::batches] for first in range(batches)])
