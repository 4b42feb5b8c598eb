"""What a goal is: it has a method choose until something is met."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from onnx_cbq.methods import Method
from onnx_cbq.settings import MOST_BITS, check
from onnx_cbq.stages.scene import Scene
from onnx_cbq.stages.solution import Solution, make_solution
from onnx_cbq.storage import Storage


@dataclass(frozen=True)
class Met:
    """A solution that meets a goal, the bits that it was chosen for, and what a user should know."""

    solution: Solution
    bits: float
    notes: tuple[str, ...] = ()


class Goal(ABC):
    """How far to go.

    A member is a frozen dataclass whose fields are its settings. The members are `onnx_cbq.goals.GOALS`.

    Attributes:
        name: by which methods say whether they can meet it.
        options: how users ask for it.
    """

    name: ClassVar[str]
    options: ClassVar[str]

    @classmethod
    def of(cls, bits: float, given: Mapping[str, Any]) -> Goal:  # noqa: ARG003
        """The goal with what its fields were given, where `bits` on average are asked for."""
        return cls(**given)

    @property
    @abstractmethod
    def option(self) -> str:
        """How the user asked for it."""

    @property
    @abstractmethod
    def bits(self) -> float:
        """About how many bits on average it will come to; layers are equalized for these."""

    @property
    def finds_bits(self) -> bool:
        """Whether it takes the place of an average that is asked for."""
        return False

    @property
    def largest(self) -> int | None:
        """Bytes that the file may have; None for any."""
        return None

    def goes_with(self, storage: Storage) -> str:  # noqa: ARG002
        """What storage it takes, where it does not take this one; "" where it does."""
        return ""

    @abstractmethod
    def meet(self, scene: Scene, method: Method) -> Met:
        """A solution that meets the goal.

        Raises:
            VerificationError: there is none.
        """


def solve(scene: Scene, method: Method, bits: float) -> Solution:
    """What is written of the weights that a method chooses for `bits`."""
    return make_solution(scene, method.choose(scene, bits))


def check_bits(bits: float) -> None:
    """Refuse an average of bits that no plan has.

    Raises:
        ConfigError: it is none.
    """
    check(0 < bits <= MOST_BITS, "--bits", f"a number above 0 and up to {MOST_BITS}", bits)
