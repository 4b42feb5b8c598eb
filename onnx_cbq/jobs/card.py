"""Find out how a model wants its samples: try what is well known, measure each, and write the best as a first card.

The full product of all that could be tried is not run. Layout and size come from shapes as far as they say; then what
becomes of the values is tried together with the order of channels; then how images come to their size, with the best
values; then the values that were tied once more. Each stage is a race: who is plainly behind after a fifth or a half of
the samples drops out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from onnx_cbq.calibration import CalibrationSet, Card
from onnx_cbq.calibration.candidates import (
    Candidate,
    Framings,
    framed,
    framing_candidates,
    sound_candidates,
    value_candidates,
)
from onnx_cbq.calibration.draw import draw
from onnx_cbq.calibration.places import located
from onnx_cbq.calibration.samples import Indices, Samples
from onnx_cbq.calibration.survey import Survey, survey
from onnx_cbq.errors import CalibrationError, ModelError
from onnx_cbq.evidence.trials import Outcome, Trials
from onnx_cbq.evidence.workload import ModelSource, judge, left_out, make_example, scores_notes, without_samples
from onnx_cbq.graph.load import load
from onnx_cbq.graph.logits import Logits
from onnx_cbq.graph.shapes import Shapes
from onnx_cbq.jobs.card_result import TIED, CardConfig, CardResult, Tried
from onnx_cbq.jobs.versions import all_versions
from onnx_cbq.model import Array, Model
from onnx_cbq.search.racing import beats_guessing, chance_of_lead, moved_classes
from onnx_cbq.system.progress import Clock, Progress, silent

# Levels of tests: better than guessing as the best of dozens, classes of another order.
_GUESSING, _MOVED = 0.001, 0.001
# Tied values that are tried again once the size is known; samples of a class that show whether its number is another.
_AGAIN, _OF_A_CLASS = 4, 4
# Samples that every candidate is tried on for classes of another order, where all of them guess.
_OF_ALL = 120
# Shares of a class's samples that are taken for another, and for itself, where its number is another.
_MOSTLY, _SELDOM = 0.6, 0.2
# Losses within a twentieth of the least are alike, and those below 3 / samples: where none is wrong so many may be,
# and the loss of a net whose scores grow with its input falls the more it is overdriven. Of those that are alike the
# plainest is taken, which stands first in the tables.
_ALIKE, _RULE_OF_THREE = 1.05, 3


def find_card(
    model: ModelSource,
    source: Path | str,
    config: CardConfig | None = None,
    classes: Sequence[str] | None = None,
    progress: Progress = silent,
    *,
    skip_unreadable: bool = False,
) -> CardResult:
    """Try how a model may want the samples of a source; `classes` are names in the order of its outputs.

    Raises:
        OnnxCbqError: the model or the source cannot be used, or nothing that is tried can be run.
    """
    config, clock = config or CardConfig(), Clock()
    with clock.stage("samples"):
        loaded = load(model)
        base = Card(located(source), classes=None if classes is None else tuple(classes))
        data = CalibrationSet.of_card(base, skip_unreadable=skip_unreadable)
        seen = survey(data, loaded.inputs, config.size)
        first = _first(base, seen)
        logits, known = _fitted(loaded, data, first, config)
        names = known.check_labels(logits.classes)
        order = _order(known, names, config)
    trials = Trials(loaded, data, logits, known)
    candidates = {candidate.card: candidate for candidate in first}
    with clock.stage("values"):
        alive = trials.race([*candidates], order, "values", progress)
    if len(seen.framings) > 1:
        with clock.stage("framing"):
            candidates |= _framings(trials, candidates, alive, seen.framings, (order, progress))
    with clock.stage("order"):
        rows, share = _ranked(trials, candidates), _constant(known, order)
        refusal = _refusal(rows, share, trials, known, names, config)
    notes = (*seen.notes, *without_samples(known, names), *left_out(known), *scores_notes(logits))
    return CardResult(rows, share, refusal, notes, clock.seconds, all_versions(), config)


def _first(base: Card, seen: Survey) -> list[Candidate]:
    """Every layout that may be meant with all that may become of the values, files brought to their size as usual."""
    found: list[Candidate] = []
    for layout, figures in seen.layouts.items():
        card = replace(base, layout=layout)
        found += (
            sound_candidates(card, figures)
            if seen.sound
            else value_candidates(card, figures, image=seen.image, whole=seen.whole)
        )
    usual = next(iter(seen.framings), None)
    return found if usual is None else [framed(one, usual, seen.framings) for one in found]


def _fitted(
    model: Model, data: CalibrationSet, candidates: Sequence[Candidate], config: CardConfig
) -> tuple[Logits, Samples]:
    """The class scores, and the samples with their labels, under the first candidate that the model runs with."""
    failure: CalibrationError | ModelError | None = None
    tried: set[Any] = set()
    for candidate in candidates:
        card = candidate.card
        if (card.layout, card.channels) in tried:  # values decide about no shape
            continue
        tried.add((card.layout, card.channels))
        try:
            samples = data.with_card(card).for_model(model.inputs)
            shapes: Shapes = make_example(samples).shapes(model)
        except (CalibrationError, ModelError) as error:
            failure = failure or error
            continue
        return judge(model, shapes, samples, config.logits)
    assert failure is not None
    raise failure


def _order(samples: Samples, names: Sequence[str], config: CardConfig) -> Indices:
    """The samples that are tried, in a random order; of more classes than samples some, one of each."""
    random = np.random.default_rng(config.seed)
    seen = np.setdiff1d(np.arange(len(names)), samples.empty_classes(names))
    among = random.permutation(seen)[: config.samples]
    drawn = draw(samples, names, config.samples, config.seed, among.tolist())
    return random.permutation(drawn.indices)


def _framings(
    trials: Trials,
    first: Mapping[Card, Candidate],
    alive: Sequence[Card],
    framings: Framings,
    race: tuple[Indices, Progress],
) -> dict[Card, Candidate]:
    """The best values with every framing, then values again with the best framing.

    Those that were tied, or all of them where the framing that they were tried with is plainly behind: what was best
    among answers to the wrong part of an image, or to sounds at another speed, says little.
    """
    (order, progress), outcomes, usual = race, trials.outcomes, next(iter(framings))
    ranked = sorted(alive, key=lambda card: _rank(outcomes[card]))
    found = {one.card: one for one in framing_candidates(first[ranked[0]], framings)}
    left = trials.race([*found], order, "sizes", progress)
    best = min(left, key=lambda card: _rank(outcomes[card]))
    fits = ranked[0] in left and _is_tied(outcomes[best], outcomes[ranked[0]])
    values = ranked[1:_AGAIN] if fits else list(first)
    framing = found[best].framing
    again = {one.card: one for one in (framed(first[card], framing, framings) for card in values)}
    winner = found[best]
    if framing != usual:
        alive = trials.race([best, *again], order, "values again", progress)
        winner = (found | again)[min(alive, key=lambda card: _rank(outcomes[card]))]
        found |= again
    if winner.values != first[ranked[0]].values:
        last = {one.card: one for one in framing_candidates(winner, framings)}
        trials.race([*last], order, "sizes again", progress)
        found |= last
    return found


def _rank(outcome: Outcome) -> tuple[float, ...]:
    """Best first: what was tried on most samples, since the others dropped out; accuracy; loss."""
    loss = float(outcome.loss.mean()) if outcome.samples else np.inf
    return outcome.failure is not None, -outcome.samples, -outcome.accuracy, loss


def _ranked(trials: Trials, candidates: Mapping[Card, Candidate]) -> tuple[Tried, ...]:
    """What was tried, by accuracy; but the first is, of all that are tied with the most accurate, the one to take."""
    found = sorted(((one, trials.outcomes[card]) for card, one in candidates.items()), key=lambda row: _rank(row[1]))
    top = found[0][1]
    rows = [Tried(one, outcome, _is_tied(top, outcome)) for one, outcome in found]
    tied = [row for row in rows if row.tied]
    least = max(_ALIKE * min(float(row.outcome.loss.mean()) for row in tied), _RULE_OF_THREE / top.samples)
    likely = [row for row in tied if row.outcome.loss.mean() <= least]
    place = {card: number for number, card in enumerate(candidates)}
    taken = min(likely, key=lambda row: place[row.candidate.card])
    return (taken, *(row for row in rows if row is not taken))


def _is_tied(best: Outcome, other: Outcome) -> bool:
    if other.failure is not None or other.samples != best.samples:
        return False
    return chance_of_lead(best.right, other.right) >= TIED


def _constant(samples: Samples, order: Indices) -> float:
    """How often the best constant answer is right on the samples that are tried."""
    truth = samples.truth[order]
    assert samples.known is not None
    if samples.known.kind.several:
        yes = truth.mean(axis=0)
        return float(np.maximum(yes, 1 - yes).mean())
    known = truth[truth >= 0]
    return float(np.bincount(known).max() / max(known.size, 1))


def _refusal(
    rows: Sequence[Tried], share: float, trials: Trials, samples: Samples, names: Sequence[str], config: CardConfig
) -> str | None:
    """Why the best is no card to go on with: it guesses, or its classes have another order than the labels."""
    best, label = rows[0], samples.data.source.label
    guesses = not beats_guessing(best.outcome.right, share, _GUESSING)
    moved: list[tuple[float, str]] = []
    if best.outcome.predicted.min() >= 0:
        # Under labels of another order the right preparation may well be the last.
        count = min(config.samples, _OF_ALL) if guesses else config.samples
        order = _repeated(samples, names, count, config.seed)
        for row in [row for row in rows if row.outcome.failure is None] if guesses else [best]:
            found = trials.run(row.candidate.card, order)
            told = _moved(found, samples.labels[order], names, plain=not guesses)
            moved += [] if told is None else [(told[0], f"{told[1]} ({row.candidate.name})")]
    figures = f"{100 * best.outcome.accuracy:.1f} % right of {best.outcome.samples} samples"
    named = samples.data.are_images or samples.data.source.labels.dtype.kind == "U"
    advice = "give their names in the order of its outputs with --classes FILE" if named else "number 'y' as it does"
    if moved:
        return (
            f"{label}: {figures} at best, but the labels have another order than the model's classes: {max(moved)[1]}; "
            f"{advice}"
        )
    if guesses:
        return (
            f"{label}: {figures} at best, no better than the {100 * share:.1f} % of a constant answer: nothing that "
            f"was tried fits, or the classes have another order than the labels: {advice}, or write the card from the "
            f"code that feeds the model"
        )
    return None


def _repeated(samples: Samples, names: Sequence[str], count: int, seed: int) -> Indices:
    """Samples of as many classes as have several among so many, to see what each is taken for."""
    counts = np.bincount(samples.labels, minlength=len(names))
    random = np.random.default_rng(seed)
    among = random.permutation(np.flatnonzero(counts >= 2))[: max(count // _OF_A_CLASS, 2)]
    if not len(among):
        return np.zeros(0, np.int64)
    return draw(samples, names, max(count, len(among)), seed, among.tolist()).indices


def _moved(found: Outcome, labels: Array, names: Sequence[str], *, plain: bool) -> tuple[float, str] | None:
    """Which classes are taken for which others, if another numbering is better than the labels' own.

    Behind the share of the samples that would be right under it.

    `plain` asks that most samples of a class are taken for that other one, and few for its own: a net that confuses
    classes is no reason to renumber them.
    """
    if not found.samples or found.failure is not None:
        return None
    numbering = moved_classes(labels, found.predicted)
    if numbering is None or chance_of_lead(numbering[0].astype(np.float64), found.right) >= _MOVED:
        return None

    def share(label: int, taken: int) -> float:
        return float((found.predicted[labels == label] == taken).mean())

    moves = [(m, p) for m, p in numbering[1].items() if m != p]
    if plain:
        moves = [(m, p) for m, p in moves if share(m, p) > _MOSTLY and share(m, m) < _SELDOM]
    shown = ", ".join(f"{names[m]!r} (label {m}) is taken for class {p}" for m, p in moves[:3])
    right = float(numbering[0].mean())
    text = f"{shown}{', ...' if len(moves) > 3 else ''}; numbered so {100 * right:.1f} % would be right"
    return (right, text) if moves else None
