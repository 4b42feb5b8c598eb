"""So many bits per weight on average."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from onnx_cbq.goals.goal import Goal, Met, check_bits, solve
from onnx_cbq.methods import Method
from onnx_cbq.settings import check_kinds
from onnx_cbq.stages.scene import Scene


@dataclass(frozen=True)
class Bits(Goal):
    """So many bits per weight on average, over all layers."""

    name: ClassVar[str] = "bits"
    options: ClassVar[str] = "--bits"

    average: float = 4.0

    def __post_init__(self) -> None:
        check_kinds(self)
        check_bits(self.average)

    @classmethod
    def of(cls, bits: float, given: Mapping[str, Any]) -> Goal:  # noqa: ARG003
        """The goal with what its fields were given."""
        return cls(bits)

    @property
    def option(self) -> str:
        """How a user asks for it."""
        return "--bits"

    @property
    def bits(self) -> float:
        """Those asked for."""
        return self.average

    def meet(self, scene: Scene, method: Method) -> Met:
        """What the method chooses."""
        return Met(solve(scene, method, self.average), self.average)
