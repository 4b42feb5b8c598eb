"""Real-valued widths by gradient descent, and how they become whole (after Cheng et al., 2018, arXiv 1810.10351).

With widths b, the shares n of the weights that they count for and a price lambda, what is lowered is

    loss(b) + lambda sum_c n_c b_c

by updates of Adam (Kingma and Ba, arXiv 1412.6980), widths within 0 .. 8:

    b <- b - rate (m + lambda n) / sqrt(v),     m, v: running means of the loss's gradient and of its square

The size is known exactly, so lambda needs no rate of its own: before each update it is the smallest price >= 0 at which
the update lands on the average that the schedule allows, which falls to the budget and then stays there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onnx_cbq.model import Array
from onnx_cbq.records.augmentation import AUGMENTATIONS, check_augmentation
from onnx_cbq.search.rate_distortion import allocate
from onnx_cbq.settings import CHOOSE, MOST_BITS, TRAINING, check, check_kinds, either, option

_MEAN_DECAY, _SQUARE_DECAY = 0.9, 0.98
# No width moves further in an update than so many times the rate, whatever the price, or so many times what the average
# has to fall: few updates must meet the budget too.
_FURTHEST, _FURTHEST_FALL = 3.0, 2.0
_WARM_UP = 10
_BISECTIONS = 60
_HIGHEST_PRICE = 1e12
_TRACED = 10


GRANULARITIES = ("channel", "layer")


@dataclass(frozen=True)
class DifferentiableConfig:
    """How real-valued widths descend; they take all samples of the card but those that are held back.

    Attributes:
        granularity: a width for every "channel", or for every "layer".
        updates: so many updates of the descent at most.
        minutes: so long at most; where they run out first, a repeated run may give another file.
        rate: bits that a width moves in an update, about.
        headroom: bits above the budget that all widths start at.
        falling: share of the descent over which the average allowed falls to the budget.
        batch: samples per update; fewer where the minutes are too few for the updates otherwise.
        alpha: share of the cross-entropy with the labels in the loss; the rest is the divergence from the float model.
        augment: train on changed images too: "flip", "shift", "mix" and "cut"; repeatable.
        bfloat16: compute gradients in bfloat16 where the processor has it.
        held_back: share of the calibration samples of each class that the plan is measured on, and nothing else.
    """

    granularity: str = option("channel", CHOOSE, "|".join(GRANULARITIES))
    updates: int = option(200, CHOOSE, "N", flag="width-updates")
    minutes: float = option(15.0, CHOOSE, "M", flag="width-minutes")
    rate: float = 0.03
    headroom: float = 1.0
    falling: float = 0.6
    batch: int = 128
    alpha: float = 0.0
    augment: tuple[str, ...] = option((), TRAINING, "|".join(AUGMENTATIONS))
    bfloat16: bool = True
    held_back: float = 0.25

    def __post_init__(self) -> None:
        check_kinds(self)
        check(self.granularity in GRANULARITIES, "--granularity", either(GRANULARITIES), self.granularity)
        check(self.updates > 0, "--width-updates", "a number above 0", self.updates)
        check(0 < self.minutes < float("inf"), "--width-minutes", "a number above 0", self.minutes)
        check(self.batch > 0, "batch", "a number above 0", self.batch)
        check(0 <= self.headroom <= MOST_BITS, "headroom", f"0 to {MOST_BITS} bits", self.headroom)
        for name in ("rate", "falling"):
            check(0 < getattr(self, name) < 1, name, "a number between 0 and 1", getattr(self, name))
        check(0 <= self.alpha <= 1, "alpha", "a number from 0 to 1", self.alpha)
        check(0 < self.held_back < 1, "held_back", "a number between 0 and 1", self.held_back)
        check_augmentation(self.augment, 1)


@dataclass(frozen=True)
class Moment:
    """How a descent stood.

    Attributes:
        updates: done so far.
        loss: running mean of the loss, without the size.
        price: lambda, in loss per bit of the average.
        average: of the widths, by their shares.
    """

    updates: int
    loss: float
    price: float
    average: float


@dataclass(frozen=True)
class Descent:
    """Where a descent ended.

    Attributes:
        widths: float64 in 0 .. 8.
        trace: how it came there.
        first: the width that all started from.
        batch: samples that an update learned from.
    """

    widths: Array
    trace: tuple[Moment, ...]
    first: float
    batch: int


@dataclass(frozen=True)
class LayerWidths:
    """How the widths of one layer moved.

    Attributes:
        start, end: their mean before and after the descent.
        average: their mean once they are whole.
        channels: how many channels have 0, 1, .. 8 bits then.
    """

    start: float
    end: float
    average: float
    channels: tuple[int, ...]


@dataclass(frozen=True)
class Standing:
    """A descent on its way.

    Attributes:
        widths: [units], with the means of the gradient and of its square, `mean` and `square`.
        shown: running mean of the loss; `price` is that of the last update.
        trace: so far.
    """

    widths: Array
    mean: Array
    square: Array
    shown: float = 0.0
    price: float = 0.0
    updates: int = 0
    trace: tuple[Moment, ...] = ()


def descend(
    slope: Callable[[Array], tuple[float, Array]],
    sizes: Array,
    budget: float,
    config: DifferentiableConfig,
    over: Callable[[int], float],
    standing: Standing | None = None,
    watch: Callable[[Standing], None] = lambda _: None,
) -> Descent:
    """Widths of low loss whose average is at most `budget`, from the same width for all.

    Args:
        slope: widths [units] -> the loss and its gradient [units], of some samples.
        sizes: weights that each width counts for, [units].
        budget: average bits per weight.
        config: rate, and how far above the budget to start.
        over: updates done -> how much of the descent is over, from 0 to 1; it ends at 1.
        standing: where to go on from; None to begin.
        watch: told after every update how the descent stands.
    """
    shares = sizes / sizes.sum()
    first = min(budget + config.headroom, float(MOST_BITS))
    now = standing or Standing(np.full(len(sizes), first), np.zeros(len(sizes)), np.zeros(len(sizes)))
    widths, mean, square, shown, price, updates = now.widths, now.mean, now.square, now.shown, now.price, now.updates
    trace = list(now.trace)
    while (done := over(updates)) < 1:
        if done >= len(trace) / _TRACED and updates:
            trace.append(Moment(updates, shown, price, float(shares @ widths)))
        loss, gradient = slope(widths)
        updates += 1
        shown = loss if updates == 1 else 0.95 * shown + 0.05 * loss
        mean = _MEAN_DECAY * mean + (1 - _MEAN_DECAY) * gradient
        square = _SQUARE_DECAY * square + (1 - _SQUARE_DECAY) * gradient**2
        unbiased = mean / (1 - _MEAN_DECAY**updates), np.sqrt(square / (1 - _SQUARE_DECAY**updates))
        allowed = scheduled(done, first, budget, config.falling)
        widths, price = _update(widths, unbiased, shares, allowed, _rate(updates, done, config))
        watch(Standing(widths, mean, square, shown, price, updates, tuple(trace)))
    trace.append(Moment(updates, shown, price, float(shares @ widths)))
    return Descent(widths, tuple(trace), first, config.batch)


def round_widths(widths: Array, sizes: Array, budget: float) -> Array:
    """Whole widths, int8 [units], whose average by `sizes` is at most `budget`, and as close as whole widths come.

    Noise falls by 4 with every bit. Where a descent ends, a bit is worth the same everywhere, and the loss of unit c is

        D_c(k) = n_c 4^(b_c - k) (times a constant),     since then D_c'(b_c) / n_c is the same for all

    which is allocated as any predicted loss is: every width is rounded up from the same fraction on.
    """
    predicted = sizes[:, None] * 4.0 ** (widths[:, None] - np.arange(MOST_BITS + 1))
    return allocate(predicted, sizes, budget)


def scheduled(done: float, first: float, budget: float, falling: float) -> float:
    """The average allowed once so much of the descent is over: falls evenly, then stays at the budget."""
    return budget + (first - budget) * max(0.0, 1 - done / falling)


def _rate(updates: int, done: float, config: DifferentiableConfig) -> float:
    """Rises over the first updates, and falls to nothing once the budget is reached."""
    left = min((1 - done) / (1 - config.falling), 1.0)
    return config.rate * min(1.0, updates / _WARM_UP) * float(1 - np.cos(np.pi * left)) / 2


def _update(
    widths: Array, moments: tuple[Array, Array], shares: Array, allowed: float, rate: float
) -> tuple[Array, float]:
    """Widths after an update that lands on the average allowed, and its price."""
    mean, spread = moments
    reach = max(_FURTHEST * rate, _FURTHEST_FALL * float(shares @ widths - allowed))

    def at(price: float) -> Array:
        move = rate * (mean + price * shares) / np.maximum(spread, np.finfo(np.float32).tiny)
        return np.asarray(np.clip(widths - np.clip(move, -reach, reach), 0, MOST_BITS))

    low, high = 0.0, 0.0
    if shares @ at(0.0) > allowed:
        high = float(np.abs(mean).max() / shares.min()) or 1.0
        while shares @ at(high) > allowed and high < _HIGHEST_PRICE:
            high *= 4
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if shares @ at(middle) > allowed else (low, middle)
    return at(high), high
