"""Run models side by side on labelled samples: accuracy, agreement, distances of outputs and latency."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnx_cbq.calibration.samples import Batch, Indices, Samples
from onnx_cbq.errors import ModelError, VerificationError
from onnx_cbq.graph.logits import Logits
from onnx_cbq.model import Array, Model
from onnx_cbq.records import Evaluation
from onnx_cbq.records.answers import Kind
from onnx_cbq.records.spread import Spread, squared_distances
from onnx_cbq.runtime import Median, Runnable, Session, median_latency
from onnx_cbq.system.progress import Progress, silent

LARGEST_BATCH = 100
# Samples of one batch, so that their activations fit as well.
BATCH_BYTES = 16 << 20
TOP = 5
# The plain graph predicts beside the fused one on about so many samples.
PLAIN_SAMPLES = 2000
# Rounding alone changes a prediction here and there: a share of the samples, and a few where there are few.
_MOST_DIFFERING, _FEW = 0.005, 3
# Standard errors by which their accuracies may differ.
_CERTAINTY = 3.0
_FINITE_ADVICE = "expected finite numbers; check that the samples are prepared as the model was trained"


@dataclass(frozen=True)
class Fidelity:
    """What the fused graph predicts beside the plain one.

    Attributes:
        samples: that both ran on.
        differing: of them, where they choose different classes.
        gained, lost: where only the fused graph, or only the plain one, is right.
    """

    samples: int
    differing: int
    gained: int
    lost: int

    @property
    def share(self) -> float:
        """Share of samples with different predictions, in percent."""
        return 100 * self.differing / max(self.samples, 1)

    @property
    def is_small(self) -> bool:
        """Whether no more predictions differ than rounding changes in an ordinary net."""
        return self.differing <= max(_MOST_DIFFERING * self.samples, _FEW)

    @property
    def is_even(self) -> bool:
        """Whether chance explains the difference of their accuracies."""
        return abs(self.gained - self.lost) <= max(_CERTAINTY * math.sqrt(self.gained + self.lost), _FEW)


@dataclass(frozen=True)
class OutputDistance:
    """How far an output beside the class scores is from the float model's, over all samples.

    Attributes:
        output: its name.
        relative: root mean square of the change over the standard deviation of the output over the samples; None for
            one that is not made of real numbers, or does not vary.
        differing: share of elements that differ, of an output that is not made of real numbers.
    """

    output: str
    relative: float | None
    differing: float | None


@dataclass(frozen=True)
class Comparison:
    """Evaluations of several models on the same samples.

    Attributes:
        agreements: how often each agrees with the first, in percent.
        fidelity: of the last, if that was asked for; `plain_latency_ms` is that of its plain graph.
        further: how far the outputs of the last, beside the class scores, are from those of the first.
    """

    evaluations: tuple[Evaluation, ...]
    agreements: tuple[float, ...]
    fidelity: Fidelity | None = None
    plain_latency_ms: float | None = None
    further: tuple[OutputDistance, ...] = ()


def compare(
    models: Sequence[Path | Model | Session],
    sizes: Sequence[int],
    logits: Logits,
    samples: Samples,
    indices: Indices,
    progress: Progress = silent,
    plain: Session | None = None,
) -> Comparison:
    """Evaluate the `logits` of `models` (with file `sizes`) side by side on the samples `indices`.

    `plain` is the last of them without fusions, and predicts beside it on some of the samples.

    Raises:
        ModelError: a model cannot be run.
        VerificationError: a model gives class scores that are not finite.
    """
    sessions = [model if isinstance(model, Session) else Session(model) for model in models]
    tallies = [Tally(logits.kind) for _ in models]
    infinities = [Infinities(logits) for _ in models]
    further = _Distances(sessions, logits.output)
    done, beside = 0, _Beside(len(indices), logits.kind)
    for batch in samples.batches(indices, batch_size(samples)):
        answers = [answers_of(session, batch, logits, further.names) for session in sessions]
        scores = [seen.take(values[logits.output]) for seen, values in zip(infinities, answers, strict=True)]
        for tally, found in zip(tallies, scores, strict=True):
            tally.add(found, batch.labels, scores[0])
        further.add(answers[0], answers[-1])
        if plain is not None and beside.wants(done):
            fused = answers_of(plain, batch, logits, ())[logits.output]
            beside.add(scores[-1], Infinities(logits).take(fused), batch.labels)
        done += batch.count
        progress("evaluation", done, len(indices))
    for seen in infinities[1:]:
        seen.check(infinities[0])
    one = samples.read(indices[: samples.fixed_batch or 1])
    latencies = median_latency([*sessions, plain] if plain is not None else sessions, one)
    evaluations = (tally.evaluation(size, spent) for tally, size, spent in zip(tallies, sizes, latencies, strict=False))
    agreements = tuple(tally.agreement for tally in tallies)
    if plain is None:
        return Comparison(tuple(evaluations), agreements, further=further.found())
    return Comparison(tuple(evaluations), agreements, beside.fidelity(), latencies[-1] * 1e3, further.found())


class Tally:
    """Counts what a model answers."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        shape = (kind.classes, 2, 2) if kind.several else (kind.classes, kind.classes)
        self._confusion = np.zeros(shape, np.int64)
        self._in_top = self._agreeing = self._total = 0

    def add(self, scores: Array, labels: Array, reference: Array) -> None:
        """Take in scores [samples, positions, classes]; `reference` are those of the model to agree with."""
        found, first = self._kind.predictions(scores), self._kind.predictions(reference)
        truth = labels.reshape(found.shape)
        known = truth >= 0
        if self._kind.several:
            classes = np.broadcast_to(np.arange(self._kind.classes), truth.shape)
            np.add.at(self._confusion, (classes, truth, found), 1)
        else:
            np.add.at(self._confusion, (truth[known], found[known]), 1)
            self._in_top += _label_in_top(scores[known], truth[known])
        self._agreeing += int((found == first)[known].sum())
        self._total += int(known.sum())

    @property
    def agreement(self) -> float:
        """How often the model answers as the reference, in percent."""
        return 100 * self._agreeing / max(self._total, 1)

    def evaluation(self, size: int, seconds: float) -> Evaluation:
        """What came of it; of seconds that are a `Median` the error is kept."""
        confusion = self._confusion
        # Labels by whether the answer is right: of the classes, or of yes and no for each of them.
        right, given = np.diagonal(confusion, axis1=-2, axis2=-1), confusion.sum(axis=-1)
        with np.errstate(invalid="ignore"):
            shares = 100 * right / given
        if self._kind.several:
            shares = np.where(given[:, 1] > 0, np.nanmean(np.where(given > 0, shares, np.nan), axis=1), np.nan)
        return Evaluation(
            top1=float(100 * right.sum() / max(given.sum(), 1)),
            top5=100 * self._in_top / max(self._total, 1)
            if self._kind.classes > 10 and not self._kind.several
            else None,
            per_class=tuple(None if np.isnan(share) else float(share) for share in shares),
            confusion=confusion,
            bytes=size,
            latency_ms=1e3 * seconds,
            latency_error_ms=1e3 * seconds.error if isinstance(seconds, Median) else 0.0,
        )


class Infinities:
    """Which class scores of a model are not finite. A class may be masked with -inf; everything else is an error."""

    def __init__(self, logits: Logits) -> None:
        self._logits = logits
        self._masked = np.zeros(logits.classes, bool)

    def take(self, values: Any) -> Array:
        """Scores [samples, positions, classes] of a graph output.

        Raises:
            VerificationError: there is NaN or +inf, or a sample without a single finite score.
        """
        # Of pixels there may be many, and nothing is added up.
        double = isinstance(values, np.ndarray) and values.dtype == np.float64
        scores = self._logits.reading.rows(values, np.float64 if double else np.float32)
        if scores.shape[-1] != self._logits.classes:
            raise ModelError(
                f"the models to compare have {scores.shape[-1]} and {self._logits.classes} classes; expected the same "
                f"number"
            )
        masked = np.isneginf(scores)
        if not np.isfinite(scores[~masked]).all() or masked.all(axis=-1).any():
            raise VerificationError(f"output {self._logits.output!r} holds NaN or infinity; {_FINITE_ADVICE}")
        self._masked |= masked.any(axis=(0, 1))
        return scores

    def check(self, reference: Infinities) -> None:
        """Hold the masked classes against those of another model.

        Raises:
            VerificationError: some are masked that are not there.
        """
        new = np.flatnonzero(self._masked & ~reference._masked)
        if len(new):
            raise VerificationError(
                f"output {self._logits.output!r} holds -inf for class {new[0]}, where the float model never does; "
                f"give more --bits or --activation-bits"
            )


class _Distances:
    """How far the outputs beside the class scores are from those of the first model."""

    def __init__(self, sessions: Sequence[Session], scores: str) -> None:
        first, last = sessions[0], sessions[-1]
        shared = [name for name in first.outputs if name in last.outputs and name != scores]
        self.names = shared if len(sessions) > 1 else []
        self._spreads = {name: Spread() for name in self.names}
        self._sums = {name: np.zeros(2) for name in self.names}

    def add(self, first: Mapping[str, Any], last: Mapping[str, Any]) -> None:
        """Take in what both give for a batch; outputs of other shapes are not compared."""
        for name in list(self.names):
            before, after = first[name], last[name]
            if not isinstance(before, np.ndarray) or np.shape(before) != np.shape(after):
                self.names.remove(name)
            elif before.dtype.kind == "f":
                self._spreads[name].add(before)
                self._sums[name] += [squared_distances(before, after).sum(), before.size]
            else:
                self._sums[name] += [(before != after).sum(), before.size]

    def found(self) -> tuple[OutputDistance, ...]:
        """The distances so far."""
        distances = []
        for name in self.names:
            total, count = self._sums[name]
            variance, share = self._spreads[name].variance, float(total / max(count, 1))
            if self._spreads[name].is_empty:
                distances.append(OutputDistance(name, None, share))
            else:
                distances.append(OutputDistance(name, math.sqrt(share / variance) if variance else None, None))
        return tuple(distances)


class _Beside:
    """Counts on batches spread over all samples how two graphs of one model differ."""

    def __init__(self, total: int, kind: Kind) -> None:
        self._every = max(total / PLAIN_SAMPLES, 1.0)
        self._kind = kind
        self._counts, self._samples = np.zeros(4, np.int64), 0

    def wants(self, done: int) -> bool:
        return bool(self._samples * self._every <= done)

    def add(self, fused: Array, plain: Array, labels: Array) -> None:
        found, expected = self._kind.predictions(fused), self._kind.predictions(plain)
        truth = labels.reshape(found.shape)
        known = truth >= 0
        one, other, differs = (part[known] for part in (found == truth, expected == truth, found != expected))
        self._samples += len(labels)
        self._counts += [known.sum(), differs.sum(), (one & ~other).sum(), (other & ~one).sum()]

    def fidelity(self) -> Fidelity:
        return Fidelity(*self._counts.tolist())


def batch_size(samples: Samples) -> int:
    """How many samples to run at once; the same for every model and command, so that results do not depend on it."""
    one = samples.read(np.zeros(1, np.int64))
    return max(min(BATCH_BYTES // sum(value.nbytes for value in one.values()), LARGEST_BATCH), 1)


def answers_of(session: Runnable, batch: Batch, logits: Logits, others: Sequence[str]) -> dict[str, Any]:
    """The class scores and other outputs of a batch, without the samples that only fill it up."""
    names = [logits.output, *others]
    size, total = session.samples, len(next(iter(batch.feeds.values())))
    if size is None or size >= total:
        values: Mapping[str, Any] = session.run(batch.feeds, names)
    else:  # a file for a target that takes so many samples at a time
        parts = [
            session.run({name: value[i : i + size] for name, value in batch.feeds.items()}, names)
            for i in range(0, total, size)
        ]
        values = {name: _joined([part[name] for part in parts], logits.axis(name)) for name in names}
    return {name: _first(value, batch.count, logits.axis(name)) for name, value in values.items()}


def _joined(parts: list[Any], axis: int) -> Any:
    if isinstance(parts[0], list):
        return [row for part in parts for row in part]
    return np.concatenate(parts, axis) if np.ndim(parts[0]) > axis else parts[0]


def _first(value: Any, count: int, axis: int) -> Any:
    """The first samples of an output."""
    if isinstance(value, list):
        return value[:count]
    return np.moveaxis(np.moveaxis(value, axis, 0)[:count], 0, axis) if np.ndim(value) > axis else value


def _label_in_top(scores: Array, labels: Array) -> int:
    if scores.shape[1] <= TOP:
        return len(labels)
    top = np.argpartition(scores, -TOP, axis=1)[:, -TOP:]
    return int((top == labels[:, None]).any(axis=1).sum())
