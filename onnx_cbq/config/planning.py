"""Settings of scoring, of the searches for a plan, and of rounding."""

from __future__ import annotations

from dataclasses import dataclass

from onnx_cbq.settings import MOST_BITS, check


@dataclass(frozen=True)
class ScoringConfig:
    """When a neuron counts as critical.

    Attributes:
        epsilon: a neuron is critical for a sample if |z dPhi/dz| exceeds it. The paper's 1e-50 lies below the smallest
            float32, so it means "not zero".
        relative: compare with epsilon times the layer's mean |z dPhi/dz| for the sample instead, which tells channels
            apart where the paper's threshold calls nearly all of them critical.
    """

    epsilon: float = 1e-50
    relative: bool = False

    def __post_init__(self) -> None:
        check(0 <= self.epsilon < float("inf"), "epsilon", "a number of at least 0", self.epsilon)


@dataclass(frozen=True)
class CbqConfig:
    """Constants of the threshold search that the paper leaves open; `docs/how-it-works.md` gives the reasons.

    Attributes:
        most_bits: N, the width that every channel starts with; None for one more than the budget, rounded up.
        step: how far a threshold moves at a time, as a share of the largest importance.
        first_target: T_1 as a share of the accuracy with N bits everywhere.
        ratio: R, by which each further threshold's target is lower; also applied to all when all have stopped.
        pin_ends: keep the first and the last layer at 8 bits, as the paper does. They count in the average.
        held_back: share of the calibration samples of each class that accuracy is measured on, and nothing else.
    """

    most_bits: int | None = None
    step: float = 0.02
    first_target: float = 0.99
    ratio: float = 0.98
    pin_ends: bool = True
    held_back: float = 0.25

    def __post_init__(self) -> None:
        check(self.most_bits in (None, *range(1, MOST_BITS + 1)), "most_bits", f"1 to {MOST_BITS}", self.most_bits)
        for name in ("step", "first_target", "ratio", "held_back"):
            value = getattr(self, name)
            check(0 < value < 1, name, "a number between 0 and 1", value)


@dataclass(frozen=True)
class RateDistortionConfig:
    """How much the rate-distortion search measures.

    Attributes:
        held_back: share of the calibration samples of each class that plans are measured on, and nothing else.
        exchanges: at most so many plans are measured while layers trade bits.
        certainty: standard errors by which a trade must lower the measured loss.
        strengths: a trade multiplies the predicted losses of one layer by this, or divides them; one round for each.
    """

    held_back: float = 0.25
    exchanges: int = 60
    strengths: tuple[float, ...] = (2.0, 1.4)
    certainty: float = 2.0

    def __post_init__(self) -> None:
        check(0 < self.held_back < 1, "held_back", "a number between 0 and 1", self.held_back)
        check(self.exchanges >= 0, "exchanges", "a number of at least 0", self.exchanges)
        check(self.certainty >= 0, "certainty", "a number of at least 0", self.certainty)
        check(all(s > 1 for s in self.strengths), "strengths", "numbers above 1", self.strengths)


@dataclass(frozen=True)
class RoundingConfig:
    """How rounding compensates for its errors.

    Attributes:
        damping: what is added to the diagonal of the inputs' second moment, as a share of its mean; more where it
            cannot be factorised otherwise.
        order: columns by "falling" second moment, or in the order of the "file".
        refits: how often scales are fitted to the codes and the codes to the scales after compensation.
        sweeps: passes of coordinate descent per refit.
        rows: layer inputs that moments are taken over; with fewer samples than that, several positions of each.
        passes: at most so many times the float and the quantized model are run side by side, so that layers see what
            the quantized layers in front of them give; deeper models share passes.
    """

    damping: float = 0.005
    order: str = "falling"
    refits: int = 3
    sweeps: int = 3
    rows: int = 24_000
    passes: int = 32

    def __post_init__(self) -> None:
        check(0 < self.damping < 1, "damping", "a number between 0 and 1", self.damping)
        check(self.order in ("falling", "file"), "order", '"falling" or "file"', self.order)
        for name in ("refits", "sweeps"):
            check(getattr(self, name) >= 0, name, "a number of at least 0", getattr(self, name))
        for name in ("rows", "passes"):
            check(getattr(self, name) > 0, name, "a number above 0", getattr(self, name))
