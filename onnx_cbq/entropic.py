"""Weights for an archive: steps by sensitivity, codes by error and length, the rate by what the coder really spends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from onnx_cbq.config import RoundingConfig
from onnx_cbq.emit.archive import coded_bits
from onnx_cbq.measure import PlanMeasure
from onnx_cbq.model import Array
from onnx_cbq.planning import Evidence, layer_factors
from onnx_cbq.progress import Progress, silent
from onnx_cbq.quantize.entropy import LARGEST, code_bits, fit_entropy
from onnx_cbq.quantize.grid import Channels
from onnx_cbq.quantize.problem import Problem, make_problem
from onnx_cbq.records import Layer, Seen
from onnx_cbq.rounding import Rounded, chunks_of_moments, round_in_order
from onnx_cbq.search.steps import find_tau, reference_tau, steps_and_prices
from onnx_cbq.statistics import Run
from onnx_cbq.workload import Workload

# The rate may be this much below what was asked for, as a share.
TOLERANCE = 0.01
# How often the weights are rounded at most to meet it.
PASSES = 6
# What the coder spends beside the estimate, before it is known.
_FIRST_GUESS = 0.95


@dataclass(frozen=True)
class StepEvidence:
    """What steps are set by, for each layer by name.

    Attributes:
        weights: u_c of `search.steps`, [channels].
        factors: measured loss of the layer over the predicted one.
    """

    weights: Mapping[str, Array]
    factors: Mapping[str, float]


def measure_steps(
    work: Workload,
    evidence: Evidence,
    measure: PlanMeasure,
    run: Run,
    config: RoundingConfig,
    progress: Progress = silent,
) -> StepEvidence:
    """Round every layer alone at about two bits per weight, and measure what that costs beside what is predicted."""
    class_weights = run.class_weights
    sensitivity = _sensitivity(work, evidence, class_weights)
    weights, predicted, measured = {}, [], []
    for done, (layer, problem) in enumerate(_problems(work, run, config), 1):
        name = layer.name
        weights[name] = _compensated(layer, problem)
        rows = layer.rows(work.model.weight(layer.weight))
        tau = reference_tau([sensitivity[name]], [weights[name]], [rows.std(axis=1)])
        steps, prices = steps_and_prices(sensitivity[name], weights[name], tau)
        coded = fit_entropy(problem, steps, prices, config)
        predicted.append(float(sensitivity[name] @ coded.error))
        levels = layer.unrows(coded.channels.values)
        measured.append(float(measure.run({layer.weight: levels}).losses(class_weights).mean()))
        progress("steps", done, len(work.layers))
    factors = layer_factors(np.array(measured), np.array(predicted))
    return StepEvidence(weights, dict(zip(weights, factors.tolist(), strict=True)))


def round_at_rate(
    work: Workload,
    simulated: Seen | None,
    evidence: tuple[Evidence, StepEvidence],
    rate: tuple[float, str],
    run: Run,
    config: RoundingConfig,
    progress: Progress = silent,
) -> tuple[Rounded, float]:
    """Weights that take at most so many bits each on average once coded by the coder, and what they take.

    Cost: two to `PASSES` times that of `rounding.round_in_order`.
    """
    (found, steps), (bits, coder) = evidence, rate
    sensitivity = _sensitivity(work, found, run.class_weights)
    costs = {name: value * steps.factors[name] for name, value in sensitivity.items()}
    rows = {layer.name: layer.rows(work.model.weight(layer.weight)) for layer in work.layers}
    total = work.layers.size

    def settings(tau: float) -> dict[str, tuple[Array, Array]]:
        return {name: steps_and_prices(costs[name], steps.weights[name], tau) for name in costs}

    def estimate(tau: float) -> float:
        return sum(code_bits(_nearest(rows[name], step)) for name, (step, _) in settings(tau).items()) / total

    known = [(costs[name], steps.weights[name], rows[name].std(axis=1)) for name in costs]
    start = reference_tau(*zip(*known, strict=True))
    # Every time the coder spends too much, the next aim is lower by another share of the tolerance.
    ratio, margin, best = _FIRST_GUESS, TOLERANCE / 2, None
    for _ in range(PASSES):
        tau = find_tau(estimate, bits * (1 - margin) / ratio, start)
        rounded = round_in_order(
            work.model, simulated, work.layers, _fitting(settings(tau), config), run, config, progress
        )
        spent = coded_bits([(w.codes, w.bits) for w in rounded.weights.values()], coder) / total
        if spent <= bits and (best is None or spent > best[1]):
            best = rounded, spent
        if bits * (1 - TOLERANCE) <= spent <= bits:
            break
        margin += TOLERANCE / 2 if spent > bits else 0
        ratio, start = spent / estimate(tau), tau
    return best or (rounded, spent)


def _fitting(
    settings: Mapping[str, tuple[Array, Array]], config: RoundingConfig
) -> Callable[[Layer, Problem], Channels]:
    """Channels by the steps and prices of each layer."""
    return lambda layer, problem: fit_entropy(problem, *settings[layer.name], config).channels


def _nearest(rows: Array, steps: Array) -> Array:
    return np.clip(np.rint(rows / steps[:, None]), -LARGEST, LARGEST).astype(np.int8)


def _problems(work: Workload, run: Run, config: RoundingConfig) -> Iterator[tuple[Layer, Problem]]:
    """Every layer's problem by the moments of the float model, as many moments at once as there is memory for."""
    for moments in chunks_of_moments(work, run):
        for name, found in moments.items():
            layer = work.layers.by_name[name]
            yield layer, make_problem(layer.rows(work.model.weight(layer.weight)), found, config)


def _compensated(layer: Layer, problem: Problem) -> Array:
    """u_c, [channels]: the channels of a group share it."""
    weights = problem.compensated_weights().mean(axis=1)
    return np.repeat(weights, layer.channels // len(weights))


def _sensitivity(work: Workload, evidence: Evidence, class_weights: Array) -> dict[str, Array]:
    """a_c of every layer: half the mean square of the gradient at the channel's outputs, by classes that matter."""
    assert evidence.sensitivity is not None
    shares = evidence.groups.sums(class_weights) / class_weights.sum()
    return {layer.name: 0.5 * (shares @ evidence.sensitivity[layer.name]) for layer in work.layers}
