"""What a target demands of the integers in a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class WeightRules:
    """Demands on the codes and scales of a layer's weight.

    Attributes:
        top: the largest activation code that kernels multiply the codes with in 16-bit lanes (see `records.lanes`); 0
            where none does.
        per_tensor: all channels have one scale, and so one width.
        power_of_two: scales are powers of two.
    """

    top: int = 0
    per_tensor: bool = False
    power_of_two: bool = False


@dataclass(frozen=True)
class ActivationRules:
    """Demands on the grids of activations.

    Attributes:
        signed: codes are int8, and not uint8.
        symmetric: the zero point is 0, which makes half of the codes of what is never negative useless.
        power_of_two: scales are powers of two.
        least_range: from the lowest to the highest value.
    """

    signed: bool = False
    symmetric: bool = False
    power_of_two: bool = False
    least_range: float = 0.0


@dataclass(frozen=True)
class PlacementRules:
    """Demands on which tensors are quantized.

    Attributes:
        style: of `graph.placement`.
        keeping: operators whose output has the grid of their input, beside those that only move numbers.
        alike: operators all of whose inputs have the grid of their output.
    """

    style: Literal["kernels", "operands", "everywhere"] = "kernels"
    keeping: frozenset[str] = frozenset()
    alike: frozenset[str] = frozenset()


@dataclass(frozen=True)
class FileRules:
    """Demands on how nodes are written.

    Attributes:
        bias: "int32" in multiples of s_x s_w, "int8" in multiples of a power of two, or "float".
        units: every operator reads floats from DequantizeLinear and gives floats to QuantizeLinear; none works on
            integers itself.
        sizes: every size is fixed, the number of samples to 1.
        attributes: a Conv says all that it does, nothing is left to defaults.
    """

    bias: Literal["int32", "int8", "float"] = "int32"
    units: bool = False
    sizes: bool = False
    attributes: bool = False


FREE = WeightRules()
UNSIGNED = ActivationRules()
FUSED = PlacementRules()
KERNELS = FileRules()
