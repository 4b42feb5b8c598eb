"""Run several models on the same labelled samples: who is right, how much it takes, and where they disagree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from onnx_cbq.calibration import CalibrationSet
from onnx_cbq.calibration.draw import everything
from onnx_cbq.calibration.samples import Samples
from onnx_cbq.calibration.thumbnails import thumbnail
from onnx_cbq.errors import CalibrationError, ConfigError, ModelError
from onnx_cbq.evidence.workload import DataSource, as_set, left_out, scores_notes, without_samples
from onnx_cbq.execution.settings import ALONE, ExecutionConfig
from onnx_cbq.jobs.compare_result import Compared, CompareResult, Disagreement, Timing
from onnx_cbq.jobs.versions import all_versions
from onnx_cbq.model import Array
from onnx_cbq.search.racing import chance_of_difference
from onnx_cbq.system.processor import processor_kind
from onnx_cbq.system.progress import Progress, silent
from onnx_cbq.system.timing import median_seconds
from onnx_cbq.verification.contest import Answers, Contender, contest
from onnx_cbq.verification.entries import Entry, find_entries

# Samples of the larger of the two batches that latencies are taken of.
LATENCY_BATCH = 32
# So many of the samples that each model answers unlike the first are listed.
DISAGREEMENTS = 20
_SECONDS = 0.5


def compare(
    models: Sequence[str | Path],
    data: DataSource,
    logits: str | None = None,
    progress: Progress = silent,
    execution: ExecutionConfig = ALONE,
) -> CompareResult:
    """Hold classifiers against the first of them on all samples of a card.

    Args:
        models: at least two of ONNX files of any tool, archives, and folders of steps, which count as one model for
            each number of steps.
        data: path of a calibration card, or a `CalibrationSet`; every model gets the samples in the form it takes.
        logits: name of the output with the class scores, of those that have it.
        progress: called as the run goes on.
        execution: who runs the models over the samples.

    Cost: a pass of each model over the samples, and some seconds for latencies and memory.

    Raises:
        OnnxCbqError: a model or the samples cannot be used, or the models tell other classes apart.
    """
    entries = list(chain.from_iterable(find_entries(Path(path)) for path in models))
    if len(entries) < 2:
        raise ConfigError("compare: one model; give at least two")
    contenders = _contenders(entries, as_set(data), logits)
    found, samples = contenders[0].logits, contenders[0].samples
    names = samples.check_labels(found.classes)
    indices = everything(samples, names)
    with execution.open() as engine:
        answers = contest(contenders, indices, progress, engine)
    timings = _timings(entries, contenders, progress)
    memory = [
        entry.memory(_first(one.samples, one.samples.fixed_batch or 1))
        for entry, one in zip(entries, contenders, strict=True)
    ]
    compared = tuple(
        _compared(entry, mine, answers[0], times, used, several=bool(samples.label_shape) or found.kind.several)
        for entry, mine, times, used in zip(entries, answers, timings, memory, strict=True)
    )
    return CompareResult(
        compared,
        tuple(chain.from_iterable(_disagreements(i, answers, contenders, names) for i in range(1, len(answers)))),
        names,
        processor_kind(),
        (*without_samples(samples, names), *left_out(samples), *scores_notes(found)),
        all_versions(),
    )


def _contenders(entries: Sequence[Entry], data: CalibrationSet, logits: str | None) -> list[Contender]:
    """Every model ready to run; those of the same inputs and answers share their samples.

    Raises:
        OnnxCbqError: a model or the samples cannot be used, or the models call their classes otherwise.
    """
    forms: dict[object, Samples] = {}
    contenders: list[Contender] = []
    for entry in entries:
        try:
            found, samples = entry.judged(data, logits)
        except (CalibrationError, ModelError) as error:
            raise type(error)(f"{entry.label}: {error}") from error
        samples = forms.setdefault((entry.model.inputs, found.kind, found.names, found.squashed), samples)
        contenders.append(Contender(entry, found, samples))
        first = contenders[0]
        pair = [one.samples.check_labels(one.logits.classes) for one in (first, contenders[-1])]
        if len(pair[0]) == len(pair[1]) and pair[0] != pair[1]:
            m = next(m for m, (one, other) in enumerate(zip(*pair, strict=True)) if one != other)
            raise CalibrationError(
                f"{entry.label}: calls class {m} {pair[1][m]!r}, which is {pair[0][m]!r} for {entries[0].label}; give "
                f"models that have the same classes in the same order"
            )
    return contenders


def _compared(
    entry: Entry, mine: Answers, first: Answers, timings: tuple[Timing, ...], memory: int, *, several: bool
) -> Compared:
    gained, lost = mine.beside(first)
    share = mine.evaluation.top1 / 100
    return Compared(
        label=entry.label,
        evaluation=replace(
            mine.evaluation,
            bytes=entry.size,
            latency_ms=timings[0].milliseconds,
            latency_error_ms=timings[0].error,
        ),
        error=100 * math.sqrt(share * (1 - share) / len(mine.right)),
        compressed=entry.compressed,
        agreement=mine.agreement,
        gained=gained,
        lost=lost,
        chance=None if several else chance_of_difference(gained, lost),
        timings=timings,
        memory=memory,
    )


def _timings(entries: Sequence[Entry], contenders: Sequence[Contender], progress: Progress) -> list[tuple[Timing, ...]]:
    """Latencies at one sample and at several, with all threads and with one, the models taking turns."""
    found: list[list[Timing]] = [[] for _ in entries]
    for threads in (0, 1):
        sessions = [entry.open(threads) for entry in entries]
        for size in (1, LATENCY_BATCH):
            # A model that takes a fixed number has been timed with that.
            timed = [i for i, one in enumerate(contenders) if size == 1 or one.samples.fixed_batch is None]
            feeds = {i: _first(contenders[i].samples, contenders[i].samples.fixed_batch or size) for i in timed}
            runs = [partial(sessions[i].run, feeds[i]) for i in timed]
            for i, spent in zip(timed, median_seconds(runs, _SECONDS * len(runs)), strict=True):
                found[i].append(
                    Timing(contenders[i].samples.fixed_batch or size, threads, 1e3 * spent, 1e3 * spent.error)
                )
        progress("latency", threads + 1, 2)
    return [tuple(mine) for mine in found]


def _first(samples: Samples, count: int) -> dict[str, Array]:
    """So many samples, the first ones again where there are fewer."""
    return samples.read(np.arange(count) % len(samples.labels))


def _disagreements(
    model: int, answers: Sequence[Answers], contenders: Sequence[Contender], names: Sequence[str]
) -> list[Disagreement]:
    """The samples on which a model is farthest from the first."""
    samples = contenders[0].samples

    def answer(one: Answers, position: int) -> tuple[str | None, float]:
        predicted = int(one.predicted[position])
        return (names[predicted] if predicted >= 0 else None), float(one.confidence[position])

    single = not samples.label_shape
    return [
        Disagreement(
            model,
            position,
            samples.data.source.describe(position),
            names[int(samples.labels[position])] if single else None,
            tuple(answer(one, position) for one in answers),
            float(answers[model].divergence[position]),
            thumbnail(samples, position),
        )
        for position in answers[model].worst(DISAGREEMENTS)
    ]
