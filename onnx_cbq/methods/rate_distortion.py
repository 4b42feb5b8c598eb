"""Bits where they lower the predicted loss most; what predicts it best is measured (`search.rate_distortion`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from onnx_cbq.evidence import Evidence, measure_by_tables
from onnx_cbq.evidence.kept import kept_losses
from onnx_cbq.evidence.measure import Measured, PlanMeasure
from onnx_cbq.methods.channels import FreeChannels, kept_layers
from onnx_cbq.methods.criteria import Usable, predicted_losses, usable
from onnx_cbq.methods.method import Fit, PlanMethod, Planned
from onnx_cbq.methods.unmeasured import ALIKE, plan_by_weights, unmeasured_note, why_alike
from onnx_cbq.model import Array
from onnx_cbq.quantize.table import WIDTHS
from onnx_cbq.records import Plan
from onnx_cbq.search.rate_distortion import Hopeless, RateDistortionConfig, search_plan
from onnx_cbq.settings import MOST_BITS
from onnx_cbq.stages.scene import Scene
from onnx_cbq.storage import Storage

# Width at which the loss that one layer causes is measured: low enough to stand out, high enough for the second order.
CALIBRATION_BITS = 2
# By how many bits on average a plan must be below what is asked for, for a note to say so.
_NOTED_REST = 0.1
# What a report calls the criterion where none can be measured, and what it adds to one that is scaled by layer.
_WEIGHTS, _MEASURED = "weights", "measured per layer"


@dataclass(frozen=True)
class LayerLosses:
    """What a layer alone loses, in nats of divergence; predicted losses are scaled by what was measured.

    Attributes:
        plan: predicted, with the widths of the plan.
        finest: predicted, with 8 bits for all its channels.
        coarse: measured, with `CALIBRATION_BITS` for all of them; `coarse_predicted` was predicted for that.
    """

    plan: float
    finest: float
    coarse: float
    coarse_predicted: float


@dataclass(frozen=True)
class SearchReport:
    """How a rate-distortion plan was found; losses are mean divergences from the float model, in nats.

    Attributes:
        criterion: the prediction whose plan was best.
        measured: the measured loss of each criterion's plan.
        loss: that of the plan in the end, after layers have traded bits.
        exchanges: trades that were accepted.
        plans: how many plans were measured.
        layers: what each layer alone loses, of those whose widths were searched.
    """

    criterion: str
    measured: Mapping[str, float]
    loss: float
    exchanges: int
    plans: int
    layers: Mapping[str, LayerLosses] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Which criterion made the plan, and what the others got."""
        others = ", ".join(f"{name} {loss:.4f}" for name, loss in sorted(self.measured.items(), key=lambda kv: kv[1]))
        return [
            f"plan: {self.criterion}, divergence {self.loss:.4f} nats after {self.exchanges} trades between layers",
            f"criteria before trading: {others}",
        ]

    def table(self) -> list[list[str]]:
        """None."""
        return []

    def to_json(self) -> dict[str, Any]:
        """Everything."""
        return asdict(self)


@dataclass(frozen=True)
class RateDistortion(RateDistortionConfig, PlanMethod):
    """The default: a plan by each criterion, the best of them by measured loss, and trades between its layers."""

    name: ClassVar[str] = "rate-distortion"
    about: ClassVar[str] = "bits where they lower the loss most"

    def fit(self, storage: Storage) -> Fit | None:
        """Any goal."""
        return None if storage.coded else Fit()

    def plan(self, scene: Scene, bits: float) -> Planned:
        """Widths of at most `bits` on average."""
        evidence, weights, keep = scene.evidence, scene.class_weights, scene.settings.keep
        can = evidence.of(usable)
        measure = evidence.of(measure_by_tables)
        free = FreeChannels(scene.work.layers, kept_layers(scene.work.layers, keep), bits)
        free.require_budget(keep, bits)
        search = replace(self, exchanges=0) if scene.hasty else self
        total = search.exchanges + len(free.layers)
        done = 0

        def tick() -> None:
            nonlocal done
            done += 1
            scene.progress("search", min(done, total), total)

        def losses(bits: Array, hopeless: Hopeless | None = None) -> Array:
            tick()
            stop = None if hopeless is None else lambda found: hopeless(found.losses(weights))
            return measure(free.plan(bits), stop).losses(weights)

        predicted, coarse = _predicted(free, evidence, can, _Run(measure, weights, tick))
        allowed = np.ones((len(free.sizes), WIDTHS), bool)
        found = search_plan(predicted, free.layer_of, free.sizes, allowed, free.budget, losses, search)
        layers = _layer_losses(free, predicted, coarse, found.bits)
        report = SearchReport(found.criterion, dict(found.measured), found.loss, found.exchanges, done, layers)
        spread = max(found.measured.values()) - min(found.measured.values())
        if spread < ALIKE and (why := why_alike(free, measure, weights)):
            plan = plan_by_weights(scene.work.model, free)
            loss = measure(plan).loss(weights)
            report = replace(report, criterion=_WEIGHTS, loss=loss, plans=done + 3, layers={})
            return Planned(plan, (*can.notes, unmeasured_note(why)), report)
        plan = free.plan(found.bits)
        return Planned(plan, (*can.notes, *_less_notes(plan.average_bits(scene.work.layers), bits)), report)


def _less_notes(average: float, bits: float) -> tuple[str, ...]:
    """A note about a plan that does not take what it was given."""
    if bits - average < _NOTED_REST:
        return ()
    return (f"{average:.3f} bits are enough of the {bits:g}: no prediction says that more would change anything",)


@dataclass(frozen=True)
class _Run:
    """How plans are measured: what classes count, and what is called for each."""

    measure: PlanMeasure
    class_weights: Array
    tick: Callable[[], None]

    def loss(self, found: Measured) -> float:
        """The mean loss of a sample."""
        return found.loss(self.class_weights)


@dataclass(frozen=True)
class _Coarse:
    """What layers lose alone at `CALIBRATION_BITS`, [layers], and the criterion that is scaled by the measured one."""

    criterion: str
    measured: Array
    predicted: Array


def _predicted(free: FreeChannels, evidence: Evidence, can: Usable, run: _Run) -> tuple[dict[str, Array], _Coarse]:
    """Losses [units, widths] by each criterion; by the first and by noise also with what layers cause, measured."""
    predicted = {
        criterion.name: free.sums(predicted_losses(criterion, free.layers, evidence, run.class_weights))
        for criterion in can.criteria
    }
    # Gradients that vanish everywhere, as behind saturated scores, say nothing of any width.
    telling = {name: losses for name, losses in predicted.items() if np.ptp(losses, axis=1).any()}
    predicted = telling or predicted
    first = next(iter(predicted))
    coarse = _Coarse(f"{first}, {_MEASURED}", _measured_alone(free, run), _per_layer(free, predicted[first]))
    factors = layer_factors(coarse.measured, coarse.predicted)
    for name in dict.fromkeys((first, *({"noise"} & predicted.keys()))):
        ratio = _per_layer(free, predicted[first]) / _per_layer(free, predicted[name])
        predicted[f"{name}, {_MEASURED}"] = predicted[name] * (ratio * factors)[free.layer_of][:, None]
    return predicted, coarse


def _layer_losses(
    free: FreeChannels, predicted: Mapping[str, Array], coarse: _Coarse, bits: Array
) -> dict[str, LayerLosses]:
    losses, count = predicted[coarse.criterion], len(free.layers)
    plan = np.bincount(free.layer_of, losses[np.arange(len(bits)), bits], count)
    finest = np.bincount(free.layer_of, losses[:, MOST_BITS], count)
    columns = zip(free.layers, plan, finest, coarse.measured, coarse.predicted, strict=True)
    return {layer.name: LayerLosses(*map(float, figures)) for layer, *figures in columns}


def _per_layer(free: FreeChannels, losses: Array) -> Array:
    """Predicted loss of each layer at `CALIBRATION_BITS`, [layers]."""
    sums = np.bincount(free.layer_of, losses[:, CALIBRATION_BITS], len(free.layers))
    return np.maximum(sums, np.finfo(np.float32).tiny)


def _measured_alone(free: FreeChannels, run: _Run) -> Array:
    """The loss that each layer causes alone at `CALIBRATION_BITS`, measured, [layers]."""
    finest = free.plan(np.full(len(free.sizes), MOST_BITS))
    coarse = free.plan(np.full(len(free.sizes), CALIBRATION_BITS))
    names, memory = [layer.name for layer in free.layers], run.measure.memory

    def parts() -> list[object]:
        return [memory.base(), finest.bits, coarse.bits, names, run.class_weights]

    kept = kept_losses(len(names))
    alone = memory.cache.find(kept, parts)
    if alone is None:
        alone = _alone(free, (finest, coarse), run)
        memory.cache.keep(kept, parts, alone)
    else:
        for _ in range(1 + len(names)):
            run.tick()
    return alone


def _alone(free: FreeChannels, plans: tuple[Plan, Plan], run: _Run) -> Array:
    """What is lost with each layer by itself as in the second of two plans, the others as in the first, [layers]."""
    finest, coarse = plans
    base, alone = run.loss(run.measure(finest)), []
    run.tick()
    changes = ((layer, run.measure.constants(coarse, [layer])) for layer in free.layers)
    for found in run.measure.alone(run.measure.constants(finest), changes):
        alone.append(run.loss(found) - base)
        run.tick()
    return np.array(alone)


def layer_factors(measured: Array, predicted: Array) -> Array:
    """Measured over predicted losses of layers; one that costs nothing by the samples at hand is not free of charge."""
    factors = measured / np.maximum(predicted, np.finfo(np.float64).tiny)
    positive = factors[factors > 0]
    return np.maximum(factors, 0.01 * float(np.median(positive)) if positive.size else 1.0)
