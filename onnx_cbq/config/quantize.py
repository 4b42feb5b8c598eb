"""Settings of a run without samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnx_cbq.config.checks import STORAGES
from onnx_cbq.settings import CHOOSE, FIRST, MOST_BITS, check, either, option


@dataclass(frozen=True)
class DataFreeConfig:
    """How weights are quantized without samples.

    Attributes:
        bits: average bits per weight, 2 to 8; where it is no whole number, widths follow the weights' distortion.
        scheme: how weights are quantized.
        per_tensor: one scale for a whole layer, instead of one per channel.
        storage: as in `QuantizeConfig`.
    """

    SCHEMES: ClassVar[tuple[str, ...]] = ("mse", "symmetric", "asymmetric", "power-of-two", "log")

    bits: float = option(8.0, FIRST, "B")
    scheme: str = option(SCHEMES[0], CHOOSE, "|".join(SCHEMES))
    per_tensor: bool = option(default=False, panel=CHOOSE, shown="one per channel")
    storage: str = option("int8", FIRST)

    def __post_init__(self) -> None:
        check(self.storage in STORAGES[:2], "--storage", f"{either(STORAGES[:2])} with --data-free", self.storage)
        check(self.scheme in self.SCHEMES, "--scheme", either(self.SCHEMES), self.scheme)
        check(2 <= self.bits <= MOST_BITS, "--bits", f"2 to {MOST_BITS} with --data-free", self.bits)
