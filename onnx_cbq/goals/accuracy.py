"""Limits on what accuracy may be lost, overall or by any class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from onnx_cbq.errors import VerificationError
from onnx_cbq.goals.bits import Bits
from onnx_cbq.goals.goal import Goal, Met, check_bits, solve
from onnx_cbq.goals.losses import LimitCheck, Losses
from onnx_cbq.methods import Method
from onnx_cbq.methods.channels import kept_layers
from onnx_cbq.model import Array
from onnx_cbq.settings import FIRST, MOST_BITS, check, check_kinds, option
from onnx_cbq.stages.scene import Scene
from onnx_cbq.stages.solution import Solution

# Averages of bits are tried until the smallest that keeps the limit is known to within this.
RESOLUTION = 0.1
# How often the weights of classes that lose too much are raised, and by what.
ROUNDS = 6
RAISE = 2.0
# What budgets are tried to say which would do.
_STEP = 0.5


@dataclass(frozen=True)
class Accuracy(Goal):
    """The fewest bits that lose no more accuracy, or a given average at which no class loses more.

    Attributes:
        max_drop: find the fewest bits that lose no more points of accuracy, in place of --bits.
        max_class_drop: no class may lose more points of accuracy than this.
        average: bits per weight.
    """

    name: ClassVar[str] = "accuracy"
    options: ClassVar[str] = "--max-drop or --max-class-drop"

    max_drop: float | None = option(None, FIRST, "POINTS", shown="no limit")
    max_class_drop: float | None = option(None, FIRST, "POINTS", shown="no limit")
    average: float = Bits.average

    def __post_init__(self) -> None:
        check_kinds(self)
        check_bits(self.average)
        limited = self.max_drop is not None or self.max_class_drop is not None
        check(limited, "goal", "a limit on what may be lost", "none")
        for name, limit in (("--max-drop", self.max_drop), ("--max-class-drop", self.max_class_drop)):
            check(limit is None or 0 <= limit <= 100, name, "points of accuracy, 0 to 100", limit)

    @classmethod
    def of(cls, bits: float, given: Mapping[str, Any]) -> Goal:
        """The goal with what its fields were given."""
        return cls(average=bits, **given)

    @property
    def option(self) -> str:
        """How a user asks for it."""
        return "--max-drop" if self.max_drop is not None else "--max-class-drop"

    @property
    def bits(self) -> float:
        """The average asked for; how many the limit leaves is not known before, and the usual one stands for it."""
        return Bits.average if self.finds_bits else self.average

    @property
    def finds_bits(self) -> bool:
        """Where the loss overall is limited."""
        return self.max_drop is not None

    def meet(self, scene: Scene, method: Method) -> Met:
        """The solution that keeps the limits, with a note of what the check saw.

        Raises:
            VerificationError: there is none.
        """
        check_losses = LimitCheck(scene)
        if self.finds_bits and (why := check_losses.blindness):
            usual = self._usual(scene, method, check_losses, why)
            if usual is not None:
                return usual
        if self.finds_bits:
            solution, losses, bits = self._fewest_bits(scene, method, check_losses)
            notes = [f"--max-drop {self.max_drop:g}: {bits:g} bits lose {losses.overall:.2f} points"]
        else:
            solution, losses, weights = self._raise_weights(scene, method, check_losses)
            bits, worst = self.average, int(np.nanargmax(losses.per_class))
            raised = [f"{scene.work.class_names[m]} x{w:g}" for m, w in enumerate(weights) if w > 1]
            notes = [
                f"--max-class-drop {self.max_class_drop:g}: {scene.work.class_names[worst]!r} loses most, "
                f"{losses.per_class[worst]:.2f} points" + (f"; weights raised: {', '.join(raised)}" if raised else "")
            ]
        counted = int(losses.samples[scene.class_weights > 0].sum())
        empty = len(scene.work.samples.empty_classes(scene.work.class_names))
        if empty and self.max_class_drop is not None:
            notes.append(f"--max-class-drop: what the {empty:,} classes without samples lose cannot be known")
        said = (*check_losses.notes, f"{notes[0]}, on {counted:,} {check_losses.samples}", *notes[1:])
        return Met(solution, bits, said)

    def too_much(self, losses: Losses) -> Array:
        """The classes that lose more than the limits allow; all if the loss overall is too large."""
        over = np.zeros(len(losses.per_class), bool)
        if self.max_class_drop is not None:
            over |= np.nan_to_num(losses.per_class, nan=-np.inf) > self.max_class_drop + 1e-9
        if self.max_drop is not None and losses.overall > self.max_drop + 1e-9:
            over[:] = True
        return over

    def _usual(self, scene: Scene, method: Method, check_losses: LimitCheck, why: str) -> Met | None:
        """The usual average where the limit cannot tell plans; None where even that loses too much."""
        bits = max(float(Bits.average), self._taken(scene))
        solution = solve(scene, method, bits)
        with scene.clock.stage("limits"):
            losses = check_losses(scene, solution)
        if self.too_much(losses).any():
            return None
        note = (
            f"--max-drop {self.max_drop:g} could not be measured: {why}, on {int(losses.samples.sum()):,} "
            f"{check_losses.samples}; {bits:g} bits, as without it"
        )
        return Met(solution, bits, (*check_losses.notes, note))

    def _fewest_bits(self, scene: Scene, method: Method, check_losses: LimitCheck) -> tuple[Solution, Losses, float]:
        """Bisection over the average of bits; the limits are taken to hold from some average upwards."""

        def attempt(tried: Scene, bits: float) -> tuple[Solution, Losses]:
            solution = solve(tried, method, bits)
            with scene.clock.stage("limits"):
                return solution, check_losses(tried, solution)

        low, high, hasty = max(0.5, self._taken(scene)), float(MOST_BITS), scene.in_haste()
        best = attempt(hasty, high)
        over = self.too_much(best[1])
        if over.any():
            raise VerificationError(
                f"{self._first_missed(scene, best[1], over)}; allow more, or leave activations float with "
                f"--activation-bits 0"
            )
        while high - low > RESOLUTION:
            middle = round((low + high) / 2, 2)
            found = attempt(hasty, middle)
            if self.too_much(found[1]).any():
                low = middle
            else:
                best, high = found, middle
        careful = attempt(scene, high)
        if not self.too_much(careful[1]).any():
            best = careful
        return *best, high

    def _taken(self, scene: Scene) -> float:
        """The average that the layers that are kept take alone; less cannot be asked for."""
        layers, kept = scene.work.layers, kept_layers(scene.work.layers, scene.settings.keep)
        return sum(layers.by_name[name].size * width for name, width in kept.items()) / layers.size

    def _raise_weights(self, scene: Scene, method: Method, check_losses: LimitCheck) -> tuple[Solution, Losses, Array]:
        """Search again with larger weights for the classes that lose too much, until none does."""
        weights = scene.class_weights.copy()
        missed: list[tuple[Array, Losses]] = []
        for _ in range(ROUNDS):
            tried = scene.weighing(weights)
            solution = solve(tried, method, self.average)
            with scene.clock.stage("limits"):
                losses = check_losses(tried, solution)
            over = self.too_much(losses)
            if not over.any():
                return solution, losses, weights / np.where(scene.class_weights > 0, scene.class_weights, 1)
            missed.append((over, losses))
            weights = np.where(over, weights * RAISE, weights)
        over, losses = min(missed, key=lambda entry: float(np.nanmax(entry[1].per_class)))
        raise VerificationError(
            f"--max-class-drop {self.max_class_drop:g} cannot be met with --bits {self.average:g}: "
            f"{_misses(scene, losses, over)}; {self._enough(scene, method, check_losses)}"
        )

    def _first_missed(self, scene: Scene, losses: Losses, over: Array) -> str:
        """The limit that even the most bits do not keep."""
        if self.max_drop is not None and losses.overall > self.max_drop:
            return f"--max-drop {self.max_drop:g}: even {MOST_BITS} bits lose {losses.overall:.2f} points"
        missed = _misses(scene, losses, over)
        return f"--max-class-drop {self.max_class_drop:g}: even with {MOST_BITS} bits {missed}"

    def _enough(self, scene: Scene, method: Method, check_losses: LimitCheck) -> str:
        """What budget would do."""
        bits = self.average + _STEP
        while bits <= MOST_BITS:
            if not self.too_much(check_losses(scene, solve(scene, method, bits))).any():
                return f"--bits {bits:g} would do"
            bits += _STEP if bits < 4 else 2 * _STEP
        return f"no budget up to {MOST_BITS} bits would do"


def _misses(scene: Scene, losses: Losses, over: Array) -> str:
    return ", ".join(
        f"{scene.work.class_names[m]} loses {losses.per_class[m]:.2f} (of {int(losses.samples[m])} samples)"
        for m in np.flatnonzero(over)
    )
