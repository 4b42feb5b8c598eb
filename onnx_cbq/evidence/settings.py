"""When a neuron counts as critical."""

from __future__ import annotations

from dataclasses import dataclass

from onnx_cbq.settings import check, check_kinds


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
        check_kinds(self)
        check(0 <= self.epsilon < float("inf"), "epsilon", "a number of at least 0", self.epsilon)
