"""What the float model teaches: its answers to samples, and what each of them counts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from onnx_cbq.calibration.draw import thinned
from onnx_cbq.calibration.samples import Batch, Indices
from onnx_cbq.evidence.tensors import deviations
from onnx_cbq.evidence.workload import Workload
from onnx_cbq.gradient.further import Further
from onnx_cbq.graph.logits import Logits
from onnx_cbq.model import Array
from onnx_cbq.records import ActivationGrid, Grouping
from onnx_cbq.runtime import Session

# By tensor: what is taught, and what its elements count.
Taught = dict[str, tuple[Array, Array]]
_PAIR = np.array([-1.0, 1.0])
# Samples that say how much further outputs vary.
_SEEN = 200


@dataclass(frozen=True)
class Lesson:
    """What is learned from: a workload, samples to learn from and held back, and what counts.

    Attributes:
        grids: of activations.
        class_weights: what a sample counts, by its class.
        seed: decides the order of the samples.
    """

    work: Workload
    grids: Mapping[str, ActivationGrid]
    learned: Indices
    held: Indices
    class_weights: Array
    groups: Grouping
    seed: int = 0


@dataclass(frozen=True)
class Teacher:
    """The float model.

    Attributes:
        session: gives what counts.
        size: samples of a batch.
        deviations: of further outputs over the samples.
    """

    lesson: Lesson
    session: Session
    size: int
    deviations: Mapping[str, float]

    @staticmethod
    def of(lesson: Lesson, size: int) -> Teacher:
        """Of a workload."""
        work, further = lesson.work, lesson.work.further.counted
        names = dict.fromkeys((work.logits.tensor, *(one.tensor for one in further)))
        session = work.engine.place.session(work.model.with_graph(outputs=names))
        some = thinned(lesson.learned, _SEEN)
        varying = deviations(work.model, further, work.samples, some, size, work.engine)
        return Teacher(lesson, session, size, varying)

    def endless(self) -> Iterator[tuple[Batch, Taught]]:
        """Batches to learn from, in another order in every round."""
        random, learned = np.random.default_rng(self.lesson.seed), self.lesson.learned
        size = min(self.size, len(learned))
        while True:
            order = random.permutation(learned)
            for batch in self.lesson.work.samples.batches(order[: len(order) // size * size], size):
                yield batch, self._taught(batch)

    @property
    def _logits(self) -> Logits:
        return self.lesson.work.logits

    def _taught(self, batch: Batch) -> Taught:
        """What the float model answers to a batch, and what that counts; samples that only fill it up count nothing."""
        kind, phi, tensor = self._logits.kind, self._logits.phi, self._logits.tensor
        answers = self.session.run(batch.feeds)
        shape, groups = answers[tensor].shape, self.lesson.groups
        rows = phi.rows(answers[tensor])
        shares = np.exp(kind.log_shares(rows, groups))
        if kind.independent:
            shares = shares[..., 1]
        elif not groups.is_trivial:
            shares = shares[..., groups.of_class]
        if phi.classes is None:
            shares = shares[..., 1:] * _PAIR
        weights = kind.position_weights(batch.labels, self.lesson.class_weights)
        counted = np.zeros(rows.shape)
        counted[: batch.count] = weights / max(weights.sum() / (kind.classes if kind.several else 1), 1e-12)
        if phi.classes is None:
            counted = counted[..., 1:] * _PAIR
        found = {tensor: (phi.gradient(shares, shape), phi.gradient(counted, shape))}
        for one in self.lesson.work.further.counted:
            if one.tensor != tensor:
                found[one.tensor] = answers[one.tensor], self._counts_of(one, answers[one.tensor].shape, batch.count)
        return found

    def _counts_of(self, one: Further, shape: tuple[int, ...], count: int) -> Array:
        """What the change of a further output is multiplied by in the gradient of its distance, by element."""
        deviation, each = self.deviations[one.tensor], math.prod(shape) // shape[one.batch_axis]
        counts = np.zeros(shape, np.float32)
        if deviation:
            np.moveaxis(counts, one.batch_axis, 0)[:count] = 1 / (deviation**2 * each * count)
        return counts
