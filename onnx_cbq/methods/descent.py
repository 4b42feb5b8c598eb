"""A descent of widths in time, and in the cache: as far as it came while it lasts, and then where it ended."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np

from onnx_cbq.evidence.cache import Cache, Kept, Parts
from onnx_cbq.evidence.fingerprint import fingerprint
from onnx_cbq.evidence.kept import checked
from onnx_cbq.model import Array
from onnx_cbq.search.widths import Descent, DifferentiableConfig, Moment, Standing, descend
from onnx_cbq.system.progress import Progress
from onnx_cbq.system.store import Entry

# Of what a descent gives, in the last digit too.
VERSION = 2
_NAME = "learned widths"
# Updates between two states that are kept.
_KEPT_EVERY = 10
# The first updates are slower than the rest, and say nothing about when the time will be over.
_UNTIMED_UPDATES = 20
# Samples of an update at least; so many are tried to tell what an update takes.
_FEW = 16
_LOG = logging.getLogger("onnx_cbq")
Slope = Callable[[Array], tuple[float, Array]]
SlopeFrom = Callable[[int, int], Slope]


@dataclass(frozen=True)
class Descending:
    """How one descent goes on.

    Attributes:
        config: the settings.
        cache: of the run; `parts` is everything that the descent depends on.
        progress: told of every update.
        any_batch: whether an update may have fewer samples; the model may insist on how many.
    """

    config: DifferentiableConfig
    cache: Cache
    parts: Parts
    progress: Progress
    any_batch: bool = True

    def run(self, slope_from: SlopeFrom, sizes: Array, budget: float) -> Descent:
        """The descent, as `search.widths.descend` has it.

        Args:
            slope_from: updates done, and samples of each -> the slope from there on.
            sizes: weights that each width counts for, [units].
            budget: average bits per weight.
        """
        # Tables and samples are looked at once, and not for every state.
        known = functools.cache(lambda: fingerprint(*self.parts()))

        def parts() -> list[object]:
            return [known()]

        return self.cache.of(kept_descent(len(sizes)), parts, lambda: self._run(slope_from, sizes, budget, parts))

    def _run(self, slope_from: SlopeFrom, sizes: Array, budget: float, parts: Parts) -> Descent:
        kept = kept_standing(len(sizes))
        known = self.cache.find(kept, parts)
        if known is None:
            standing, seconds, done = None, 0.0, 0
            batch = self._fitting_batch(slope_from, np.full(len(sizes), budget))
        else:
            standing, seconds, batch = known
            done = standing.updates
            _LOG.info("%s: goes on after %d updates", _NAME, done)
        timer = Timer(self.config, self.progress, seconds)

        def watch(now: Standing) -> None:
            if now.updates % _KEPT_EVERY == 0:
                self.cache.hold(kept, parts, (now, timer.seconds, batch))

        config = replace(self.config, batch=batch)
        found = descend(slope_from(done, batch), sizes, budget, config, timer, standing, watch)
        self.cache.drop(kept, parts)
        return found

    def _fitting_batch(self, slope_from: SlopeFrom, widths: Array) -> int:
        """Samples of an update, so that the minutes are enough for the updates: a descent of a few ends anywhere.

        Two are tried, of which the first is slow.
        """
        if self.config.batch <= _FEW or not self.any_batch:
            return self.config.batch
        slope = slope_from(0, _FEW)
        slope(widths)
        begun = time.monotonic()
        slope(widths)
        return fitting_batch((time.monotonic() - begun) / _FEW, self.config)


def fitting_batch(seconds: float, config: DifferentiableConfig) -> int:
    """The samples of an update, if each takes so long; a multiple of the few that there are at least."""
    fits = int(min(60 * config.minutes / (config.updates * max(seconds, 1e-9)), config.batch))
    return fits if fits == config.batch else max(fits // _FEW, 1) * _FEW


class Timer:
    """How much of a descent is over: by updates, or by time where that would run out first; tells the progress."""

    def __init__(self, config: DifferentiableConfig, progress: Progress, seconds: float = 0.0) -> None:
        self._config, self._progress, self._begun = config, progress, time.monotonic() - seconds

    @property
    def seconds(self) -> float:
        """Spent, those before a resumption included."""
        return time.monotonic() - self._begun

    def __call__(self, updates: int) -> float:
        """The share that is over after so many updates."""
        self._progress("search", min(updates, self._config.updates), self._config.updates)
        spent = self.seconds / (60 * self._config.minutes)
        by_updates = updates / self._config.updates
        return max(by_updates, spent) if updates > _UNTIMED_UPDATES else by_updates


def kept_descent(count: int) -> Kept[Descent]:
    """Where a descent of so many widths ended."""

    def pack(found: Descent) -> Entry:
        facts = {"trace": _listed(found.trace), "first": found.first, "batch": found.batch}
        return Entry({"widths": found.widths}, facts)

    def unpack(entry: Entry) -> Descent:
        widths = checked(entry.arrays["widths"], "f8", (count,))
        first, batch = float(entry.facts["first"]), int(entry.facts["batch"])
        return Descent(widths, _moments(entry.facts["trace"]), first, batch)

    return Kept(_NAME, VERSION, pack, unpack)


def kept_standing(count: int) -> Kept[tuple[Standing, float, int]]:
    """How a descent of so many widths stands, the seconds that were spent, and the samples of an update."""

    def pack(held: tuple[Standing, float, int]) -> Entry:
        now, seconds, batch = held
        facts = {"shown": now.shown, "price": now.price, "updates": now.updates, "trace": _listed(now.trace)}
        arrays = {"widths": now.widths, "mean": now.mean, "square": now.square}
        return Entry(arrays, {**facts, "seconds": seconds, "batch": batch})

    def unpack(entry: Entry) -> tuple[Standing, float, int]:
        widths, mean, square = (checked(entry.arrays[name], "f8", (count,)) for name in ("widths", "mean", "square"))
        facts = entry.facts
        shown, price, seconds = (float(facts[name]) for name in ("shown", "price", "seconds"))
        trace, updates = _moments(facts["trace"]), int(facts["updates"])
        return Standing(widths, mean, square, shown, price, updates, trace), seconds, int(entry.facts["batch"])

    return Kept(f"unfinished {_NAME}", VERSION, pack, unpack)


def _listed(trace: Sequence[Moment]) -> list[list[float]]:
    return [list(astuple(moment)) for moment in trace]


def _moments(trace: Iterable[tuple[float, float, float, float]]) -> tuple[Moment, ...]:
    return tuple(
        Moment(int(updates), float(loss), float(price), float(average)) for updates, loss, price, average in trace
    )
