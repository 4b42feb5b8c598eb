"""Spacings by sensitivity, codes by error and length, the rate by what the coder really spends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from onnx_cbq.evidence import Evidence, channel_costs, measure_by_nearest
from onnx_cbq.evidence.tables import chunks_of_moments
from onnx_cbq.methods.method import Fit, RateMethod, Spent, coded_bits
from onnx_cbq.methods.rate import meet_rate, rate_note
from onnx_cbq.methods.rate_distortion import layer_factors
from onnx_cbq.methods.unmeasured import unmeasured_note
from onnx_cbq.model import Array
from onnx_cbq.quantize.entropy import LARGEST, code_bits, fit_entropy, spacings_within
from onnx_cbq.quantize.grid import Channels
from onnx_cbq.quantize.problem import Problem, make_problem
from onnx_cbq.quantize.settings import RoundingConfig
from onnx_cbq.records import Layer
from onnx_cbq.search.rate_distortion import RateDistortionConfig
from onnx_cbq.search.spacings import find_tau, reference_tau, spacings_and_prices
from onnx_cbq.stages.compensation import Rounded
from onnx_cbq.stages.rounding import Compensate
from onnx_cbq.stages.scene import Scene
from onnx_cbq.stages.solution import Chosen, Solution
from onnx_cbq.storage import Storage
from onnx_cbq.training.records import Rate

# A price that outweighs every error, and float32 can add.
_LARGEST_PRICE = 1e30
_OPTION = "--storage archive"


@dataclass(frozen=True)
class SpacingEvidence:
    """What spacings are set by, for each layer by name.

    Attributes:
        weights: u_c of `search.spacings`, [channels].
        factors: measured loss of the layer over the predicted one.
    """

    weights: Mapping[str, Array]
    factors: Mapping[str, float]


def measured_spacings(evidence: Evidence) -> SpacingEvidence:
    """Every layer rounded alone at about two bits per weight, and what that costs beside what is predicted; a piece."""
    work, config = evidence.work, evidence.settings.compensation
    costs = _costs(evidence, evidence.class_weights)
    measure = evidence.of(measure_by_nearest)
    weights: dict[str, Array] = {}
    predicted: list[float] = []

    def alone() -> Iterator[tuple[Layer, Mapping[str, Array]]]:
        for done, (layer, problem) in enumerate(_problems(evidence, config), 1):
            name = layer.name
            weights[name] = _compensated(layer, problem)
            rows = layer.rows(work.model.weight(layer.weight))
            tau = reference_tau([costs[name]], [weights[name]], [_spread(rows)])
            spacings, prices = spacings_and_prices(costs[name], weights[name], tau)
            coded = fit_entropy(problem, spacings, prices, config)
            predicted.append(float(costs[name] @ coded.error))
            yield layer, {layer.weight: layer.unrows(coded.channels.values)}
            evidence.progress("spacings", done, len(work.layers))

    measured = [found.loss(evidence.class_weights) for found in measure.alone({}, alone())]
    factors = layer_factors(np.array(measured), np.array(predicted))
    return SpacingEvidence(weights, dict(zip(weights, factors.tolist(), strict=True)))


@dataclass(frozen=True)
class Entropy(RateMethod):
    """Weights for an archive, each on the spacing that its channel's sensitivity allows.

    Cost: two to `rate.PASSES` times that of rounding once.

    Attributes:
        held_back: share of the calibration samples of each class that layers are measured on, and nothing else.
    """

    name: ClassVar[str] = "entropy"
    about: ClassVar[str] = "spacings by sensitivity, codes by error and length"

    held_back: float = RateDistortionConfig.held_back

    @property
    def option(self) -> str:
        """It is what rate and distortion mean where bits are those of a coder."""
        return _OPTION

    @property
    def label(self) -> str:
        """As files have called it from the start."""
        return "rate-distortion"

    def fit(self, storage: Storage) -> Fit | None:
        """Archives only, and no plan of widths that a layer could keep."""
        return Fit(nearest=False, learned=False, keep=False) if storage.coded else None

    def choose(self, scene: Scene, bits: float) -> Chosen:
        """Weights that take at most `bits` each on average once coded."""
        chosen, rate = self.choose_at_rate(scene, bits, coded_bits(scene))
        return replace(chosen, notes=(*chosen.notes, rate_note(rate, bits)))

    def choose_at_rate(self, scene: Scene, bits: float, spent: Spent, codes: float = 1.0) -> tuple[Chosen, float]:
        """Weights that take at most `bits` each on average, and what they take."""
        spacings = scene.evidence.of(measured_spacings, "spacings")
        with scene.clock.stage("rounding"):
            rounded, rate = _round_at_rate(scene, spacings, bits, spent, codes)
        notes = (
            (unmeasured_note("no gradient reaches a layer"),) if _vanish(scene.evidence, scene.class_weights) else ()
        )
        return Chosen(rounded, notes), rate

    def coded_rate(self, scene: Scene, solution: Solution, room: int) -> Rate:
        """What the codes take now, and `room` bytes more."""
        storage = scene.settings.storage
        spent = storage.coded_bits
        return Rate(spent(list(solution.rounded.weights.values())) + 8 * room, spent, storage)


def _round_at_rate(
    scene: Scene, spacings: SpacingEvidence, bits: float, spent: Spent, codes: float
) -> tuple[Rounded, float]:
    """Weights that take at most so many bits each on average, and what they take."""
    work, settings = scene.work, scene.settings
    sensitivity = _costs(scene.evidence, scene.class_weights)
    costs = {name: value * spacings.factors[name] for name, value in sensitivity.items()}
    rows = {layer.name: layer.rows(work.model.weight(layer.weight)) for layer in work.layers}
    total = work.layers.size

    def grids(tau: float) -> dict[str, tuple[Array, Array]]:
        found = {name: spacings_and_prices(costs[name], spacings.weights[name], tau) for name in costs}
        return {name: (spacing, np.minimum(price, _LARGEST_PRICE)) for name, (spacing, price) in found.items()}

    def estimate(tau: float) -> float:
        return sum(code_bits(_nearest(rows[name], spacing)) for name, (spacing, _) in grids(tau).items()) / total

    known = [(costs[name], spacings.weights[name], _spread(rows[name])) for name in costs]
    start = reference_tau(*zip(*known, strict=True))

    def find(wanted: float) -> tuple[float, float]:
        tau = find_tau(estimate, wanted, start)
        return tau, estimate(tau)

    def make(tau: float) -> Rounded:
        found = grids(tau)

        def fitting(layer: Layer, problem: Problem) -> Channels:
            return fit_entropy(problem, *found[layer.name], settings.compensation).channels

        return Compensate().in_order(scene, fitting)

    return meet_rate(bits, find, make, spent, codes)


def _vanish(evidence: Evidence, class_weights: Array) -> bool:
    """Whether no gradient reaches any layer, as behind saturated scores or a head of zeros."""
    return not any(cost.any() for cost in channel_costs(evidence, class_weights, _OPTION).values())


def _costs(evidence: Evidence, class_weights: Array) -> dict[str, Array]:
    """a_c of every layer; where none is known, what makes errors count relative to the weights of their layer."""
    if not _vanish(evidence, class_weights):
        return channel_costs(evidence, class_weights, _OPTION)
    found = {}
    for layer in evidence.work.layers:
        power = float(np.square(evidence.work.model.weight(layer.weight), dtype=np.float64).mean()) or 1.0
        found[layer.name] = np.full(layer.channels, 1 / power)
    return found


def _nearest(rows: Array, spacings: Array) -> Array:
    within = spacings_within(rows, spacings)
    return np.clip(np.rint(rows / within[:, None]), -LARGEST, LARGEST).astype(np.int8)


def _problems(evidence: Evidence, config: RoundingConfig) -> Iterator[tuple[Layer, Problem]]:
    """Every layer's problem by the moments of the float model, as many moments at once as there is memory for."""
    work = evidence.work
    for moments in chunks_of_moments(work, evidence.run):
        for name, found in moments.items():
            layer = work.layers.by_name[name]
            yield layer, make_problem(layer.rows(work.model.weight(layer.weight)), found, config, layer)


def _compensated(layer: Layer, problem: Problem) -> Array:
    """u_c, [channels]: the channels of a group share it."""
    weights = problem.compensated_weights().mean(axis=1)
    return np.repeat(weights, layer.channels // len(weights))


def _spread(rows: Array) -> Array:
    """Standard deviation of the weights of each row, [channels]; of a row of equal ones their size."""
    deviation = rows.std(axis=1)
    size = np.maximum(np.abs(rows).max(axis=1), np.finfo(np.float32).tiny)
    return np.asarray(np.where(deviation > 0, deviation, size))
