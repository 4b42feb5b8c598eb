"""What a method is: it chooses weights of so many bits, and says with what it goes together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from onnx_cbq.records import LayerWeights, Plan
from onnx_cbq.stages.compensation import Rounded, round_to_nearest
from onnx_cbq.stages.rounding import round_plan
from onnx_cbq.stages.scene import Scene
from onnx_cbq.stages.solution import Chosen, MethodReport, NoReport, Solution
from onnx_cbq.storage import Storage
from onnx_cbq.training.records import Rate

# What weights take, in bits each.
Spent = Callable[[Rounded], float]


@dataclass(frozen=True)
class Fit:
    """What a method goes together with, for one storage.

    Attributes:
        goals: whether it can meet goals that take several attempts; else only so many bits can be asked for.
        nearest: whether weights may be rounded each by itself.
        learned: whether rounding may be learned; not where codes have a price, or a layer's weights share values.
        keep: whether layers may keep a width.
        fractions: whether the average of bits may be a fraction.
    """

    goals: bool = True
    nearest: bool = True
    learned: bool = True
    keep: bool = True
    fractions: bool = True


@dataclass(frozen=True)
class Learning:
    """That a method trains on all samples of the card, and how: by changed images, and so much by labels."""

    augment: tuple[str, ...]
    alpha: float


class Method(ABC):
    """How widths and codes are chosen.

    A member is a frozen dataclass whose fields are its settings. The members are `onnx_cbq.methods.METHODS`.

    Attributes:
        name: as `--method` takes it, or what makes another method of it.
        about: what it is, for people, in a line.
        shares_values: whether weights take the values of a codebook, so that plans of widths mean nothing.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    shares_values: ClassVar[bool] = False

    @property
    def option(self) -> str:
        """How a user asks for it."""
        return f"--method {self.name}"

    @property
    def label(self) -> str:
        """What the file says that it was made by."""
        return self.name

    def fit(self, storage: Storage) -> Fit | None:
        """What else the method goes together with where weights are stored so; None if it cannot choose for that."""
        return None if storage.coded else Fit(goals=False)

    @property
    def held_back(self) -> float:
        """Share of the samples that plans are measured on; 0 for none."""
        return 0.0

    @property
    def gathers(self) -> bool:
        """Whether anything but rounding and activations is estimated from samples."""
        return True

    @property
    def learning(self) -> Learning | None:
        """How the method trains; None if it does not, and works without torch."""
        return None

    @abstractmethod
    def choose(self, scene: Scene, bits: float) -> Chosen:
        """Weights that take `bits` each on average.

        Raises:
            ConfigError: the layers that are kept leave nothing to meet the budget with.
            UnsupportedOperatorError: an operator has no gradient, and the method needs one.
        """

    def coded_rate(self, scene: Scene, solution: Solution, room: int) -> Rate | None:  # noqa: ARG002
        """What training may spend on the codes, `room` bytes more than now; None if each channel keeps its width."""
        return None

    def trial_weights(self, weights: LayerWeights) -> LayerWeights:
        """Weights of the trial, which goes the whole way before the long stages, in the form that the method gives."""
        return weights


class RateMethod(Method):
    """A method whose weights take as many bits as something says that they do: the coder, or the whole file."""

    @abstractmethod
    def choose_at_rate(self, scene: Scene, bits: float, spent: Spent, codes: float = 1.0) -> tuple[Chosen, float]:
        """Weights that take at most `bits` each, and what they take.

        Args:
            scene: what is known.
            bits: per weight.
            spent: what weights take, in bits each.
            codes: the share of that which their codes are thought to take.
        """


def coded_bits(scene: Scene) -> Spent:
    """What the coder of the storage spends."""
    storage, total = scene.settings.storage, scene.work.layers.size
    return lambda rounded: storage.coded_bits(list(rounded.weights.values())) / total


@dataclass(frozen=True)
class Planned:
    """A plan, what a user should know of it, and how it was found."""

    plan: Plan
    notes: tuple[str, ...] = ()
    report: MethodReport = field(default_factory=NoReport)


class PlanMethod(Method):
    """A method that plans a width for every channel, whatever the weights are rounded by."""

    @abstractmethod
    def plan(self, scene: Scene, bits: float) -> Planned:
        """Widths of at most `bits` on average."""

    def choose(self, scene: Scene, bits: float) -> Chosen:
        """The plan, and weights rounded by it."""
        with scene.clock.stage("search"):
            planned = self.plan(scene, bits)
        with scene.clock.stage("rounding"):
            return Chosen(round_plan(scene, planned.plan), planned.notes, planned.report)

    def sketch(self, scene: Scene, bits: float) -> Chosen:
        """The plan, and weights rounded to nearest: about the file that `choose` would make, in no time."""
        with scene.clock.stage("search"):
            planned = self.plan(scene, bits)
        rounded = round_to_nearest(scene.work.model, scene.work.layers, planned.plan)
        return Chosen(rounded, planned.notes, planned.report)
