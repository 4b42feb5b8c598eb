"""The largest average of bits that a file of a given size has room for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from onnx_cbq.errors import VerificationError
from onnx_cbq.goals.bits import Bits
from onnx_cbq.goals.goal import Goal, Met, solve
from onnx_cbq.methods import Method, PlanMethod, RateMethod, coded_bits
from onnx_cbq.records import Layers
from onnx_cbq.settings import FIRST, MOST_BITS, check, check_kinds, option
from onnx_cbq.stages.compensation import Rounded
from onnx_cbq.stages.scene import Scene
from onnx_cbq.stages.solution import Chosen, Solution, make_solution
from onnx_cbq.stages.written import file_size
from onnx_cbq.storage import Storage

# A file this much below the size asked for, as a share, is near enough.
TOLERANCE = 0.002
# How often the budget is corrected by what a file came out at; large files are near enough after two or three.
CORRECTIONS = 10
# Once a solution fits well enough, it is worth few more to use the room that is left.
FINE_CORRECTIONS = 2
_WELL_ENOUGH = 0.015
_LEAST_BITS = 0.1
# Where a size only shows once codes have been chosen, they are thought to take this share of the bytes.
_START_SHARE = 0.88


@dataclass(frozen=True)
class Bytes(Goal):
    """The most bits that fit into a file.

    Attributes:
        limit: find the most bits that fit into a file of this size, in place of --bits; not with int8 storage.
    """

    name: ClassVar[str] = "bytes"
    options: ClassVar[str] = "--bytes"

    limit: int = option(None, FIRST, "N", flag="bytes", shown="no limit")

    def __post_init__(self) -> None:
        check_kinds(self)
        check(self.limit > 0, "--bytes", "a number above 0", self.limit)

    @property
    def option(self) -> str:
        """How a user asks for it."""
        return "--bytes"

    @property
    def bits(self) -> float:
        """Not known before; the usual average stands for it."""
        return Bits.average

    @property
    def finds_bits(self) -> bool:
        """The most that fit."""
        return True

    @property
    def largest(self) -> int:
        """The limit."""
        return self.limit

    def goes_with(self, storage: Storage) -> str:
        """Where fewer bits do not make a smaller file, none can be found."""
        return "" if storage.shrinks else "--storage packed or archive"

    def meet(self, scene: Scene, method: Method) -> Met:
        """The solution whose file takes at most so many bytes.

        Raises:
            VerificationError: the file cannot be that small.
        """
        if isinstance(method, RateMethod):
            return self._coded(scene, method)
        assert isinstance(method, PlanMethod), "others do not go with this goal"
        return self._planned(scene, method)

    def _coded(self, scene: Scene, method: RateMethod) -> Met:
        """Weights are chosen by what the whole file takes."""
        limit, total = self.limit, scene.work.layers.size

        def spent(rounded: Rounded) -> float:
            return 8 * file_size(scene, method.label, make_solution(scene, Chosen(rounded))) / total

        chosen, rate = method.choose_at_rate(scene, 8 * limit / total, spent, _START_SHARE)
        size, solution = round(rate * total / 8), make_solution(scene, chosen)
        if size > limit:
            codes = scene.settings.storage.coded_bits(list(solution.written.weights.values()))
            raise VerificationError(_too_small(limit, round(size - codes / 8)))
        found = _note(limit, solution.plan.average_bits(scene.work.layers), size)
        return Met(solution, coded_bits(scene)(solution.rounded), (found,))

    def _planned(self, scene: Scene, method: PlanMethod) -> Met:
        """A plan is corrected by what its file takes.

        Everything in the file but the bits changes little with the plan, so it is measured on plans that are rounded to
        nearest, which takes no time, and then on the solution itself.
        """
        limit, layers = self.limit, scene.work.layers
        bits = self._sketched(scene, method)
        best: tuple[int, Solution, float] | None = None
        sizes: dict[float, int] = {}
        for attempt in range(CORRECTIONS):
            solution = solve(scene, method, bits)
            size = file_size(scene, method.label, solution)
            sizes[bits] = size
            if size <= limit and (best is None or size > best[0]):
                best = size, solution, bits
            tolerance = TOLERANCE if attempt < FINE_CORRECTIONS else _WELL_ENOUGH
            if best and (bits == MOST_BITS or _near(best[0], limit, tolerance)):
                break
            bits = _between(sizes, limit) or _corrected(bits, size, limit, layers)
        if best is None:
            raise VerificationError(_too_small(limit, size))
        size, solution, bits = best
        return Met(solution, bits, (_note(limit, solution.plan.average_bits(layers), size),))

    def _sketched(self, scene: Scene, method: PlanMethod) -> float:
        """The budget at which a file of weights rounded to nearest takes so many bytes."""
        bits, hasty = float(MOST_BITS), scene.in_haste()
        for _ in range(CORRECTIONS):
            size = file_size(hasty, method.label, make_solution(hasty, method.sketch(hasty, bits)))
            if _near(size, self.limit) or (bits == MOST_BITS and size <= self.limit):
                break
            bits = _corrected(bits, size, self.limit, scene.work.layers)
        return bits


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


def _note(limit: int, bits: float, size: int) -> str:
    return f"--bytes {limit:,}: {bits:.3f} bits make a file of {size:,}"


def _too_small(limit: int, rest: int) -> str:
    return f"--bytes {limit:,}: the file takes {rest:,} bytes beside the bits of the weights; allow more"
