"""Several models on the same samples, answer by answer: who is right where another is not, and how sure of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, ClassVar, Protocol

import numpy as np

from onnx_cbq.calibration.samples import Batch, Indices, Samples
from onnx_cbq.errors import CalibrationError
from onnx_cbq.evidence.trials import judged
from onnx_cbq.execution import IN_PROCESS, Engine, Place
from onnx_cbq.graph.logits import Logits
from onnx_cbq.model import Array
from onnx_cbq.records import Evaluation, Grouping
from onnx_cbq.runtime import Runnable
from onnx_cbq.system.progress import Progress, silent
from onnx_cbq.verification.counts import Infinities, Tally, answers_of, batch_size

_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class Contender:
    """A model that can be run, how its class scores are read, and the samples as it takes them.

    Models that take them alike have the same `Samples`, which are read once.
    """

    model: Openable
    logits: Logits
    samples: Samples


@dataclass(frozen=True)
class Answers:
    """What a model answers to each sample.

    Attributes:
        evaluation: accuracy overall and per class; bytes and latency are not known here.
        agreement: how often it answers as the first model, in percent.
        right: share of a sample's answers that are right, [samples].
        predicted: the class of a sample, -1 where it has several answers, [samples].
        confidence: the greatest probability, the mean of a sample's answers, [samples].
        divergence: from the first model, in nats, the mean of a sample's answers, [samples].
        differs: how many of a sample's answers are others than the first model's, [samples].
    """

    evaluation: Evaluation
    agreement: float
    right: Array
    predicted: Array
    confidence: Array
    divergence: Array
    differs: Array

    def beside(self, first: Answers) -> tuple[int, int]:
        """Samples that it gains and loses: answered better, and worse, than by the first model."""
        return int((self.right > first.right).sum()), int((self.right < first.right).sum())

    def worst(self, count: int) -> list[int]:
        """Positions of the samples that it answers unlike the first model, the farthest from it first."""
        found = np.flatnonzero(self.differs)
        return [int(i) for i in found[np.argsort(-self.divergence[found], kind="stable")][:count]]


class Openable(Protocol):
    """What is opened where it is run; it can be sent there."""

    def open(self, threads: int = 0) -> Runnable:
        """Ready to run, an operator spread over so many threads; 0 for as many as there are cores."""


def contest(
    contenders: Sequence[Contender], indices: Indices, progress: Progress = silent, engine: Engine = IN_PROCESS
) -> list[Answers]:
    """Run all models on the samples `indices`, a batch at a time.

    Cost: a pass of each, and reading the samples once for each form that models take. Memory: a batch, and 40 bytes per
    model and sample.

    Raises:
        OnnxCbqError: a model cannot be run, gives no finite scores, or has other classes than the first.
    """
    _check_classes(contenders)
    forms = {id(one.samples): one.samples for one in contenders}
    places = [list(forms).index(id(one.samples)) for one in contenders]
    fitted = _aligned(list(forms.values()))
    size = batch_size(fitted[0])
    cut = [samples.chunks(indices, size) for samples in fitted]
    entries = tuple((one.model, one.logits) for one in contenders)
    parts: list[list[_Scored]] = [[] for _ in contenders]
    done = 0
    with engine.crew(ContestWork(entries, tuple(fitted), tuple(places)), list(zip(*cut, strict=True))) as crew:
        for found, chunk in zip(crew.each(_Score()), cut[0], strict=True):
            for mine, one in zip(parts, found, strict=True):
                mine.append(one)
            done += len(chunk)
            progress("evaluation", done, len(indices))
    return [_answers(mine) for mine in parts]


@dataclass(frozen=True)
class ContestWork:
    """Models with how their class scores are read, samples in each form, and in which form a model takes them."""

    entries: tuple[tuple[Openable, Logits], ...]
    samples: tuple[Samples, ...]
    places: tuple[int, ...]

    def start(self, place: Place) -> _Ring:
        """All models, ready to run."""
        return _Ring(self, [entry.open(place.threads) for entry, _ in self.entries])


@dataclass(frozen=True)
class _Ring:
    work: ContestWork
    sessions: Sequence[Runnable]


@dataclass(frozen=True)
class _Score:
    leaves: ClassVar[bool] = False

    def on(self, held: _Ring) -> Callable[[Sequence[Sequence[Indices]]], Iterator[list[_Scored]]]:
        """What each model answers to a batch."""
        work = held.work
        groups = Grouping.single(("",) * work.entries[0][1].classes)

        def run(shards: Sequence[Sequence[Indices]]) -> Iterator[list[_Scored]]:
            each = (
                samples.of_chunks(chunks)
                for samples, chunks in zip(work.samples, zip(*shards, strict=True), strict=True)
            )
            for batches in zip(*each, strict=True):
                reference: _Reference | None = None
                found = []
                for (_, logits), session, place in zip(work.entries, held.sessions, work.places, strict=True):
                    scored, mine = _scored(session, logits, groups, batches[place], reference)
                    reference = reference or mine
                    found.append(scored)
                yield found

        return run


def _check_classes(contenders: Sequence[Contender]) -> None:
    first = contenders[0].logits.kind
    for one in contenders:
        if one.logits.kind.classes != first.classes or one.logits.kind.several != first.several:
            raise CalibrationError(
                f"models of {first.classes} and {one.logits.kind.classes} classes cannot be compared; give models that "
                f"tell the same classes apart"
            )


def _aligned(samples: Sequence[Samples]) -> list[Samples]:
    """The samples of each model in batches of one size, which every fixed batch divides."""
    fixed = [one.fixed_batch for one in samples if one.fixed_batch is not None]
    if not fixed:
        return list(samples)
    together = math.lcm(*fixed)
    most = batch_size(replace(samples[0], fixed_batch=None))
    return [replace(one, fixed_batch=together * max(most // together, 1)) for one in samples]


@dataclass(frozen=True)
class _Reference:
    """What the first model says to a batch: scores, predictions and log shares."""

    scores: Array
    predictions: Array
    shares: Array


@dataclass(frozen=True)
class _Scored:
    """What a model answers to a batch: counts, and by sample what `Answers` has."""

    tally: Tally
    columns: tuple[Array, ...]


def _scored(
    session: Runnable, logits: Logits, groups: Grouping, batch: Batch, reference: _Reference | None
) -> tuple[_Scored, _Reference]:
    """What a model answers to a batch; the first model is its own reference."""
    values: Mapping[str, Any] = answers_of(session, batch, logits, ())
    scores = Infinities(logits).take(values[logits.output])
    kind, raw = logits.kind, as_logits(scores, logits)
    mine = _Reference(scores, kind.predictions(scores), kind.log_shares(raw, groups))
    first = reference or mine
    outcome = judged(kind, raw, scores, batch.labels)
    counts = np.maximum(kind.counts(batch.labels).sum(axis=1), 1e-9)
    divergence = kind.divergences(first.shares, mine.shares, batch.labels).sum(axis=1) / counts
    truth = batch.labels.reshape(mine.predictions.shape)
    differs = ((mine.predictions != first.predictions) & (truth >= 0)).sum(axis=1)
    columns = outcome.right, outcome.predicted, outcome.confidence, divergence, differs
    return _Scored(Tally.of(kind, scores, batch.labels, first.scores), columns), mine


def _answers(parts: Sequence[_Scored]) -> Answers:
    """Those to all batches."""
    tally = reduce(Tally.joined, (part.tally for part in parts))
    columns = (np.concatenate(column) for column in zip(*(part.columns for part in parts), strict=True))
    return Answers(tally.evaluation(0, 0.0), tally.agreement, *columns)


def as_logits(scores: Array, logits: Logits) -> Array:
    """Scores as `Reading.rows` gives them -> numbers whose softmax, or sigmoid, are the probabilities."""
    reading, squashed = logits.reading, logits.squashed in ("Softmax", "Sigmoid")
    if reading.classes is None:
        single = 2 * scores[..., 1:] + reading.threshold
        return np.asarray((_logit(single) if squashed else single) * [-0.5, 0.5])
    if not squashed:
        return scores
    shares = scores + reading.threshold
    return _logit(shares) if logits.kind.independent else np.asarray(np.log(np.maximum(shares, _TINY)))


def _logit(shares: Array) -> Array:
    inside = np.clip(shares.astype(np.float64), _TINY, None)
    return np.asarray(np.log(inside) - np.log(np.maximum(1 - inside, _TINY)))
