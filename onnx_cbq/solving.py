"""From what was gathered once to any number of solutions: a plan and the integer weights that it makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnx_cbq.calibration.samples import Draw, draw
from onnx_cbq.clusters import find_groups
from onnx_cbq.codebooks import Share, ShareEvidence, gather_shares, round_to_values, round_to_values_at_rate
from onnx_cbq.config import QuantizeConfig
from onnx_cbq.differentiable import descend_to_plan
from onnx_cbq.emit.qdq import emit_qdq, simulate_activations
from onnx_cbq.entropic import StepEvidence, measure_steps, round_at_rate
from onnx_cbq.errors import CalibrationError, ConfigError
from onnx_cbq.measure import PlanMeasure
from onnx_cbq.model import Array, Model
from onnx_cbq.planning import Evidence, Planned, gather_evidence, make_measure, make_plan
from onnx_cbq.progress import Clock, Progress
from onnx_cbq.quantize.activations import choose_grid, join_grids
from onnx_cbq.quantize.codebook import MOST_VALUES
from onnx_cbq.quantize.weights import leave_room_for_bias
from onnx_cbq.records import ActivationGrid, ActivationRules, Plan, Removal, Seen, Written
from onnx_cbq.records.names import class_indices
from onnx_cbq.removal import Run, remove_channels
from onnx_cbq.rounding import Rounded, fitting_plan, round_in_order, round_to_nearest, run_of
from onnx_cbq.scoring import batch_size
from onnx_cbq.statistics import collect_histograms
from onnx_cbq.targets.fit import target_of
from onnx_cbq.workload import Workload, aimed_at


@dataclass(frozen=True)
class Setting:
    """What solutions are made from.

    Attributes:
        drawn: the calibration samples; `held` those of them that plans are measured on.
        class_weights: what a sample counts, by its class, [classes].
        measure: of plans; None for a method that measures none.
        grids: how activations are quantized.
        simulated: the float model with them quantized; None if there are none.
        steps: what the steps of an archive's grids are set by; None for other storage.
        shares: what errors count for values that weights share; None for uniform steps.
    """

    work: Workload
    config: QuantizeConfig
    drawn: Draw
    class_weights: Array
    evidence: Evidence
    measure: PlanMeasure | None
    grids: Mapping[str, ActivationGrid]
    simulated: Seen | None
    steps: StepEvidence | None = None
    shares: ShareEvidence | None = None


@dataclass(frozen=True)
class Solution:
    """A plan, the weights that it makes, and what is written of them once channels of 0 bits are removed."""

    planned: Planned
    rounded: Rounded
    written: Written
    removal: Removal

    @property
    def plan(self) -> Plan:
        """The bits that the weights have in the end."""
        return Plan({name: layer.bits for name, layer in self.rounded.weights.items()})


def aim(work: Workload, config: QuantizeConfig) -> Workload:
    """`work` for the target and the activations of the settings.

    Raises:
        OnnxCbqError: there is no such target, or it cannot express the settings or the model.
    """
    return aimed_at(work, target_of(config), config.activation_bits)


def make_setting(work: Workload, config: QuantizeConfig, clock: Clock, progress: Progress) -> Setting:
    """Draw the samples and run everything over them that does not depend on the budget.

    Raises:
        OnnxCbqError: the samples are too few, a class is unknown, or an operator has no gradient rule.
    """
    work = aim(work, config)
    weights = weights_of(work, config)
    with clock.stage("statistics"):
        drawn = draw_samples(work, config, weights)
        train, held = drawn.split(config.held_back) if config.held_back else (drawn, drawn)
        groups = find_groups(work, drawn, config.clusters)
        evidence = gather_evidence(work, train, groups, config, weights, progress)
        measured = config.held_back and (config.storage == "archive" or not config.shares_values)
        measure = make_measure(work, held, evidence) if measured else None
    with clock.stage("activations"):
        grids = choose_grids(work, work.placement.measured, drawn, config, progress)
        simulated = simulate_activations(work.model, work.placement, grids) if grids else None
    steps = shares = None
    run = run_of(work, train, config.compensation, weights)
    if config.storage == "archive" and config.codebook in ("uniform", "ecsq") and config.rounding == "compensate":
        assert measure is not None
        with clock.stage("steps"):
            steps = measure_steps(work, evidence, measure, run, config.compensation, progress)
    if config.shares_values:
        with clock.stage("codebook"):
            shares = gather_shares(work, evidence, steps, config, run)
    return Setting(work, config, drawn, weights, evidence, measure, grids, simulated, steps, shares)


def solve(setting: Setting, clock: Clock, progress: Progress) -> Solution:
    """Search a plan for `setting.config.bits` and round the weights by it.

    Raises:
        ConfigError: the layers that are kept leave nothing to meet the budget with.
    """
    if setting.shares is not None:
        with clock.stage("rounding"):
            return _solve_shared(setting, setting.shares, progress)
    if setting.steps is not None:
        with clock.stage("rounding"):
            return _solve_at_rate(setting, setting.steps, progress)
    planned = find_plan(setting, clock, progress)
    with clock.stage("rounding"):
        rounded = _round(setting, planned.plan, progress)
    with clock.stage("removal"):
        return make_solution(setting, planned, rounded)


def make_solution(setting: Setting, planned: Planned, rounded: Rounded) -> Solution:
    """The solution of a plan that was rounded, without the channels that nobody needs."""
    work = setting.work
    plain = Written(work.model.with_constants(rounded.biases), work.layers, rounded.weights)
    run = Run(work.placement, setting.grids, work.shapes, work.example, work.target.file)
    return Solution(planned, rounded, *remove_channels(plain, run))


def find_plan(setting: Setting, clock: Clock, progress: Progress) -> Planned:
    """Search a plan for `setting.config.bits`.

    Raises:
        ConfigError: the layers that are kept leave nothing to meet the budget with.
        UnsupportedOperatorError: the method trains, and an operator cannot be trained.
    """
    work, evidence, config, weights = setting.work, setting.evidence, setting.config, setting.class_weights
    with clock.stage("search"):
        if config.method == "differentiable":
            return descend_to_plan(work, evidence, config, weights, progress)
        return make_plan(work, evidence, setting.measure, config, weights, progress)


def emit_solution(setting: Setting, solution: Solution, storage: str | None = None) -> Model:
    """The quantized model that a solution makes, with another storage than that of the settings if one is given."""
    written, work, storage = solution.written, setting.work, storage or setting.config.storage
    return emit_qdq(
        written.model, written.layers, written.weights, work.placement, setting.grids, storage, work.target.file
    )


def with_bits(setting: Setting, bits: float, class_weights: Array, *, trade: bool = True) -> Setting:
    """The same setting with another budget and other class weights; without `trade`, layers do not trade bits."""
    search = setting.config.search if trade else replace(setting.config.search, exchanges=0)
    return replace(setting, config=replace(setting.config, bits=bits, search=search), class_weights=class_weights)


def draw_samples(work: Workload, config: QuantizeConfig, weights: Array) -> Draw:
    """The calibration samples, from the classes that matter.

    Raises:
        CalibrationError: fewer samples than classes are asked for, or there are too few to hold some back.
    """
    drawn = draw(work.samples, work.class_names, config.samples, config.seed, np.flatnonzero(weights).tolist())
    if config.held_back and len(drawn.indices) < 2:
        raise CalibrationError(
            f"{work.samples.data.source.label}: a single sample, expected two: one to score channels and one to "
            f"measure plans; give more samples, or use --method uniform"
        )
    return drawn


def choose_grids(
    work: Workload, tensors: Sequence[str], drawn: Draw, config: QuantizeConfig, progress: Progress
) -> Mapping[str, ActivationGrid]:
    """Grids for some of the tensors that `work.placement` measures, from the samples drawn."""
    if not tensors:
        return {}
    histograms = collect_histograms(work.model, tensors, work.samples, drawn, batch_size(work.layers), progress)
    widths, rules = work.widths(config.activation_bits), work.target.activation
    grids = {
        name: choose_grid(histogram, widths[name], config.activation_range, rules)
        for name, histogram in histograms.items()
    }
    for group in work.placement.alike:
        grids |= _joined({name: grids[name] for name in sorted(group) if name in grids}, work, rules)
    return grids


def _joined(grids: Mapping[str, ActivationGrid], work: Workload, rules: ActivationRules) -> dict[str, ActivationGrid]:
    """One grid for tensors that are to be alike.

    Where it reaches below 0, those behind a Relu stay out: their lowest code stands for the Relu, so it has to be 0.
    The runtime then converts them.
    """
    if not grids:
        return {}
    shared = join_grids(list(grids.values()), rules)
    cut = grids.keys() & work.placement.saturated
    if rules.symmetric or not cut or shared.zero_point == shared.bottom:
        return dict.fromkeys(grids, shared)
    others = {name: grid for name, grid in grids.items() if name not in cut}
    return dict.fromkeys(others, join_grids(list(others.values()), rules)) if others else {}


def weights_of(work: Workload, config: QuantizeConfig) -> Array:
    """The class weights of the settings for these samples, [classes]."""
    return class_weights(work.class_names, config, work.samples.empty_classes(work.class_names).tolist())


def class_weights(names: Sequence[str], config: QuantizeConfig, empty: Sequence[int] = ()) -> Array:
    """What a sample of each class counts: 1, unless the settings say otherwise; 0 for the `empty`, without samples.

    Raises:
        ConfigError: a class that the settings name is unknown, or has no samples.
    """
    weights = np.full(len(names), float(config.classes is None))
    named = [(m, "--classes", 1.0) for m in class_indices(names, config.classes or (), "--classes")]
    for name, weight in config.class_weights:
        named += [(m, "--class-weight", weight) for m in class_indices(names, (name,), "--class-weight")]
    for m, option, weight in named:
        if m in empty:
            raise ConfigError(
                f"{option} {names[m]!r}: there are no samples of this class, so nothing is known of it; leave it out, "
                f"or give samples of it"
            )
        weights[m] = weight if option == "--classes" else weights[m] * weight
    weights[list(empty)] = 0
    if not weights.any():
        raise ConfigError("--class-weight: every class that counts has weight 0; give one a weight above 0")
    return weights


def _solve_at_rate(setting: Setting, steps: StepEvidence, progress: Progress) -> Solution:
    """Codes that take `setting.config.bits` in an archive."""
    work, config = setting.work, setting.config
    run = run_of(work, setting.drawn, config.compensation, setting.class_weights)
    rounded, rate = round_at_rate(
        work,
        setting.simulated,
        (setting.evidence, steps),
        (config.bits, config.coder),
        run,
        config.compensation,
        progress,
    )
    return _as_rounded(setting, rounded, _rate_note(rate, config.bits))


def _solve_shared(setting: Setting, shares: ShareEvidence, progress: Progress) -> Solution:
    """Values that weights share: as many as `setting.config.bits` tell apart, or so many bits in an archive."""
    work, config = setting.work, setting.config
    run = run_of(work, setting.drawn, config.compensation, setting.class_weights)
    if config.storage == "archive":
        rounded, rate = round_to_values_at_rate(work, setting.simulated, shares, config, run, progress)
        return _as_rounded(setting, rounded, _rate_note(rate, config.bits), _values_note(rounded, config))
    share = Share(config, min(1 << int(config.bits), MOST_VALUES))
    rounded = round_to_values(work, setting.simulated, shares, share, run, progress)
    return _as_rounded(setting, rounded, _values_note(rounded, config))


def _rate_note(rate: float, bits: float) -> str:
    note = f"{rate:.3f} bits per weight once coded; {bits:g} were allowed"
    return note + (", which is less than these weights can take" if rate > bits else "")


def _values_note(rounded: Rounded, config: QuantizeConfig) -> str:
    counts = [len(weights.table) for weights in rounded.weights.values() if weights.table is not None]
    which = "the weights of the whole net" if config.codebook_scope == "net" else "the weights of a layer"
    several = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else f"{counts[0]}"
    return f"{which} share {several} values"


def _as_rounded(setting: Setting, rounded: Rounded, *notes: str) -> Solution:
    """The solution of weights that were rounded without a plan."""
    rounded = with_room(setting, rounded)
    planned = Planned(Plan({name: w.bits for name, w in rounded.weights.items()}), notes)
    return make_solution(setting, planned, rounded)


def _round(setting: Setting, plan: Plan, progress: Progress) -> Rounded:
    """Integer weights as planned, with room for the biases beside them."""
    work, config = setting.work, setting.config
    if config.rounding == "compensate":
        run = run_of(work, setting.drawn, config.compensation, setting.class_weights)
        fitting = fitting_plan(plan, config.compensation)
        rounded = round_in_order(
            work.model, setting.simulated, work.layers, fitting, run, config.compensation, progress
        )
    else:
        rounded = round_to_nearest(work.model, work.layers, plan)
    return with_room(setting, rounded)


def with_room(setting: Setting, rounded: Rounded) -> Rounded:
    """Coarser scales where a bias would not fit beside the weights."""
    work = setting.work
    corrected = work.model.with_constants(rounded.biases)
    weights = dict(rounded.weights)
    for layer in work.layers:
        for use in layer.uses:
            grid = setting.grids.get(work.placement.grid_of(use.activation))
            if work.target.file.bias == "int32" and grid is not None and use.bias is not None:
                bias = corrected.weight(use.bias)
                weights[layer.name] = leave_room_for_bias(layer, weights[layer.name], bias, grid.scale)
    return replace(rounded, weights=weights)
