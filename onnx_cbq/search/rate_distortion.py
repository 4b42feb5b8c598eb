"""Widths from rate and distortion: spend every bit where it lowers the predicted loss most.

For channel c and width b there is a predicted loss D_c(b) and a rate b n_c. At a budget R the best widths minimise

    sum_c D_c(b_c) + lambda sum_c n_c b_c

for the smallest lambda >= 0 that meets R (Shoham and Gersho, 1988): every channel is on the convex hull of its curve.
What the last slope leaves over is spent one channel at a time.

How the loss is predicted decides the result, and no criterion is best everywhere. So each criterion makes a plan, the
*measured* loss of the quantized model picks one, and its layers then trade bits as long as the measured loss falls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.special import ndtr

from onnx_cbq.model import Array
from onnx_cbq.settings import check, check_kinds

_BISECTIONS = 60
# A trade that is less likely than this to be taken is not measured to the end.
_LEAST_CHANCE = 0.05
# Nats of divergence that leave next to every prediction as it is: nothing that can be had below is worth a search.
ENOUGH = 0.001
# Whether what a plan loses on the first of the samples is enough to know that it is not wanted, [samples so far].
Hopeless = Callable[[Array], bool]


class Measure(Protocol):
    """What the model that is quantized by a plan loses, by measurement."""

    def __call__(self, bits: Array, hopeless: Hopeless | None = None) -> Array | float:
        """The loss of each sample, or the mean, for the widths int8 [channels].

        It may stop as soon as `hopeless` says so, and then gives the losses of the first samples alone.
        """


@dataclass(frozen=True)
class RateDistortionConfig:
    """How much the rate-distortion search measures.

    Attributes:
        held_back: share of the calibration samples of each class that plans are measured on, and nothing else.
        exchanges: at most so many plans are measured while layers trade bits.
        certainty: standard errors by which a trade must lower the measured loss.
        enough: a plan of at most so much measured loss, in nats, is not traded over.
        strengths: a trade multiplies the predicted losses of one layer by this, or divides them; one round for each.
    """

    held_back: float = 0.25
    exchanges: int = 60
    enough: float = ENOUGH
    strengths: tuple[float, ...] = (2.0, 1.4)
    certainty: float = 2.0

    def __post_init__(self) -> None:
        check_kinds(self)
        check(0 < self.held_back < 1, "held_back", "a number between 0 and 1", self.held_back)
        check(self.exchanges >= 0, "exchanges", "a number of at least 0", self.exchanges)
        check(self.enough >= 0, "enough", "a number of at least 0", self.enough)
        check(self.certainty >= 0, "certainty", "a number of at least 0", self.certainty)
        check(all(s > 1 for s in self.strengths), "strengths", "numbers above 1", self.strengths)


@dataclass(frozen=True)
class RatePlan:
    """A plan and how it was found.

    Attributes:
        bits: int8 [channels].
        criterion: name of the prediction that won.
        measured: measured loss of each criterion's plan.
        loss: measured loss of this plan.
        exchanges: accepted exchanges between layers, of `tried`.
    """

    bits: Array
    criterion: str
    measured: Mapping[str, float]
    loss: float
    exchanges: int
    tried: int


def allocate(losses: Array, sizes: Array, budget: float, allowed: Array | None = None) -> Array:
    """The widths of least total loss whose average is at most `budget`.

    Args:
        losses: predicted loss [channels, widths].
        sizes: weights per channel [channels].
        budget: average bits per weight.
        allowed: bool [channels, widths]; all if left out.

    Returns:
        int8 [channels]; the narrowest allowed widths if even those exceed the budget.
    """
    widths = np.arange(losses.shape[1])
    barred = np.zeros(losses.shape, bool) if allowed is None else ~allowed
    losses = np.where(barred, np.inf, losses)
    rate = np.where(barred, np.inf, sizes[:, None] * widths)
    total = budget * sizes.sum() * (1 + 1e-12)

    def at(price: float) -> Array:
        with np.errstate(invalid="ignore"):
            cost = np.where(barred, np.inf, losses + price * rate)
        return np.asarray(cost.argmin(axis=1))

    narrowest = rate.argmin(axis=1)
    finite = losses[np.isfinite(losses)]
    low, high = 0.0, max(float(finite.max() - finite.min()), np.finfo(np.float64).tiny) / float(sizes.min())
    if sizes @ at(low) <= total:
        return at(low).astype(np.int8)
    bits = narrowest
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        candidate = at(middle)
        if sizes @ candidate <= total:
            high, bits = middle, candidate
        else:
            low = middle
    return _spend_rest(losses, sizes, bits, total - sizes @ bits).astype(np.int8)


def _spend_rest(losses: Array, sizes: Array, bits: Array, rest: float) -> Array:
    """Widen channels, the best gain per bit first, while there are bits left."""
    bits, channels = bits.copy(), np.arange(len(bits))
    while True:
        cost = sizes[:, None] * (np.arange(losses.shape[1]) - bits[:, None])
        gain = losses[channels, bits][:, None] - losses
        with np.errstate(divide="ignore", invalid="ignore"):
            worth = np.where((cost > 0) & (cost <= rest) & (gain > 0), gain / cost, 0.0)
        best = np.unravel_index(int(worth.argmax()), worth.shape)
        if worth[best] <= 0:
            return bits
        rest -= cost[best]
        bits[best[0]] = best[1]


def search_plan(
    criteria: Mapping[str, Array],
    layer_of: Array,
    sizes: Array,
    allowed: Array,
    budget: float,
    measure: Measure,
    config: RateDistortionConfig,
) -> RatePlan:
    """The best plan by measurement.

    A trade between layers must lower the losses by more than `config.certainty` standard errors of the mean of what it
    saves, sample by sample: of many trades some look good on the samples at hand only. One that will hardly do so, by
    what it saves on the first samples, is not measured any further.

    Args:
        criteria: name -> predicted losses [channels, widths].
        layer_of: the layer of each channel, [channels].
        sizes: weights per channel [channels].
        allowed: bool [channels, widths].
        budget: average bits per weight.
        measure: what plans lose.
        config: how much to measure.
    """
    known: dict[bytes, Array] = {}

    def losses_of(bits: Array, hopeless: Hopeless | None = None) -> Array:
        key = bits.tobytes()
        if key not in known:
            known[key] = np.atleast_1d(np.asarray(measure(bits, hopeless), np.float64))
        return known[key]

    def saves_nothing(losses: Array) -> bool:
        return hopeless(loss[: len(losses)] - losses, len(loss), config.certainty)

    plans = {name: allocate(losses, sizes, budget, allowed) for name, losses in criteria.items()}
    measured = {name: float(losses_of(bits).mean()) for name, bits in plans.items()}
    winner = min(measured, key=lambda name: measured[name])
    bits, loss = plans[winner], losses_of(plans[winner])
    factors = np.ones(int(layer_of.max()) + 1)
    exchanges, limit = 0, len(known) + config.exchanges
    for strength in config.strengths:
        for layer in range(len(factors)):
            for factor in (strength, 1 / strength):
                if len(known) >= limit or loss.mean() <= config.enough:
                    break
                tried = factors.copy()
                tried[layer] *= factor
                candidate = allocate(criteria[winner] * tried[layer_of][:, None], sizes, budget, allowed)
                found = losses_of(candidate, saves_nothing)
                if len(found) == len(loss) and saves(loss - found, config.certainty):
                    bits, loss, factors = candidate, found, tried
                    exchanges += 1
                    break
    return RatePlan(bits, winner, measured, float(loss.mean()), exchanges, len(known) - len(measured))


def hopeless(savings: Array, samples: int, certainty: float) -> bool:
    """Whether the `savings` of the first of so many `samples` make it unlikely that all of them will save for certain.

    With t the share of samples so far and z their mean in standard errors, that of all is predicted as normal around
    z / sqrt(t) with variance (1 - t) / t (Spiegelhalter, Freedman and Blackburn, 1986, predictive power).
    """
    share, mean, spread = len(savings) / samples, float(savings.mean()), float(savings.std())
    if spread == 0 or share == 1:
        return mean <= 0
    z = mean / spread * np.sqrt(len(savings))
    ahead = (z / np.sqrt(share) - certainty) / np.sqrt((1 - share) / share)
    return bool(ndtr(ahead) < _LEAST_CHANCE)


def saves(savings: Array, certainty: float) -> bool:
    """Whether the mean of the savings, [samples], is above 0 by more than `certainty` standard errors."""
    error = float(savings.std()) / np.sqrt(len(savings))
    return bool(savings.mean() > certainty * error)
