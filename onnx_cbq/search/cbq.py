"""The threshold search of CBQ (arXiv 2211.14928): bit widths from importance, checked against accuracy.

Thresholds 0 <= p_1 <= ... <= p_N on the importance gamma: a channel with gamma < p_1 gets 0 bits, between p_k and
p_{k+1} it gets k bits, from p_N on N bits. All start at 0, so every channel has N bits. p_1 moves up first, by a fixed
move at a time; after each move the model is quantized as planned and measured. When the accuracy falls below the
target T_1 the move is taken back and the threshold stays; p_2 goes on with T_2 = R T_1, and so on. The search ends when
the average falls to the budget.

Left open by the paper and chosen here: N, the move, T_1 and R (`CbqConfig`); when every threshold has stopped above
the budget, all go on with targets lowered once more by R, or to what the best move reaches where no move would pass;
and the last move is taken only as far as the budget asks, channels of equal importance in the order of their saliency,
the last of them down to the width that is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onnx_cbq.model import Array
from onnx_cbq.settings import MOST_BITS, check, check_kinds

Measure = Callable[[Array], float]


@dataclass(frozen=True)
class CbqConfig:
    """Constants of the threshold search that the paper leaves open; `docs/how-it-works.md` gives the reasons.

    Attributes:
        most_bits: N, the width that every channel starts with; None for one more than the budget, rounded up.
        stride: how far a threshold moves at a time, as a share of the largest importance.
        first_target: T_1 as a share of the accuracy with N bits everywhere.
        ratio: R, by which each further threshold's target is lower; also applied to all when all have stopped.
        pin_ends: keep the first and the last layer at 8 bits, as the paper does. They count in the average.
        held_back: share of the calibration samples of each class that accuracy is measured on, and nothing else.
    """

    most_bits: int | None = None
    stride: float = 0.02
    first_target: float = 0.99
    ratio: float = 0.98
    pin_ends: bool = True
    held_back: float = 0.25

    def __post_init__(self) -> None:
        check_kinds(self)
        check(self.most_bits in (None, *range(1, MOST_BITS + 1)), "most_bits", f"1 to {MOST_BITS}", self.most_bits)
        for name in ("stride", "first_target", "ratio", "held_back"):
            value = getattr(self, name)
            check(0 < value < 1, name, "a number between 0 and 1", value)


@dataclass(frozen=True)
class ThresholdSearch:
    """What the search found.

    Attributes:
        bits: int8 [channels].
        thresholds: p_1 .. p_N.
        moves: (average bits, accuracy) of every plan that was measured and kept.
        measured: how many plans were measured.
    """

    bits: Array
    thresholds: tuple[float, ...]
    moves: tuple[tuple[float, float], ...]
    measured: int


def search_thresholds(
    importance: Array,
    saliency: Array,
    sizes: Array,
    budget: float,
    measure: Measure,
    config: CbqConfig,
    on_move: Callable[[float, float], None],
) -> ThresholdSearch:
    """Find the bits of every channel.

    Args:
        importance: gamma, [channels].
        saliency: breaks ties of importance, [channels].
        sizes: number of weights, [channels].
        budget: largest average of bits per weight.
        measure: accuracy in [0, 1] of the model quantized by a plan (int8 [channels]).
        config: the constants.
        on_move: told the first average and the one after each move.
    """
    most_bits = config.most_bits or min(math.ceil(budget) + 1, MOST_BITS)
    thresholds = np.zeros(most_bits)
    stride = config.stride * max(float(importance.max()), np.finfo(float).tiny)
    bits = widths(importance, thresholds)
    accuracy = measure(bits)
    first_target = config.first_target * accuracy
    moves, measured = [(_average(bits, sizes), accuracy)], 1
    while True:
        start, refused = thresholds, [0.0]
        for k in range(most_bits):
            while thresholds[k] <= importance.max():
                raised = np.maximum(thresholds, np.where(np.arange(most_bits) >= k, thresholds[k] + stride, 0.0))
                candidate = widths(importance, raised)
                if _average(candidate, sizes) <= budget:
                    bits = _part_of_move(bits, candidate, importance, saliency, sizes, budget)
                    return ThresholdSearch(bits, tuple(raised.tolist()), tuple(moves), measured)
                if (candidate != bits).any():
                    accuracy = measure(candidate)
                    measured += 1
                    if accuracy < first_target * config.ratio**k:
                        refused.append(accuracy / config.ratio**k)
                        break
                    moves.append((_average(candidate, sizes), accuracy))
                    on_move(moves[0][0], moves[-1][0])
                thresholds, bits = raised, candidate
        first_target *= config.ratio
        if thresholds is start:
            first_target = min(first_target, max(refused))


def widths(importance: Array, thresholds: Array) -> Array:
    """Bits of each channel: the number of thresholds that its importance reaches, int8 [channels]."""
    return np.searchsorted(thresholds, importance, side="right").astype(np.int8)


def _average(bits: Array, sizes: Array) -> float:
    return float(bits @ sizes / sizes.sum())


def _part_of_move(
    before: Array, after: Array, importance: Array, saliency: Array, sizes: Array, budget: float
) -> Array:
    """Of the channels that the move lowers, the least important ones, as many as it takes to meet the budget.

    The last of them is lowered only as far as the budget asks: a unit may be a whole layer, most of the net.
    """
    lowered = np.flatnonzero(after < before)
    order = lowered[np.lexsort((saliency[lowered], importance[lowered]))]
    saved = np.cumsum((before[order] - after[order]) * sizes[order])
    excess = before @ sizes - budget * sizes.sum()
    count = int(np.searchsorted(saved, excess * (1 - 1e-12))) + 1
    bits = before.copy()
    bits[order[:count]] = after[order[:count]]
    last = order[count - 1 :][:1]
    spare = (budget * sizes.sum() - bits @ sizes) * (1 + 1e-12)
    bits[last] += np.clip(spare // sizes[last], 0, before[last] - bits[last]).astype(np.int8)
    return bits
