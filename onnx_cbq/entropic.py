"""Weights for an archive: steps by sensitivity, codes by error and length, the rate by what the coder really spends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

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

_S = TypeVar("_S")

# The rate may be this much below what was asked for, as a share.
TOLERANCE = 0.01
# How often the weights are rounded at most to meet it.
PASSES = 6
# What the coder spends beside the estimate, before it is known.
_FIRST_GUESS = 0.95
_LEAST_RATE = 1e-6
# A price that outweighs every error, and float32 can add.
_LARGEST_PRICE = 1e30
# Between two attempts what is spent grows as a power of the estimate, and no other than these.
_SLOPES = (0.25, 4.0)


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
    sensitivity = channel_costs(work, evidence, class_weights)
    weights, predicted, measured = {}, [], []
    for done, (layer, problem) in enumerate(_problems(work, run, config), 1):
        name = layer.name
        weights[name] = _compensated(layer, problem)
        rows = layer.rows(work.model.weight(layer.weight))
        tau = reference_tau([sensitivity[name]], [weights[name]], [_spread(rows)])
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
    sensitivity = channel_costs(work, found, run.class_weights)
    costs = {name: value * steps.factors[name] for name, value in sensitivity.items()}
    rows = {layer.name: layer.rows(work.model.weight(layer.weight)) for layer in work.layers}
    total = work.layers.size

    # A step of four times the largest weight makes every code 0; a layer that nothing depends on would have any.
    reach = {name: 4 * np.maximum(np.abs(row).max(axis=1), np.finfo(np.float32).tiny) for name, row in rows.items()}

    def settings(tau: float) -> dict[str, tuple[Array, Array]]:
        found = {name: steps_and_prices(costs[name], steps.weights[name], tau) for name in costs}
        return {
            name: (np.minimum(step, reach[name]), np.minimum(price, _LARGEST_PRICE))
            for name, (step, price) in found.items()
        }

    def estimate(tau: float) -> float:
        return sum(code_bits(_nearest(rows[name], step)) for name, (step, _) in settings(tau).items()) / total

    known = [(costs[name], steps.weights[name], _spread(rows[name])) for name in costs]
    start = reference_tau(*zip(*known, strict=True))

    def find(wanted: float) -> tuple[float, float]:
        tau = find_tau(estimate, wanted, start)
        return tau, estimate(tau)

    def make(tau: float) -> Rounded:
        fitting = _fitting(settings(tau), config)
        return round_in_order(work.model, simulated, work.layers, fitting, run, config, progress)

    def spent(rounded: Rounded) -> float:
        return coded_bits([(w.codes, w.bits) for w in rounded.weights.values()], coder) / total

    return meet_rate(bits, find, make, spent)


def meet_rate(
    bits: float,
    find: Callable[[float], tuple[_S, float]],
    make: Callable[[_S], Rounded],
    spent: Callable[[Rounded], float],
) -> tuple[Rounded, float]:
    """Weights that take at most so many bits each, as near to that as `PASSES` attempts come, and what they take.

    If none take so few, those of the last attempt.

    Args:
        bits: per weight.
        find: from a rate to the setting whose estimated rate does not exceed it, and that estimate.
        make: weights by a setting.
        spent: what weights really take, in bits each.
    """
    aim = bits * (1 - TOLERANCE / 2)
    wanted, best = aim / _FIRST_GUESS, None
    tried: list[_S] = []
    known: list[tuple[float, float]] = []
    for _ in range(PASSES):
        setting, estimated = find(wanted)
        if setting in tried:
            break
        tried.append(setting)
        rounded = make(setting)
        rate = spent(rounded)
        if rate <= bits and (best is None or rate > best[1]):
            best = rounded, rate
        if bits * (1 - TOLERANCE) <= rate <= bits:
            break
        # Every time too much is spent, the next aim is lower: the same aim again may miss by as little again.
        aim *= 1 - TOLERANCE / 2 if rate > bits else 1
        known.append((float(np.log(max(estimated, _LEAST_RATE))), float(np.log(max(rate, _LEAST_RATE)))))
        wanted = float(np.exp(known[-1][0] + (np.log(aim) - known[-1][1]) / _slope(known[-2:])))
    return best or (rounded, rate)


def _slope(known: Sequence[tuple[float, float]]) -> float:
    """How the logarithm of what was spent grows with that of the estimate, by up to two attempts; 1 if unknown."""
    if len(known) < 2 or known[0][0] == known[1][0]:
        return 1.0
    (estimate, rate), (next_estimate, next_rate) = known
    return float(np.clip((next_rate - rate) / (next_estimate - estimate), *_SLOPES))


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


def channel_costs(work: Workload, evidence: Evidence, class_weights: Array) -> dict[str, Array]:
    """a_c of every layer: half the mean square of the gradient at the channel's outputs, by classes that matter."""
    assert evidence.sensitivity is not None
    shares = evidence.groups.sums(class_weights) / class_weights.sum()
    return {layer.name: 0.5 * (shares @ evidence.sensitivity[layer.name]) for layer in work.layers}
