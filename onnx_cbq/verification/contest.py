"""Several models on the same samples, answer by answer: who is right where another is not, and how sure of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnx_cbq.calibration.samples import Batch, Indices, Samples
from onnx_cbq.errors import CalibrationError
from onnx_cbq.evidence.trials import judged
from onnx_cbq.graph.logits import Logits
from onnx_cbq.model import Array
from onnx_cbq.records import Evaluation, Grouping
from onnx_cbq.runtime import Runnable
from onnx_cbq.system.progress import Progress, silent
from onnx_cbq.verification.comparison import Infinities, Tally, answers_of, batch_size

_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class Contender:
    """A model that runs, how its class scores are read, and the samples as it takes them.

    Models that take them alike have the same `Samples`, which are read once.
    """

    session: Runnable
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


def contest(contenders: Sequence[Contender], indices: Indices, progress: Progress = silent) -> list[Answers]:
    """Run all models on the samples `indices`, a batch at a time.

    Cost: a pass of each, and reading the samples once for each form that models take. Memory: a batch, and 40 bytes per
    model and sample.

    Raises:
        OnnxCbqError: a model cannot be run, gives no finite scores, or has other classes than the first.
    """
    first = contenders[0]
    _check_classes(contenders)
    forms = {id(one.samples): one.samples for one in contenders}
    places = [list(forms).index(id(one.samples)) for one in contenders]
    fitted = _aligned(list(forms.values()))
    size = batch_size(fitted[0])
    groups = Grouping.single(("",) * first.logits.classes)
    scorers = [_Scorer(one, groups) for one in contenders]
    done = 0
    for batches in zip(*(samples.batches(indices, size) for samples in fitted), strict=True):
        reference = scorers[0].add(batches[0], None)
        for scorer, place in zip(scorers[1:], places[1:], strict=True):
            scorer.add(batches[place], reference)
        done += batches[0].count
        progress("evaluation", done, len(indices))
    return [scorer.answers() for scorer in scorers]


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


class _Scorer:
    """Takes in what one model answers."""

    def __init__(self, contender: Contender, groups: Grouping) -> None:
        self._contender, self._groups = contender, groups
        self._tally = Tally(contender.logits.kind)
        self._infinities = Infinities(contender.logits)
        self._parts: list[tuple[Array, ...]] = []

    def add(self, batch: Batch, reference: _Reference | None) -> _Reference:
        """Count a batch; the first model is its own reference."""
        logits = self._contender.logits
        values: Mapping[str, Any] = answers_of(self._contender.session, batch, logits, ())
        scores = self._infinities.take(values[logits.output])
        kind, raw = logits.kind, as_logits(scores, logits)
        mine = _Reference(scores, kind.predictions(scores), kind.log_shares(raw, self._groups))
        first = reference or mine
        self._tally.add(scores, batch.labels, first.scores)
        outcome = judged(kind, raw, scores, batch.labels)
        counts = np.maximum(kind.counts(batch.labels).sum(axis=1), 1e-9)
        divergence = kind.divergences(first.shares, mine.shares, batch.labels).sum(axis=1) / counts
        truth = batch.labels.reshape(mine.predictions.shape)
        differs = ((mine.predictions != first.predictions) & (truth >= 0)).sum(axis=1)
        self._parts.append((outcome.right, outcome.predicted, outcome.confidence, divergence, differs))
        return mine

    def answers(self) -> Answers:
        """Everything counted."""
        columns = (np.concatenate(parts) for parts in zip(*self._parts, strict=True))
        return Answers(self._tally.evaluation(0, 0.0), self._tally.agreement, *columns)


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
