"""Settings: frozen, checked when they are made, each with a default that is documented here."""

from __future__ import annotations

from dataclasses import dataclass, field

from onnx_cbq.errors import ConfigError

METHODS = ("cbq", "uniform")
MOST_BITS = 8


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
        _check(0 <= self.epsilon < float("inf"), "epsilon", "a number of at least 0", self.epsilon)


@dataclass(frozen=True)
class CbqConfig:
    """Constants of the threshold search that the paper leaves open; the README gives the reasons.

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
        _check(self.most_bits in (None, *range(1, MOST_BITS + 1)), "most_bits", f"1 to {MOST_BITS}", self.most_bits)
        for name in ("step", "first_target", "ratio", "held_back"):
            value = getattr(self, name)
            _check(0 < value < 1, name, "a number between 0 and 1", value)


@dataclass(frozen=True)
class QuantizeConfig:
    """Everything that decides the result of `quantize`.

    Attributes:
        bits: average bits per weight over all layers; whole for `uniform`.
        method: "cbq" (thresholds on class importance) or "uniform" (every channel the same).
        activation_bits: 8, or 0 to leave activations float.
        samples: how many calibration samples are drawn, evenly from the classes; None for all.
        seed: decides which samples are drawn.
        logits: name of the output that holds the class scores; None if only one can be meant.
        scoring, cbq: settings of the stages.
    """

    bits: float = 4.0
    method: str = "cbq"
    activation_bits: int = 8
    samples: int | None = 1000
    seed: int = 0
    logits: str | None = None
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    cbq: CbqConfig = field(default_factory=CbqConfig)

    def __post_init__(self) -> None:
        _check(self.method in METHODS, "--method", " or ".join(METHODS), self.method)
        _check(0 < self.bits <= MOST_BITS, "--bits", f"a number above 0 and up to {MOST_BITS}", self.bits)
        whole = float(self.bits).is_integer() or self.method != "uniform"
        _check(whole, "--bits", "a whole number with --method uniform", self.bits)
        _check(self.activation_bits in (0, 8), "--activation-bits", "8, or 0 for float", self.activation_bits)
        _check(self.samples is None or self.samples > 0, "--samples", "a number above 0", self.samples)
        _check(self.seed >= 0, "--seed", "a number of at least 0", self.seed)


def _check(holds: bool, name: str, expected: str, value: object) -> None:  # noqa: FBT001
    if not holds:
        raise ConfigError(f"{name}: expected {expected}, got {value}")
