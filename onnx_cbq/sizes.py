"""The largest average of bits that a file of a given size has room for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from onnx_cbq.config import MOST_BITS
from onnx_cbq.errors import VerificationError
from onnx_cbq.progress import Clock, Progress
from onnx_cbq.records import Layers
from onnx_cbq.rounding import round_to_nearest
from onnx_cbq.solving import Setting, Solution, find_plan, make_solution, solve, with_bits

# A file this much below the size asked for, as a share, is near enough.
TOLERANCE = 0.002
# How often the budget is corrected by what a file came out at; large files are near enough after two or three.
CORRECTIONS = 10
# Once a solution fits well enough, it is worth few more to use the room that is left.
FINE_CORRECTIONS = 2
_WELL_ENOUGH = 0.015
_LEAST_BITS = 0.1
# An archive's size only shows once its codes have been chosen: it starts with this share of the bytes for codes.
_START_SHARE = 0.88


def meet_bytes(
    setting: Setting, size_of: Callable[[Setting, Solution], int], clock: Clock, progress: Progress
) -> tuple[Solution, tuple[str, ...]]:
    """The solution whose file takes at most `setting.config.bytes`, and what a user should know.

    Everything in the file but the bits changes little with the plan, so it is measured on plans that are rounded to
    nearest, which takes no time, and then on the solution itself.

    Raises:
        VerificationError: the file cannot be that small.
    """
    limit, layers = setting.config.bytes, setting.work.layers
    assert limit is not None
    archived = setting.config.storage == "archive"
    bits = min(8 * _START_SHARE * limit / layers.size, MOST_BITS) if archived else float(MOST_BITS)
    for _ in range(0 if archived else CORRECTIONS):
        tried = with_bits(setting, bits, setting.class_weights, trade=False)
        plan = find_plan(tried, clock, progress)
        size = size_of(tried, make_solution(tried, plan, round_to_nearest(setting.work.model, layers, plan.plan)))
        if _near(size, limit) or (bits == MOST_BITS and size <= limit):
            break
        bits = _corrected(bits, size, limit, layers)
    best: tuple[int, Solution] | None = None
    sizes: dict[float, int] = {}
    for attempt in range(CORRECTIONS):
        tried = with_bits(setting, bits, setting.class_weights)
        solution = solve(tried, clock, progress)
        size = size_of(tried, solution)
        sizes[bits] = size
        if size <= limit and (best is None or size > best[0]):
            best = size, solution
        enough = _WELL_ENOUGH if archived or attempt >= FINE_CORRECTIONS else TOLERANCE
        if best and (bits == MOST_BITS or _near(best[0], limit, enough)):
            break
        bits = _between(sizes, limit) or _corrected(bits, size, limit, layers)
    if best is None:
        raise VerificationError(_too_small(limit, size))
    found = best[1].plan.average_bits(layers)
    return best[1], (f"--bytes {limit:,}: {found:.3f} bits make a file of {best[0]:,}",)


def _near(size: int, limit: int, tolerance: float = TOLERANCE) -> bool:
    return limit * (1 - tolerance) <= size <= limit


def _corrected(bits: float, size: int, limit: int, layers: Layers) -> float:
    """The budget whose file would be a little smaller than the limit, if all that changes are the bits.

    Raises:
        VerificationError: there is none.
    """
    aim = limit * (1 - TOLERANCE / 2)
    found = min(bits + 8 * (aim - size) / layers.size, float(MOST_BITS))
    if found < _LEAST_BITS:
        raise VerificationError(_too_small(limit, round(size - bits * layers.size / 8)))
    return found


def _between(sizes: Mapping[float, int], limit: int) -> float | None:
    """The budget halfway between the largest that fits and the smallest that does not; None if one is missing.

    Sizes rise in leaps, where a whole layer changes its width, so a straight line between them would stand still.
    """
    low = max((bits for bits, size in sizes.items() if size <= limit), default=math.inf)
    high = min((bits for bits, size in sizes.items() if size > limit), default=-math.inf)
    return (low + high) / 2 if low < high else None


def _too_small(limit: int, rest: int) -> str:
    return f"--bytes {limit:,}: the file takes {rest:,} bytes beside the bits of the weights; allow more"
