"""What accuracy a solution loses, overall and by class, on samples that nothing else has seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar
from weakref import finalize

import numpy as np

from onnx_cbq.calibration.draw import Draw, draw
from onnx_cbq.evidence.reading import Numbered, Reader
from onnx_cbq.evidence.scoring import batch_size
from onnx_cbq.execution import Place
from onnx_cbq.graph.logits import Logits
from onnx_cbq.model import Array, Model
from onnx_cbq.records import Grouping
from onnx_cbq.runtime import CPU
from onnx_cbq.stages.scene import Scene
from onnx_cbq.stages.solution import Solution, emit_solution

# Limits are checked on as many samples beyond the calibration samples as there are, up to this.
LIMIT_SAMPLES = 2000


@dataclass(frozen=True)
class Losses:
    """Points of accuracy lost against the float model on the limit samples.

    Attributes:
        overall: over all samples, a sample counting as its class does.
        per_class: of each class; nan for one that does not count or has no samples.
        samples: per class.
    """

    overall: float
    per_class: Array
    samples: Array


class LimitCheck:
    """Measures the losses of solutions, each as the model that it would be written as."""

    def __init__(self, scene: Scene) -> None:
        self._work = work = scene.work
        chosen, self.samples, self.notes = limit_samples(scene)
        self._counted, self._logits = scene.class_weights, work.logits
        hits = HitWork(Reader.of(work.samples, chosen.indices), work.logits, scene.evidence.groups)
        chunks = work.samples.chunks(chosen.indices, batch_size(work.layers))
        self._crew = work.engine.crew(hits, list(enumerate(chunks)))
        finalize(self, self._crew.close)
        self._reference, self._counts, self._same_answer = self._hits(work.model)

    def __call__(self, scene: Scene, solution: Solution) -> Losses:
        """Run the model that the solution makes."""
        lost = self._reference - self._hits(emit_solution(scene, solution))[0]
        counted = (self._counts > 0) & (self._counted > 0)
        per_class = np.where(counted, 100 * lost / np.maximum(self._counts, 1), np.nan)
        overall = float(100 * (self._counted @ lost) / (self._counted @ self._counts))
        return Losses(overall, per_class, self._counts)

    @property
    def blindness(self) -> str:
        """Why no limit can tell plans from each other, for people; "" where one can."""
        if self._same_answer:
            return "the float model gives every sample the same answer"
        model = self._work.model
        zeros = {layer.weight: np.zeros_like(model.weight(layer.weight)) for layer in self._work.layers}
        lost = (self._reference - self._hits(model.with_constants(zeros))[0])[self._counted > 0]
        return "" if (lost > 0).any() else "without its weights the model gives as many right answers"

    def _hits(self, model: Model) -> tuple[Array, Array, bool]:
        """Right answers of each class, up to groups of classes, how many there are, and whether all are the same."""
        hits, counts = np.zeros((2, self._logits.kind.classes))
        first: Array | None = None
        same = True
        for given, right, answer, alike in self._crew.each(CountHits(model.with_graph(outputs=[self._logits.output]))):
            hits, counts = hits + right, counts + given
            first = answer if first is None else first
            same &= alike and bool((answer == first).all())
        return hits, counts, same


@dataclass(frozen=True)
class HitWork:
    """How class scores are read and told apart, and samples."""

    reader: Reader
    logits: Logits
    groups: Grouping

    def start(self, place: Place) -> tuple[HitWork, Place]:
        """No model yet."""
        return self, place


@dataclass(frozen=True)
class CountHits:
    """A model's answers and right ones of each class, the first answer, and whether all are the same."""

    model: Model
    leaves: ClassVar[bool] = False

    def on(
        self, held: tuple[HitWork, Place]
    ) -> Callable[[Sequence[Numbered]], Iterator[tuple[Array, Array, Array, bool]]]:
        """Of every batch."""
        work, place = held
        session, kind = replace(place, provider=CPU).session(self.model), work.logits.kind

        def run(shards: Sequence[Numbered]) -> Iterator[tuple[Array, Array, Array, bool]]:
            for batch in work.reader.batches(shards):
                values = session.run(batch.feeds)[work.logits.output]
                scores = work.logits.reading.rows(values)[: batch.count]
                answers = kind.predictions(scores)
                alike = bool((answers == answers[:1]).all())
                yield (*kind.hits(scores, batch.labels, work.groups), answers[:1], alike)

        return run


def limit_samples(scene: Scene) -> tuple[Draw, str, tuple[str, ...]]:
    """Samples beyond the calibration samples, or, of classes that have no others, the calibration samples themselves.

    With what they are called, and a note.
    """
    work, drawn = scene.work, scene.drawn
    used = set(drawn.indices.tolist())
    everything = draw(work.samples, work.class_names, None, scene.settings.samples.seed)
    # Classes without samples count nothing.
    share = max(LIMIT_SAMPLES // int((scene.class_weights > 0).sum()), 1)
    rest = [
        np.array([i for i in part.tolist() if i not in used][:share], np.int64)
        if scene.class_weights[m] > 0
        else part[:0]
        for m, part in enumerate(everything.by_class)
    ]
    short = [m for m in np.flatnonzero(scene.class_weights).tolist() if not len(rest[m])]
    if not short:
        return Draw(tuple(rest)), "samples that nothing else used", ()
    if not any(map(len, rest)):
        note = "the limits are checked on the calibration samples themselves: the card has no others of every class"
        return drawn, "calibration samples", (note,)
    note = (
        f"the limits are checked on calibration samples of {len(short):,} classes, the first of them "
        f"{work.class_names[short[0]]!r}: the card has no others of these"
    )
    return Draw(tuple(drawn.by_class[m] if m in short else part for m, part in enumerate(rest))), "samples", (note,)
