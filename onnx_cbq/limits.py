"""Limits on what accuracy may be lost, overall or by any class, checked on samples that nothing else has seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnx_cbq.calibration.samples import Draw, draw
from onnx_cbq.config import MOST_BITS, QuantizeConfig
from onnx_cbq.errors import VerificationError
from onnx_cbq.measure import replayable
from onnx_cbq.model import Array, Model
from onnx_cbq.planning import kept_layers
from onnx_cbq.progress import Clock, Progress
from onnx_cbq.runtime import Session
from onnx_cbq.scoring import batch_size
from onnx_cbq.solving import Setting, Solution, emit_solution, solve, with_bits

# Limits are checked on as many samples beyond the calibration samples as there are, up to this.
LIMIT_SAMPLES = 2000
# Averages of bits are tried until the smallest that keeps the limit is known to within this.
RESOLUTION = 0.1
# How often the weights of classes that lose too much are raised, and by what.
ROUNDS = 6
RAISE = 2.0
# What budgets are tried to say which would do.
_STEP = 0.5


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

    def __init__(self, setting: Setting) -> None:
        work = setting.work
        chosen, self.samples, self.notes = _limit_samples(setting)
        self._batches = replayable(work.samples, chosen.indices, batch_size(work.layers))
        self._counted = setting.class_weights
        self._groups, self._logits = setting.evidence.groups, work.logits
        self._reference, self._counts = self._hits(work.model)

    def __call__(self, setting: Setting, solution: Solution) -> Losses:
        """Run the model that the solution makes."""
        lost = self._reference - self._hits(emit_solution(setting, solution))[0]
        counted = (self._counts > 0) & (self._counted > 0)
        per_class = np.where(counted, 100 * lost / np.maximum(self._counts, 1), np.nan)
        overall = float(100 * (self._counted @ lost) / (self._counted @ self._counts))
        return Losses(overall, per_class, self._counts)

    def _hits(self, model: Model) -> tuple[Array, Array]:
        """Answers of each class that are right, up to groups of classes, and how many there are."""
        output, kind = self._logits.output, self._logits.kind
        session = Session(model.with_graph(outputs=[output]))
        hits, counts = np.zeros((2, kind.classes))
        for batch in self._batches():
            scores = self._logits.reading.rows(session.run(batch.feeds)[output])[: batch.count]
            given, right = kind.hits(scores, batch.labels, self._groups)
            hits, counts = hits + right, counts + given
        return hits, counts


def meet_limits(setting: Setting, clock: Clock, progress: Progress) -> tuple[Solution, tuple[str, ...]]:
    """The solution that keeps the limits of the settings, and what the check saw.

    Raises:
        VerificationError: there is none.
    """
    check = LimitCheck(setting)
    if setting.config.max_drop is not None:
        solution, losses, bits = _fewest_bits(setting, check, clock, progress)
        notes = [f"--max-drop {setting.config.max_drop:g}: {bits:g} bits lose {losses.overall:.2f} points"]
    else:
        solution, losses, weights = _raise_weights(setting, check, clock, progress)
        worst = int(np.nanargmax(losses.per_class))
        raised = [f"{setting.work.class_names[m]} x{w:g}" for m, w in enumerate(weights) if w > 1]
        notes = [
            f"--max-class-drop {setting.config.max_class_drop:g}: {setting.work.class_names[worst]!r} loses most, "
            f"{losses.per_class[worst]:.2f} points" + (f"; weights raised: {', '.join(raised)}" if raised else "")
        ]
    counted = int(losses.samples[setting.class_weights > 0].sum())
    empty = len(setting.work.samples.empty_classes(setting.work.class_names))
    if empty and setting.config.max_class_drop is not None:
        notes.append(f"--max-class-drop: what the {empty:,} classes without samples lose cannot be known")
    return solution, (*check.notes, f"{notes[0]}, on {counted:,} {check.samples}", *notes[1:])


def too_much(losses: Losses, config: QuantizeConfig) -> Array:
    """The classes that lose more than the limits allow; all if the loss overall is too large."""
    over = np.zeros(len(losses.per_class), bool)
    if config.max_class_drop is not None:
        over |= np.nan_to_num(losses.per_class, nan=-np.inf) > config.max_class_drop + 1e-9
    if config.max_drop is not None and losses.overall > config.max_drop + 1e-9:
        over[:] = True
    return over


def _fewest_bits(
    setting: Setting, check: LimitCheck, clock: Clock, progress: Progress
) -> tuple[Solution, Losses, float]:
    """Bisection over the average of bits; the limits are taken to hold from some average upwards."""
    weights, layers = setting.class_weights, setting.work.layers
    kept = kept_layers(layers, setting.config.keep)

    def attempt(bits: float, *, trade: bool) -> tuple[Solution, Losses]:
        tried = with_bits(setting, bits, weights, trade=trade)
        solution = solve(tried, clock, progress)
        with clock.stage("limits"):
            return solution, check(tried, solution)

    # Less than the layers that are kept take cannot be asked for.
    taken = sum(layers.by_name[name].size * width for name, width in kept.items()) / layers.size
    low, high = max(0.5, taken), float(MOST_BITS)
    best = attempt(high, trade=False)
    over = too_much(best[1], setting.config)
    if over.any():
        raise VerificationError(
            f"{_first_missed(setting, best[1], over)}; allow more, or leave activations float with --activation-bits 0"
        )
    while high - low > RESOLUTION:
        middle = round((low + high) / 2, 2)
        found = attempt(middle, trade=False)
        if too_much(found[1], setting.config).any():
            low = middle
        else:
            best, high = found, middle
    traded = attempt(high, trade=True)
    if not too_much(traded[1], setting.config).any():
        best = traded
    return *best, high


def _raise_weights(
    setting: Setting, check: LimitCheck, clock: Clock, progress: Progress
) -> tuple[Solution, Losses, Array]:
    """Search again with larger weights for the classes that lose too much, until none does."""
    config, weights = setting.config, setting.class_weights.copy()
    missed: list[tuple[Array, Losses]] = []
    for _ in range(ROUNDS):
        tried = with_bits(setting, config.bits, weights)
        solution = solve(tried, clock, progress)
        with clock.stage("limits"):
            losses = check(tried, solution)
        over = too_much(losses, config)
        if not over.any():
            return solution, losses, weights / np.where(setting.class_weights > 0, setting.class_weights, 1)
        missed.append((over, losses))
        weights = np.where(over, weights * RAISE, weights)
    over, losses = min(missed, key=lambda entry: float(np.nanmax(entry[1].per_class)))
    raise VerificationError(
        f"--max-class-drop {config.max_class_drop:g} cannot be met with --bits {config.bits:g}: "
        f"{_misses(setting, losses, over)}; "
        f"{_enough(setting, check, clock, progress)}"
    )


def _first_missed(setting: Setting, losses: Losses, over: Array) -> str:
    """The limit that even the most bits do not keep."""
    config = setting.config
    if config.max_drop is not None and losses.overall > config.max_drop:
        return f"--max-drop {config.max_drop:g}: even {MOST_BITS} bits lose {losses.overall:.2f} points"
    return f"--max-class-drop {config.max_class_drop:g}: even with {MOST_BITS} bits {_misses(setting, losses, over)}"


def _misses(setting: Setting, losses: Losses, over: Array) -> str:
    return ", ".join(
        f"{setting.work.class_names[m]} loses {losses.per_class[m]:.2f} (of {int(losses.samples[m])} samples)"
        for m in np.flatnonzero(over)
    )


def _enough(setting: Setting, check: LimitCheck, clock: Clock, progress: Progress) -> str:
    """What budget would do."""
    bits = setting.config.bits + _STEP
    while bits <= MOST_BITS:
        tried = with_bits(setting, bits, setting.class_weights)
        if not too_much(check(tried, solve(tried, clock, progress)), setting.config).any():
            return f"--bits {bits:g} would do"
        bits += _STEP if bits < 4 else 2 * _STEP
    return f"no budget up to {MOST_BITS} bits would do"


def _limit_samples(setting: Setting) -> tuple[Draw, str, tuple[str, ...]]:
    """Samples beyond the calibration samples, or, of classes that have no others, the calibration samples themselves.

    With what they are called, and a note.
    """
    work, drawn = setting.work, setting.drawn
    used = set(drawn.indices.tolist())
    everything = draw(work.samples, work.class_names, None, setting.config.seed)
    # Classes without samples count nothing.
    share = max(LIMIT_SAMPLES // int((setting.class_weights > 0).sum()), 1)
    rest = [
        np.array([i for i in part.tolist() if i not in used][:share], np.int64)
        if setting.class_weights[m] > 0
        else part[:0]
        for m, part in enumerate(everything.by_class)
    ]
    short = [m for m in np.flatnonzero(setting.class_weights).tolist() if not len(rest[m])]
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
