"""How rounding is learned."""

from __future__ import annotations

from dataclasses import dataclass

from onnx_cbq.settings import CHOOSE, check, check_kinds, option


@dataclass(frozen=True)
class LearnedConfig:
    """How long codes, scales and biases are learned, and how fast.

    Attributes:
        updates: so many updates at most.
        minutes: so long at most; where they run out first, rates fall by the time, and a
            repeated run may give another file.
        batch: samples per update; fewer where their activations would not fit, but at least 16. Of a model that takes
            only so many at a time as often as many as it takes for 16.
        weight_rate: of latent weights, in spacings of their layer's grid.
        rate: of biases and of logarithms of scales, those of activations among them. Both rates rise where learning
            starts far from the float model, with the square root of the loss.
        held_back: share of each class that no update sees, by which the best state is chosen; some 2,000 samples at
            most.
        check_every: updates between two looks at these.
    """

    updates: int = option(200, CHOOSE, "N", flag="rounding-updates")
    minutes: float = option(10.0, CHOOSE, "M", flag="rounding-minutes")
    batch: int = 64
    weight_rate: float = 4e-3
    rate: float = 1e-3
    held_back: float = 0.1
    check_every: int = 25

    def __post_init__(self) -> None:
        check_kinds(self)
        for name, said in (("updates", "--rounding-updates"), ("batch", "batch"), ("check_every", "check_every")):
            check(getattr(self, name) > 0, said, "a number above 0", getattr(self, name))
        check(0 < self.held_back < 1, "held_back", "a number between 0 and 1", self.held_back)
        check(0 < self.minutes < float("inf"), "--rounding-minutes", "a number above 0", self.minutes)
        for name in ("weight_rate", "rate"):
            check(0 <= getattr(self, name) < 1, name, "a number from 0 to 1", getattr(self, name))
