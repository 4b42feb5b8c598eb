"""How weights become codes: with compensation for their errors, or each by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from onnx_cbq.evidence import Evidence, measure_by_nearest, measure_by_tables
from onnx_cbq.evidence.measure import PlanMeasure
from onnx_cbq.evidence.tables import run_of, table_parts
from onnx_cbq.quantize.grid import Channels
from onnx_cbq.quantize.problem import Problem
from onnx_cbq.quantize.weights import quantize_layer
from onnx_cbq.records import Layer, LayerWeights, Plan
from onnx_cbq.settings import check, either
from onnx_cbq.stages.compensation import Rounded, fitting_plan, kept_rounded, round_in_order
from onnx_cbq.stages.scene import Rounding, Scene


@dataclass(frozen=True)
class Compensate:
    """Layer after layer, each weight making up for the errors of those before it (`quantize.compensate`)."""

    name: ClassVar[str] = "compensate"
    about: ClassVar[str] = "weights make up for each other's errors"
    compensates: ClassVar[bool] = True

    def weights(
        self,
        scene: Scene,
        fitting: Callable[[Layer, Problem], Channels],
        nearest: Callable[[Layer], LayerWeights],  # noqa: ARG002
    ) -> Rounded:
        """Every layer by `fitting`."""
        return self.in_order(scene, fitting)

    def in_order(self, scene: Scene, fitting: Callable[[Layer, Problem], Channels]) -> Rounded:
        """Every layer by `fitting`, with the moments that the quantized layers in front leave it."""
        work, config = scene.work, scene.settings.compensation
        run = run_of(work, scene.drawn, config, scene.class_weights)
        simulated, progress = scene.simulated, scene.progress
        return round_in_order(work.model, simulated, work.layers, fitting, run, progress, work.engine)

    def measure(self, evidence: Evidence) -> PlanMeasure:
        """A measure of plans by the tables of every width."""
        return evidence.of(measure_by_tables)


@dataclass(frozen=True)
class Nearest:
    """Each weight to the nearest level; biases stay."""

    name: ClassVar[str] = "nearest"
    about: ClassVar[str] = "each weight to its nearest level"
    compensates: ClassVar[bool] = False

    def weights(
        self,
        scene: Scene,
        fitting: Callable[[Layer, Problem], Channels],  # noqa: ARG002
        nearest: Callable[[Layer], LayerWeights],
    ) -> Rounded:
        """Every layer by `nearest`."""
        return Rounded({layer.name: nearest(layer) for layer in scene.work.layers}, {}, ())

    def measure(self, evidence: Evidence) -> PlanMeasure:
        """A measure of plans by rounding to nearest."""
        return evidence.of(measure_by_nearest)


ROUNDINGS: tuple[Rounding, ...] = (Compensate(), Nearest())


def round_plan(scene: Scene, plan: Plan) -> Rounded:
    """Integer weights as planned."""
    work, rounding = scene.work, scene.settings.rounding

    def make() -> Rounded:
        return rounding.weights(
            scene,
            fitting_plan(plan, scene.settings.compensation),
            lambda layer: quantize_layer(layer, work.model.weight(layer.weight), plan.bits[layer.name]),
        )

    if not rounding.compensates:
        return make()
    return work.cache.of(kept_rounded(work.layers), lambda: [*_rounded_parts(scene), plan.bits], make)


def _rounded_parts(scene: Scene) -> list[object]:
    """What rounding in order depends on beside the plan."""
    work, simulated, digests = scene.work, scene.simulated, scene.work.cache.digests
    run = run_of(work, scene.drawn, scene.settings.compensation, scene.class_weights)
    seen = None if simulated is None else (digests.model(simulated.model), simulated.names)
    return [scene.settings.rounding, seen, *table_parts(work, run, work.layers.layers)]


def find_rounding(name: str) -> Rounding:
    """The rounding of that name.

    Raises:
        ConfigError: there is none.
    """
    found = {rounding.name: rounding for rounding in ROUNDINGS}
    check(name in found, "--rounding", either(tuple(found)), name)
    return found[name]
