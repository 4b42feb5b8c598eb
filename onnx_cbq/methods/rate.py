"""Weights that take so many bits once coded: attempt after attempt, by what the coder really spends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from onnx_cbq.stages.compensation import Rounded

_S = TypeVar("_S")

# The rate may be this much below what was asked for, as a share.
TOLERANCE = 0.01
# How often the weights are rounded at most to meet it.
PASSES = 6
# What the coder spends beside the estimate, before it is known.
_FIRST_GUESS = 0.95
_LEAST_RATE = 1e-6
# Between two attempts what is spent grows as a power of the estimate, and no other than these.
_SLOPES = (0.25, 4.0)


def meet_rate(
    bits: float,
    find: Callable[[float], tuple[_S, float]],
    make: Callable[[_S], Rounded],
    spent: Callable[[Rounded], float],
    codes: float = 1.0,
) -> tuple[Rounded, float]:
    """Weights that take at most so many bits each, as near to that as `PASSES` attempts come, and what they take.

    If none take so few, those of the last attempt.

    Args:
        bits: per weight.
        find: from a rate to the setting whose estimated rate does not exceed it, and that estimate.
        make: weights by a setting.
        spent: what weights really take, in bits each.
        codes: the share of that which their codes are thought to take.
    """
    aim = bits * (1 - TOLERANCE / 2)
    wanted, best = aim * codes / _FIRST_GUESS, None
    tried: list[_S] = []
    known: list[tuple[float, float]] = []
    for _ in range(PASSES):
        setting, estimated = find(wanted)
        if setting in tried:
            break
        tried.append(setting)
        rounded = make(setting)
        rate = spent(rounded)
        if rate <= bits and (best is None or rate > best[1]):
            best = rounded, rate
        if bits * (1 - TOLERANCE) <= rate <= bits:
            break
        # Every time too much is spent, the next aim is lower: the same aim again may miss by as little again.
        aim *= 1 - TOLERANCE / 2 if rate > bits else 1
        known.append((float(np.log(max(estimated, _LEAST_RATE))), float(np.log(max(rate, _LEAST_RATE)))))
        wanted = float(np.exp(known[-1][0] + (np.log(aim) - known[-1][1]) / _slope(known[-2:])))
    return best or (rounded, rate)


def _slope(known: Sequence[tuple[float, float]]) -> float:
    """How the logarithm of what was spent grows with that of the estimate, by up to two attempts; 1 if unknown."""
    if len(known) < 2 or known[0][0] == known[1][0]:
        return 1.0
    (estimate, rate), (next_estimate, next_rate) = known
    return float(np.clip((next_rate - rate) / (next_estimate - estimate), *_SLOPES))


def rate_note(rate: float, bits: float) -> str:
    """What a user should know of a rate that was met, or not."""
    note = f"{rate:.3f} bits per weight once coded; {bits:g} were allowed"
    return note + (", which is less than these weights can take" if rate > bits else "")
