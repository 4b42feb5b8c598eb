"""Run models side by side on labelled samples: accuracy, agreement, distances of outputs and latency."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from onnx_cbq.calibration.samples import Indices, Samples
from onnx_cbq.execution import IN_PROCESS, Engine, ModelFile, Place
from onnx_cbq.graph.logits import Logits
from onnx_cbq.model import Array, Model
from onnx_cbq.records import Evaluation
from onnx_cbq.runtime import CPU, Session, median_latency
from onnx_cbq.system.progress import Progress, silent
from onnx_cbq.verification.counts import (
    Distances,
    Infinities,
    OutputDistance,
    Tally,
    answers_of,
    batch_size,
    beside,
    check_masked,
)

# The plain graph predicts beside the fused one on about so many samples.
PLAIN_SAMPLES = 2000
# Rounding alone changes a prediction here and there: a share of the samples, and a few where there are few.
_MOST_DIFFERING, _FEW = 0.005, 3
# Standard errors by which their accuracies may differ.
_CERTAINTY = 3.0


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
    models: Sequence[Model | ModelFile],
    sizes: Sequence[int],
    asked: tuple[Logits, Samples, Indices],
    plain: ModelFile | None = None,
    progress: Progress = silent,
    engine: Engine = IN_PROCESS,
) -> Comparison:
    """Evaluate the logits of `models` (with file `sizes`) side by side on some of the samples: all that is `asked`.

    `plain` is the last of them without fusions, and predicts beside it on some of the samples.

    Raises:
        ModelError: a model cannot be run.
        VerificationError: a model gives class scores that are not finite.
    """
    logits, samples, indices = asked
    chunks = samples.chunks(indices, batch_size(samples))
    work = CompareWork(tuple(models), plain, logits, samples, _spread_over(chunks) if plain else frozenset())
    total: _Outcome | None = None
    done = 0
    with engine.crew(work, list(enumerate(chunks))) as crew:
        for outcome, chunk in zip(crew.each(_Evaluate()), chunks, strict=True):
            total = outcome if total is None else total.joined(outcome)
            done += len(chunk)
            progress("evaluation", done, len(indices))
    assert total is not None
    for masked in total.masked[1:]:
        check_masked(masked, total.masked[0], logits.output)
    one, here = samples.read(indices[: samples.fixed_batch or 1]), Place()
    latencies = median_latency([here.session(model) for model in (*models, *([plain] if plain else []))], one)
    each = zip(total.tallies, sizes, latencies, strict=False)
    evaluations = tuple(tally.evaluation(size, spent) for tally, size, spent in each)
    agreements = tuple(tally.agreement for tally in total.tallies)
    if plain is None:
        return Comparison(evaluations, agreements, further=total.distances.found())
    fidelity = Fidelity(*total.beside.tolist())
    return Comparison(evaluations, agreements, fidelity, latencies[-1] * 1e3, total.distances.found())


def _spread_over(chunks: Sequence[Indices]) -> frozenset[int]:
    """The numbers of batches, all over the samples, that together have about `PLAIN_SAMPLES`."""
    every = max(sum(map(len, chunks)) / PLAIN_SAMPLES, 1.0)
    chosen, seen, done = set(), 0, 0
    for number, chunk in enumerate(chunks):
        if seen * every <= done:
            chosen.add(number)
            seen += len(chunk)
        done += len(chunk)
    return frozenset(chosen)


@dataclass(frozen=True)
class CompareWork:
    """Models and samples; `plain` runs on the batches of the numbers `beside`."""

    models: tuple[Model | ModelFile, ...]
    plain: ModelFile | None
    logits: Logits
    samples: Samples
    beside: frozenset[int]

    def start(self, place: Place) -> _Sessions:
        """All of them, ready to run."""
        # Files and the model that they are held against run as they will, whatever evidence was gathered on.
        place = replace(place, provider=CPU)
        plain = None if self.plain is None else place.session(self.plain)
        return _Sessions(self, [place.session(model) for model in self.models], plain)


@dataclass(frozen=True)
class _Sessions:
    work: CompareWork
    models: Sequence[Session]
    plain: Session | None


@dataclass(frozen=True)
class _Outcome:
    """What came of some batches.

    Attributes:
        tallies: of each model; `masked` which classes it masks, [classes].
        beside: samples, and of them those that differ, are gained and lost by the fused graph: see `Fidelity`.
    """

    tallies: list[Tally]
    masked: list[Array]
    distances: Distances
    beside: Array

    def joined(self, other: _Outcome) -> _Outcome:
        """Of both."""
        return _Outcome(
            [one.joined(more) for one, more in zip(self.tallies, other.tallies, strict=True)],
            [one | more for one, more in zip(self.masked, other.masked, strict=True)],
            self.distances.joined(other.distances),
            self.beside + other.beside,
        )


@dataclass(frozen=True)
class _Evaluate:
    leaves: ClassVar[bool] = False

    def on(self, held: _Sessions) -> Callable[[Sequence[tuple[int, Indices]]], Iterator[_Outcome]]:
        """What comes of each batch."""
        work, logits, first = held.work, held.work.logits, held.models[0]
        others = [name for name in first.outputs if name in held.models[-1].outputs and name != logits.output]
        others = others if len(held.models) > 1 else []

        def run(shards: Sequence[tuple[int, Indices]]) -> Iterator[_Outcome]:
            batches = work.samples.of_chunks(chunk for _, chunk in shards)
            for (number, _), batch in zip(shards, batches, strict=True):
                answers = [answers_of(session, batch, logits, others) for session in held.models]
                seen = [Infinities(logits) for _ in held.models]
                scores = [one.take(values[logits.output]) for one, values in zip(seen, answers, strict=True)]
                tallies = [Tally.of(logits.kind, found, batch.labels, scores[0]) for found in scores]
                counted = np.zeros(4, np.int64)
                if held.plain is not None and number in work.beside:
                    plain = answers_of(held.plain, batch, logits, ())[logits.output]
                    counted = beside(logits.kind, scores[-1], Infinities(logits).take(plain), batch.labels)
                distances = Distances.of(others, answers[0], answers[-1])
                yield _Outcome(tallies, [one.masked for one in seen], distances, counted)

        return run
