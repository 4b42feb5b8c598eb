"""How weights become codes: each by itself, with compensation for its error, or learned from there on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from onnx_cbq.calibration.draw import MOST_HELD, draw
from onnx_cbq.calibration.samples import Indices
from onnx_cbq.errors import UnsupportedOperatorError
from onnx_cbq.evidence import Evidence, measure_by_nearest, measure_by_tables
from onnx_cbq.evidence.measure import PlanMeasure
from onnx_cbq.evidence.tables import run_of, table_parts
from onnx_cbq.learned.descent import LEARNED, learn
from onnx_cbq.learned.settings import LearnedConfig
from onnx_cbq.learned.teacher import Lesson
from onnx_cbq.quantize.grid import Channels
from onnx_cbq.quantize.problem import Problem
from onnx_cbq.quantize.weights import quantize_layer
from onnx_cbq.records import Layer, LayerWeights, Plan
from onnx_cbq.settings import check, either
from onnx_cbq.stages.compensation import Fitting, Rounded, fitting_plan, kept_rounded, round_in_order
from onnx_cbq.stages.scene import Rounding, Scene


@dataclass(frozen=True)
class Compensate:
    """Layer after layer, each weight making up for the errors of those before it (`quantize.compensate`)."""

    name: ClassVar[str] = "compensate"
    about: ClassVar[str] = "weights make up for each other's errors"
    compensates: ClassVar[bool] = True
    learns: ClassVar[bool] = False

    def weights(
        self,
        scene: Scene,
        fitting: Callable[[Layer, Problem], Channels],
        nearest: Callable[[Layer], LayerWeights],  # noqa: ARG002
    ) -> Rounded:
        """Every layer by `fitting`."""
        return self.in_order(scene, fitting)

    def in_order(self, scene: Scene, fitting: Callable[[Layer, Problem], Channels]) -> Rounded:
        """Every layer by `fitting`, with the moments that the quantized layers in front leave it.

        In files where fewer bits of a number take less room, biases have no more than they need.
        """
        work, config = scene.work, scene.settings.compensation
        run = run_of(work, scene.drawn, config, scene.class_weights)
        units = {bias: scene.grids[grid].scale for bias, (_, grid) in scene.int32_biases.items()}
        found = Fitting(fitting, units if scene.settings.storage.coded else None)
        return round_in_order(work.model, scene.simulated, work.layers, found, run, scene.progress, work.engine)

    def measure(self, evidence: Evidence) -> PlanMeasure:
        """A measure of plans by the tables of every width."""
        return evidence.of(measure_by_tables)


@dataclass(frozen=True)
class Nearest:
    """Each weight to the nearest level; biases stay."""

    name: ClassVar[str] = "nearest"
    about: ClassVar[str] = "each weight to its nearest level"
    compensates: ClassVar[bool] = False
    learns: ClassVar[bool] = False

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


# Layers that a note names.
_NAMED = 5


@dataclass(frozen=True)
class Learn(LearnedConfig, Compensate):
    """Codes, scales and biases by gradients of the whole net, from where compensation leaves them (`learned`)."""

    name: ClassVar[str] = "learned"
    about: ClassVar[str] = (
        "as compensate, and then codes, scales and biases follow the gradient of the net's divergence"
    )
    learns: ClassVar[bool] = True

    def go_on(self, scene: Scene, rounded: Rounded) -> Rounded:
        """From compensated weights to better ones, where samples held back say so."""
        learned, held = self.samples_of(scene)
        if not len(held):
            return rounded.noting("--rounding learned: a single sample, so nothing was learned; give more samples")
        groups, seed = scene.evidence.groups, scene.settings.samples.seed
        lesson = Lesson(scene.work, scene.grids, learned, held, scene.class_weights, groups, seed)
        try:
            found = learn(lesson, rounded.weights, rounded.biases, self, scene.progress)
        except UnsupportedOperatorError as error:
            what = str(error).partition(";")[0]
            return rounded.noting(f"--rounding learned: {what}: nothing was learned, weights are as compensated")
        better = replace(rounded, weights=found.weights, biases=found.biases, grids=found.grids)
        if found.left:
            more = f" and {len(found.left) - _NAMED} more layers" if len(found.left) > _NAMED else ""
            names = ", ".join(found.left[:_NAMED])
            better = better.noting(f"--rounding learned: weights stay as compensated in {names}{more}")
        if found.skipped:
            better = better.noting(
                f"--rounding learned: {found.skipped} updates did nothing: gradients were not finite"
            )
        until = ", until the minutes were over" if found.by_time else ""
        after = f"{found.after:.4f} kept (update {found.kept})" if found.kept else "never less, so the start is kept"
        return better.noting(
            f"--rounding learned: {found.updates} updates on {len(learned):,} samples of the card (evaluate with "
            f"others){until}; divergence on samples held back {found.before:.4f} before, {after}"
        )

    def samples_of(self, scene: Scene) -> tuple[Indices, Indices]:
        """The card's samples of the classes that count: to learn from, and some held back."""
        counted = np.flatnonzero(scene.class_weights).tolist()
        drawn = draw(scene.work.samples, scene.work.class_names, None, scene.settings.samples.seed, counted)
        learned, held = drawn.split(self.held_back, MOST_HELD)
        return learned.indices, held.indices


ROUNDINGS: tuple[Rounding, ...] = (Compensate(), Nearest(), Learn())


def round_plan(scene: Scene, plan: Plan) -> Rounded:
    """Integer weights as planned; methods in haste learn nothing."""
    work, rounding = scene.work, scene.settings.rounding

    def make() -> Rounded:
        return rounding.weights(
            scene,
            fitting_plan(plan, scene.settings.compensation),
            lambda layer: quantize_layer(layer, work.model.weight(layer.weight), plan.bits[layer.name]),
        )

    if not rounding.compensates:
        return make()

    def parts() -> list[object]:
        run = run_of(work, scene.drawn, scene.settings.compensation, scene.class_weights)
        simulated, digests = scene.simulated, work.cache.digests
        seen = None if simulated is None else (digests.model(simulated.model), simulated.names)
        return [Compensate(), seen, *table_parts(work, run, work.layers.layers), plan.bits]

    rounded = work.cache.of(kept_rounded(work.layers), parts, make)
    if not isinstance(rounding, Learn) or scene.hasty:
        return rounded

    def parts_learned() -> list[object]:
        outputs = work.logits, work.further.counted, scene.evidence.groups
        samples = [work.cache.digests.samples(work.samples, part) for part in rounding.samples_of(scene)]
        return [*parts(), scene.grids, rounding, scene.settings.samples.seed, *outputs, *samples]

    kept = kept_rounded(work.layers, "learned rounding", LEARNED)
    return work.cache.of(kept, parts_learned, lambda: rounding.go_on(scene, rounded))


def find_rounding(name: str, fields: Callable[[type], Mapping[str, Any]] = lambda _: {}) -> Rounding:
    """The rounding of that name, with the `fields` that its kind is given.

    Raises:
        ConfigError: there is none.
    """
    found = {rounding.name: rounding for rounding in ROUNDINGS}
    check(name in found, "--rounding", either(tuple(found)), name)
    kind: type[Any] = type(found[name])
    made: Rounding = kind(**fields(kind))
    return made
