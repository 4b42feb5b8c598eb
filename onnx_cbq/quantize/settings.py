"""How rounding compensates."""

from __future__ import annotations

from dataclasses import dataclass

from onnx_cbq.settings import check, check_kinds


@dataclass(frozen=True)
class RoundingConfig:
    """How rounding compensates for its errors.

    Attributes:
        damping: what is added to the diagonal of the inputs' second moment at least, as a share of its mean; more
            where that is better on samples held back, or where it cannot be factorised otherwise.
        order: columns by "falling" second moment, or in the order of the "file".
        refits: how often scales are fitted to the codes and the codes to the scales after compensation.
        sweeps: passes of coordinate descent per refit.
        candidates: grids and scales that each channel is rounded to in full at most, where there are many long ones of
            one width: those that did best on some of them.
        rows: layer inputs that moments are taken over at most; with fewer samples than that, several positions of each.
        rows_per_weight: so many for each weight of a channel, if that is less.
        held_back: share of the samples that damping is chosen by; 0 for the least everywhere.
        passes: at most so many times the float and the quantized model are run side by side, so that layers see what
            the quantized layers in front of them give; deeper models share passes.
    """

    damping: float = 0.005
    order: str = "falling"
    refits: int = 3
    sweeps: int = 3
    candidates: int = 10
    rows: int = 24_000
    rows_per_weight: int = 100
    held_back: float = 0.25
    passes: int = 32

    def __post_init__(self) -> None:
        check_kinds(self)
        check(0 < self.damping < 1, "damping", "a number between 0 and 1", self.damping)
        check(0 <= self.held_back < 1, "held_back", "a number of at least 0, below 1", self.held_back)
        check(self.order in ("falling", "file"), "order", '"falling" or "file"', self.order)
        for name in ("refits", "sweeps"):
            check(getattr(self, name) >= 0, name, "a number of at least 0", getattr(self, name))
        for name in ("candidates", "rows", "rows_per_weight", "passes"):
            check(getattr(self, name) > 0, name, "a number above 0", getattr(self, name))
