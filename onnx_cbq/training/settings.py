"""How nets are trained; nothing here needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from onnx_cbq.errors import ConfigError
from onnx_cbq.records.augmentation import AUGMENTATIONS, check_augmentation
from onnx_cbq.settings import MOST_BITS, REACH, SAMPLES, TRAINING, check, check_kinds, option


@dataclass(frozen=True)
class RefineConfig:
    """How weights, scales and biases are trained once the plan is fixed.

    Attributes:
        updates: train for so many updates at most.
        minutes: train so long at most; where they run out first, the learning rate falls by the time, and a repeated
            run may give another file.
        batch: samples per update.
        weight_rate: learning rate of latent weights, in spacings of their layer's grid.
        rate: learning rate of biases and of logarithms of scales. Both rise where training starts far from the float
            model (`training.records.Schedule`).
        alpha: share of the cross-entropy with the labels in the loss; the rest is the divergence from the float model.
        augment: train on changed images too: "flip", "shift", "mix" and "cut"; repeatable.
        views: of an image, drawn anew for each update, in which the float model answers; the mean of the answers is
            learned. Mirrored with "flip", moved with "shift".
        held_back: share of each class that no update sees, by which the best state is chosen; some 2,000 samples at
            most.
        check_every: updates between two looks at the samples held back, or a fiftieth of the training if that is more.
        bfloat16: compute updates in bfloat16 where the processor has it.
        fused: compile what updates compute where training is long beside the half minute or more that this takes, on
            top of the minutes, and a C++ compiler is there.
    """

    updates: int = option(1200, TRAINING, "N", flag="refine-updates")
    minutes: float = option(15.0, TRAINING, "M", flag="refine-minutes")
    batch: int = 128
    weight_rate: float = 4e-3
    rate: float = 5e-4
    alpha: float = option(0.0, TRAINING, "0..1")
    augment: tuple[str, ...] = option((), TRAINING, "|".join(AUGMENTATIONS))
    views: int = option(1, TRAINING, "N")
    held_back: float = 0.1
    check_every: int = 100
    bfloat16: bool = True
    fused: bool = True

    def __post_init__(self) -> None:
        check_kinds(self)
        for name in ("updates", "batch", "check_every"):
            check(getattr(self, name) > 0, name, "a number above 0", getattr(self, name))
        check(0 < self.minutes < float("inf"), "--refine-minutes", "a number above 0", self.minutes)
        for name in ("weight_rate", "rate"):
            check(0 <= getattr(self, name) < 1, name, "a number from 0 to 1", getattr(self, name))
        check(0 <= self.alpha <= 1, "--alpha", "a number from 0 to 1", self.alpha)
        check_augmentation(self.augment, self.views)
        check(0 < self.held_back < 1, "held_back", "a number between 0 and 1", self.held_back)


def _shares(texts: Sequence[str]) -> tuple[float, ...]:
    try:
        return tuple(float(part) for text in texts for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--macs {','.join(texts)}: expected shares such as 0.1,0.3,0.5,0.85") from None


def _listed(shares: Sequence[float]) -> list[str]:
    return [f"{share:g}" for share in shares]


@dataclass(frozen=True)
class StepConfig:
    """How nested subnets are found and trained (Sun et al., SteppingNet, DATE 2023).

    Attributes:
        macs: share of the model's multiplications that each subnet may have, rising.
        width: how many times as wide the net is that subnets are taken from, 1 to 2; its MACs are the square as many.
        updates: train for so many updates at most, those between moves included.
        minutes: train so long at most; where they run out first, a repeated run may give other files.
        batch: samples per update.
        rate: learning rate at its highest.
        beta: what a subnet changes in the weights of one j subnets smaller counts beta^j.
        alpha: share of the cross-entropy with the labels in the loss; the rest is the divergence from the model.
        augment: train on changed images too: "flip", "shift", "mix" and "cut"; repeatable.
        views: of an image, drawn anew for each update, in which the float model answers; the mean of the answers is
            learned. Mirrored with "flip", moved with "shift".
        held_back: share of each class that no update sees, by which the best state is chosen; some 2,000 samples at
            most.
        check_every: updates between two looks at the samples held back, or a fiftieth of the training if that is more.
        rounds: how often units are moved until every subnet is within its limit; `round_updates` are between two moves,
            or fewer if that is more than a third of all updates.
        bfloat16: compute updates in bfloat16 where the processor has it.
        fused: compile what updates compute where training is long beside the half minute or more that this takes, on
            top of the minutes, and a C++ compiler is there.
        seed: decides the order of the samples.
        logits: name of the output that holds the class scores.
        bits: quantize the weights of every step to 2 to 8 bits, without samples.
    """

    macs: tuple[float, ...] = option((0.1, 0.3, 0.5, 0.85), REACH, "A,B,C", read=_shares, written=_listed)
    width: float | None = option(None, REACH, "1..2", shown="as wide as --macs needs")
    updates: int = option(10_000, TRAINING, "N")
    minutes: float = option(20.0, TRAINING, "M")
    batch: int = 128
    rate: float = 3e-3
    beta: float = option(0.9, TRAINING, "B")
    alpha: float = option(0.0, TRAINING, "0..1")
    augment: tuple[str, ...] = option((), TRAINING, "|".join(AUGMENTATIONS))
    views: int = option(1, TRAINING, "N")
    held_back: float = 0.1
    check_every: int = 100
    rounds: int = 20
    round_updates: int = 25
    bfloat16: bool = True
    fused: bool = True
    seed: int = option(0, SAMPLES, "N")
    logits: str | None = option(None, SAMPLES, "NAME", shown="the only one of shape (samples, classes)")
    bits: int | None = option(None, REACH, "BITS", flag="quantize", shown="float")

    def __post_init__(self) -> None:
        check_kinds(self)
        rising = all(low < high for low, high in pairwise((0.0, *self.macs)))
        check(bool(self.macs) and rising and self.macs[-1] <= 1, "--macs", "rising shares up to 1", self.macs)
        check(self.width is None or 1 <= self.width <= 2, "--width", "1 to 2", self.width)
        for name in ("updates", "batch", "check_every", "rounds"):
            check(getattr(self, name) > 0, name, "a number above 0", getattr(self, name))
        check(self.round_updates >= 0, "round_updates", "a number of at least 0", self.round_updates)
        check(0 < self.minutes < float("inf"), "--minutes", "a number above 0", self.minutes)
        check(0 < self.rate < 1, "--rate", "a number between 0 and 1", self.rate)
        check(0 < self.beta <= 1, "--beta", "a number above 0, up to 1", self.beta)
        check(0 <= self.alpha <= 1, "--alpha", "a number from 0 to 1", self.alpha)
        check_augmentation(self.augment, self.views)
        check(0 < self.held_back < 1, "held_back", "a number between 0 and 1", self.held_back)
        possible = self.bits is None or 2 <= self.bits <= MOST_BITS
        check(possible, "--quantize", f"2 to {MOST_BITS}", self.bits)
