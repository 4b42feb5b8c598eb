"""What the float model teaches: its answers to samples, what each of them counts, and how far others are off."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from onnx_cbq.calibration.samples import Batch, Indices
from onnx_cbq.evidence.tensors import deviations
from onnx_cbq.evidence.workload import Workload
from onnx_cbq.gradient.further import Further
from onnx_cbq.graph.logits import Logits
from onnx_cbq.learned.student import Student
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
        some = lesson.learned[:: -(-len(lesson.learned) // _SEEN)]
        return Teacher(lesson, session, size, deviations(work.model, further, work.samples, some, size))

    def endless(self) -> Iterator[tuple[Batch, Taught]]:
        """Batches to learn from, in another order in every round."""
        random, learned = np.random.default_rng(self.lesson.seed), self.lesson.learned
        size = min(self.size, len(learned))
        while True:
            order = random.permutation(learned)
            for batch in self.lesson.work.samples.batches(order[: len(order) // size * size], size):
                yield batch, self._taught(batch)

    def loss(self, student: Student, constants: Mapping[str, Array]) -> float:
        """The mean divergence of a student on the samples held back, and the distance of further outputs."""
        kind, phi, tensor = self._logits.kind, self._logits.phi, self._logits.tensor
        weights, total, weight, apart = self.lesson.class_weights, 0.0, 0.0, 0.0
        for batch in self.lesson.work.samples.batches(self.lesson.held, self.size):
            wanted = self.session.run(batch.feeds)
            found = student.answer(batch.feeds, constants)
            right, now = (
                kind.log_shares(phi.rows(one[tensor])[: batch.count], self.lesson.groups) for one in (wanted, found)
            )
            total += float((kind.divergences(right, now, batch.labels) @ weights).sum())
            weight += float((kind.counts(batch.labels) @ weights).sum())
            for one in self.lesson.work.further.counted:
                if self.deviations[one.tensor]:
                    change = np.moveaxis(found[one.tensor] - wanted[one.tensor], one.batch_axis, 0)[: batch.count]
                    off = change.reshape(batch.count, -1).astype(np.float64) / self.deviations[one.tensor]
                    apart += float(np.square(off).mean(axis=1).sum()) / 2
        return total / max(weight, np.finfo(np.float64).tiny) + apart / len(self.lesson.held)

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
