"""How long a command still takes in all: by what its stages took, and what those behind them usually take beside that.

Nothing is said before the statistics tell how large the model and its samples are, nor where a stage lies ahead that
nothing is known of: training, or a search for the fewest bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

# What a stage takes beside the statistics: 0.2 to 0.8, and 0.65 to 1.3 in small nets and large ones of five kinds.
_BESIDE = {"search": 0.4, "rounding": 0.9}
# What a sample of the evaluation takes beside one that is looked at first, and what follows the last one, in seconds.
_FIRST, _EVALUATION, _EVALUATED, _LATENCIES = "samples", "evaluation", 1.2, 1.0
# The stages that statistics consist of.
_TABLES = "tables"
_STATISTICS = ("scoring", "sensitivity", _TABLES)
# This share of a stage has to be over before its own speed is all that counts.
_TELLING = 0.3


@dataclass(frozen=True)
class Span:
    """A run of a stage, up to the last time that it was heard of.

    Attributes:
        stage: its name.
        since: when the run before it was last heard of; what lies between is counted as its own.
        begun, first: when it was first heard of, and how much was done then.
        now, done, total: how far it is.
    """

    stage: str
    since: float
    begun: float
    first: int
    now: float
    done: int
    total: int

    @property
    def seconds(self) -> float:
        """How long it has taken."""
        return self.now - self.since

    @property
    def share(self) -> float:
        """How much of it is done, 0 to 1."""
        return self.done / self.total if self.total else 0.0

    @property
    def each(self) -> float | None:
        """Seconds for one of `total`; None before that can be told."""
        passed = self.now - self.begun
        return passed / (self.done - self.first) if self.done > self.first and passed > 0 else None

    @property
    def left(self) -> float | None:
        """Seconds until it is over, by its own speed; None before that can be told."""
        return None if self.each is None else self.each * (self.total - self.done)


def told(
    spans: tuple[Span, ...], now: float, stage: str, done: int, total: int, start: float = 0.0
) -> tuple[Span, ...]:
    """The runs since `start`, once a stage says that `done` of its `total` are over.

    Behind a comma in its name stands what changes, as a loss. A stage that falls back has begun another run.
    """
    name, last = stage.partition(",")[0], spans[-1] if spans else None
    if last is not None and last.stage == name and done >= last.done:
        return (*spans[:-1], replace(last, now=now, done=done, total=total))
    return (*spans, Span(name, start if last is None else last.now, now, done, now, done, total))


@dataclass(frozen=True)
class Route:
    """What a command goes through.

    Attributes:
        stages: those that take long, in order, from the statistics on.
        samples: how many of them models are evaluated on.
        most: seconds that a stage takes at most; such a stage goes on evenly.
    """

    stages: tuple[str, ...]
    samples: int
    most: Mapping[str, float] = field(default_factory=dict)


def seconds_left(spans: Sequence[Span], route: Route) -> float | None:
    """Seconds until a command is over, by the runs of its stages so far; None where nobody knows."""
    place, current = _place(spans, route), spans[-1]
    if place < 0 or route.stages[place] != current.stage:
        return None
    earlier = spans[:-1]
    left = _left_of(current, _expected(current.stage, earlier, route), route.most.get(current.stage))
    if left is None:
        return None
    # What comes next sees this stage as it will have been.
    over = [*earlier, replace(current, now=current.now + left, done=current.total)]
    ahead = [_expected(stage, over, route) for stage in route.stages[place + 1 :]]
    known = [seconds for seconds in ahead if seconds is not None]
    return left + sum(known) + _LATENCIES if len(known) == len(ahead) else None


def _place(spans: Sequence[Span], route: Route) -> int:
    """Where on its route a command is, -1 before its start. A stage that does not come is passed by the next."""
    place = -1
    for span in spans:
        place = next((k for k in range(place + 1, len(route.stages)) if route.stages[k] == span.stage), place)
    return place


def _expected(stage: str, spans: Sequence[Span], route: Route) -> float | None:
    """What a stage will take by those before it: as long as the last time, or as usual."""
    seen = {span.stage: span for span in spans}
    if stage in seen:
        return seen[stage].seconds
    if stage == _EVALUATION and _FIRST in seen:
        each = seen[_FIRST].each
        return None if each is None else _EVALUATED * each * route.samples
    if stage in _BESIDE and _TABLES in seen:
        return _BESIDE[stage] * sum(seen[name].seconds for name in _STATISTICS if name in seen)
    return None


def _left_of(current: Span, expected: float | None, most: float | None) -> float | None:
    """What is left of a stage: by its own speed, and the less of it is over, the more as expected."""
    own = current.left
    if own is not None and most is not None:
        return min(own, max(most - current.seconds, 0.0))
    if expected is None:
        return own if current.share >= _TELLING else None
    usual = max(expected - current.seconds, 0.0)
    trust = min(current.share / _TELLING, 1.0)
    return usual if own is None else trust * own + (1 - trust) * usual
