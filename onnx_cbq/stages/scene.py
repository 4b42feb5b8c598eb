"""Everything that solutions are made from, gathered before the first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol

from onnx_cbq.calibration.draw import Draw
from onnx_cbq.evidence import Evidence, EvidenceSettings
from onnx_cbq.evidence.clusters import find_groups
from onnx_cbq.evidence.measure import PlanMeasure
from onnx_cbq.evidence.workload import Workload
from onnx_cbq.model import Array
from onnx_cbq.quantize.activations import Histogram
from onnx_cbq.quantize.grid import Channels
from onnx_cbq.quantize.problem import Problem
from onnx_cbq.quantize.settings import RoundingConfig
from onnx_cbq.records import ActivationGrid, Layer, LayerWeights, Seen
from onnx_cbq.stages.activations import ActivationSettings, grids_for, see_activations
from onnx_cbq.stages.compensation import Rounded
from onnx_cbq.stages.samples import SampleSettings, draw_samples, weights_of
from onnx_cbq.storage.qdq import simulate_activations
from onnx_cbq.storage.storage import Storage
from onnx_cbq.system.progress import Clock, Progress, silent


class Rounding(Protocol):
    """How weights become codes. The members are `stages.rounding.ROUNDINGS`."""

    name: ClassVar[str]
    about: ClassVar[str]
    # Whether weights make up for each other's errors, which needs samples.
    compensates: ClassVar[bool]
    # Whether gradients of the whole net take part, beyond single layers and their rows.
    learns: ClassVar[bool]

    def weights(
        self,
        scene: Scene,
        fitting: Callable[[Layer, Problem], Channels],
        nearest: Callable[[Layer], LayerWeights],
    ) -> Rounded:
        """Every layer by one of two functions: from its problem of least squares, or from its weights alone."""

    def measure(self, evidence: Evidence) -> PlanMeasure:
        """A measure of plans whose weights are rounded in this way."""


@dataclass(frozen=True)
class SceneSettings:
    """What a scene is gathered by.

    Attributes:
        keep: (pattern, bits) pairs: layers whose names match a pattern keep that width, as in a shell.
        clusters: how many groups to join the classes to by confusion, or the groups; None for each class by itself.
        spared: share of each class that training behind the method holds back; 0 for none.
        compensation: how rounding compensates.
    """

    rounding: Rounding
    storage: Storage
    samples: SampleSettings = field(default_factory=SampleSettings)
    activations: ActivationSettings = field(default_factory=ActivationSettings)
    evidence: EvidenceSettings = field(default_factory=EvidenceSettings)
    keep: tuple[tuple[str, int], ...] = ()
    clusters: int | tuple[tuple[str, ...], ...] | None = None
    spared: float = 0.0

    @property
    def compensation(self) -> RoundingConfig:
        """How rounding compensates, in tables as in the result."""
        return self.evidence.compensation


@dataclass(frozen=True, eq=False)
class Scene:
    """What solutions are made from.

    Attributes:
        drawn: the calibration samples.
        class_weights: what a sample counts, by its class, [classes]; limits may raise those of some classes.
        grids: how activations are quantized.
        simulated: the float model with them quantized; None if there are none.
        hasty: whether methods should do without what takes long and changes little.
        seen: the values of the activations that have a grid.
    """

    work: Workload
    settings: SceneSettings
    drawn: Draw
    class_weights: Array
    evidence: Evidence
    grids: Mapping[str, ActivationGrid]
    simulated: Seen | None = None
    clock: Clock = field(default_factory=Clock)
    progress: Progress = silent
    hasty: bool = False
    seen: Mapping[str, Histogram] = field(default_factory=dict)

    @property
    def int32_biases(self) -> dict[str, tuple[str, str]]:
        """Biases that are written as multiples of s_x s_w, by name: the layer, and the tensor whose grid has s_x."""
        found = {}
        for layer in self.work.layers:
            for use in layer.uses:
                grid = self.work.placement.grid_of(use.activation)
                if self.work.target.file.bias == "int32" and use.bias is not None and grid in self.grids:
                    found[use.bias] = layer.name, grid
        return found

    def weighing(self, class_weights: Array) -> Scene:
        """The same scene with other class weights."""
        return replace(self, class_weights=class_weights)

    def in_haste(self) -> Scene:
        """The same scene for methods in haste."""
        return replace(self, hasty=True)


def make_scene(
    work: Workload, settings: SceneSettings, clock: Clock | None = None, progress: Progress = silent
) -> Scene:
    """Draw the samples and choose the grids of activations; evidence is gathered when it is asked for.

    `work` is aimed at its target already.

    Raises:
        OnnxCbqError: the samples are too few, a class is unknown, or a tensor is not finite.
    """
    clock = clock or Clock()
    weights = weights_of(work, settings.samples)
    share = settings.samples.held_back
    with clock.stage("statistics"):
        drawn = draw_samples(work, settings.samples, weights)
        train, held = drawn.split(share) if share else (drawn, drawn)
        groups = find_groups(work, drawn, settings.clusters)
    with clock.stage("activations"):
        seen = see_activations(work, work.placement.measured, drawn, progress)
        grids = grids_for(work, seen, work.widths(settings.activations.bits), settings.activations.range)
        simulated = simulate_activations(work.model, work.placement, grids) if grids else None
    evidence = Evidence(work, train, held, weights, groups, settings.evidence, clock, progress)
    return Scene(work, settings, drawn, weights, evidence, grids, simulated, clock, progress, seen=seen)
