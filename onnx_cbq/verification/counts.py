"""What models answer to a batch, counted: who is right, which classes are masked, how far other outputs are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnx_cbq.calibration.samples import Batch, Samples
from onnx_cbq.errors import ModelError, VerificationError
from onnx_cbq.graph.logits import Logits
from onnx_cbq.model import Array
from onnx_cbq.records import Evaluation
from onnx_cbq.records.answers import Kind
from onnx_cbq.records.spread import Spread, squared_distances
from onnx_cbq.runtime import Runnable
from onnx_cbq.system.timing import Median

LARGEST_BATCH = 100
# Samples of one batch, so that their activations fit as well.
BATCH_BYTES = 16 << 20
TOP = 5
_FINITE_ADVICE = "expected finite numbers; check that the samples are prepared as the model was trained"


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


class Tally:
    """Counts what a model answers."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        shape = (kind.classes, 2, 2) if kind.several else (kind.classes, kind.classes)
        self._confusion = np.zeros(shape, np.int64)
        self._in_top = self._agreeing = self._total = 0

    @staticmethod
    def of(kind: Kind, scores: Array, labels: Array, reference: Array) -> Tally:
        """Of scores [samples, positions, classes]; `reference` are those of the model to agree with."""
        tally = Tally(kind)
        found, first = kind.predictions(scores), kind.predictions(reference)
        truth = labels.reshape(found.shape)
        known = truth >= 0
        if kind.several:
            classes = np.broadcast_to(np.arange(kind.classes), truth.shape)
            np.add.at(tally._confusion, (classes, truth, found), 1)
        else:
            np.add.at(tally._confusion, (truth[known], found[known]), 1)
            tally._in_top = _label_in_top(scores[known], truth[known])
        tally._agreeing = int((found == first)[known].sum())
        tally._total = int(known.sum())
        return tally

    def joined(self, other: Tally) -> Tally:
        """What both counted."""
        tally = Tally(self._kind)
        tally._confusion = self._confusion + other._confusion
        tally._in_top = self._in_top + other._in_top
        tally._agreeing = self._agreeing + other._agreeing
        tally._total = self._total + other._total
        return tally

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
        # Classes that some sample masks, [classes].
        self.masked = np.zeros(logits.classes, bool)

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
        self.masked |= masked.any(axis=(0, 1))
        return scores


def check_masked(masked: Array, reference: Array, output: str) -> None:
    """Hold the masked classes against those of another model.

    Raises:
        VerificationError: some are masked that are not there.
    """
    new = np.flatnonzero(masked & ~reference)
    if len(new):
        raise VerificationError(
            f"output {output!r} holds -inf for class {new[0]}, where the float model never does; "
            f"give more --bits or --activation-bits"
        )


@dataclass(frozen=True)
class Distances:
    """How far outputs beside the class scores are from those of the first model.

    Attributes:
        spreads: how each varies in the first model; `sums` squared distances, or elements that differ, and how many.
    """

    spreads: Mapping[str, Spread]
    sums: Mapping[str, Array]

    @staticmethod
    def of(names: Sequence[str], first: Mapping[str, Any], last: Mapping[str, Any]) -> Distances:
        """Of what both give for a batch; outputs of other shapes are not compared."""
        spreads, sums = dict[str, Spread](), dict[str, Array]()
        for name in names:
            before, after = first[name], last[name]
            if not isinstance(before, np.ndarray) or np.shape(before) != np.shape(after):
                continue
            spreads[name] = Spread()
            if before.dtype.kind == "f":
                spreads[name].add(before)
                sums[name] = np.array([squared_distances(before, after).sum(), before.size])
            else:
                sums[name] = np.array([(before != after).sum(), before.size], np.float64)
        return Distances(spreads, sums)

    def joined(self, other: Distances) -> Distances:
        """Of the batches of both; only what is compared in all of them."""
        names = [name for name in self.sums if name in other.sums]
        for name in names:
            self.spreads[name].join(other.spreads[name])
        spreads = {name: self.spreads[name] for name in names}
        return Distances(spreads, {name: self.sums[name] + other.sums[name] for name in names})

    def found(self) -> tuple[OutputDistance, ...]:
        """The distances so far."""
        distances = []
        for name, (total, count) in self.sums.items():
            variance, share = self.spreads[name].variance, float(total / max(count, 1))
            if self.spreads[name].is_empty:
                distances.append(OutputDistance(name, None, share))
            else:
                distances.append(OutputDistance(name, math.sqrt(share / variance) if variance else None, None))
        return tuple(distances)


def beside(kind: Kind, fused: Array, plain: Array, labels: Array) -> Array:
    """Samples, and how many of their predictions differ, and are right in the fused graph or in the plain one alone."""
    found, expected = kind.predictions(fused), kind.predictions(plain)
    truth = labels.reshape(found.shape)
    known = truth >= 0
    one, other, differs = (part[known] for part in (found == truth, expected == truth, found != expected))
    return np.array([known.sum(), differs.sum(), (one & ~other).sum(), (other & ~one).sum()], np.int64)


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
