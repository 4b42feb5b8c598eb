"""Turn a method's name into a plan: gather what it looks at, hand the search arrays and a function that measures."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_cbq.calibration.samples import Draw
from onnx_cbq.config import MOST_BITS, QuantizeConfig
from onnx_cbq.errors import ConfigError, UnsupportedOperatorError
from onnx_cbq.measure import Measured, NearestRounder, PlanMeasure, TableRounder
from onnx_cbq.model import Array
from onnx_cbq.progress import Progress
from onnx_cbq.quantize.table import WIDTHS, Table
from onnx_cbq.records import Grouping, Layer, Layers, Plan, Scores, SearchReport
from onnx_cbq.rounding import make_tables, run_of
from onnx_cbq.scoring import batch_size, fisher_squares, score_channels, scoring_graph
from onnx_cbq.search.cbq import search_thresholds
from onnx_cbq.search.rate_distortion import search_plan
from onnx_cbq.search.widths import WidthReport
from onnx_cbq.workload import Workload

# The first and the last layer are pinned only where they hold at most this share of the weights.
LARGEST_PINNED_SHARE = 0.1
# Width at which the loss that one layer causes is measured: low enough to stand out, high enough for the second order.
CALIBRATION_BITS = 2


@dataclass(frozen=True)
class Planned:
    """A plan, and what the search has to say about how it came about."""

    plan: Plan
    notes: tuple[str, ...] = ()
    search: SearchReport | None = None
    widths: WidthReport | None = None


@dataclass(frozen=True)
class Evidence:
    """What searches look at; each is None where the method does without.

    Attributes:
        groups: what counts is to tell them apart.
        scores: class scores of every channel.
        sensitivity: layer -> what noise at each channel's output costs a group, [groups, channels].
        tables: layer -> every channel rounded to every width.
        notes: what is missing, and why.
    """

    groups: Grouping
    scores: Scores | None = None
    sensitivity: Mapping[str, Array] | None = None
    tables: Mapping[str, Table] | None = None
    notes: tuple[str, ...] = ()


def gather_evidence(
    work: Workload, train: Draw, groups: Grouping, config: QuantizeConfig, class_weights: Array, progress: Progress
) -> Evidence:
    """Run what the method needs over the samples `train`.

    The search by rate and distortion has criteria that need no gradient; where an operator has none, it uses those.

    Raises:
        UnsupportedOperatorError: it needs gradients, and an operator has no rule.
    """
    if config.method == "uniform":
        return Evidence(groups)
    if config.codebook == "kmeans":
        return Evidence(groups)
    if config.method == "differentiable":
        if config.rounding == "nearest":
            return Evidence(groups)
        run = run_of(work, train, config.compensation, class_weights)
        return Evidence(groups, tables=make_tables(work, run, config, progress))
    if config.storage == "archive" or config.shares_values:
        return Evidence(groups, sensitivity=_weighted(work, train, groups, config, progress))
    tables = sensitivity = scores = None
    notes: tuple[str, ...] = ()
    try:
        graph = scoring_graph(work.model, work.layers, work.logits, work.example, config.scoring, work.further.counted)
        scores = score_channels(graph, work.layers, work.samples, train, groups, progress)
        if config.method == "rate-distortion":
            sensitivity = fisher_squares(graph, work.layers, work.samples, train, groups, config.seed, progress)
    except UnsupportedOperatorError as error:
        if config.method != "rate-distortion":
            raise
        notes = (f"{str(error).partition(';')[0]}: widths are chosen by the noise that they make alone",)
    if config.rounding == "compensate" or config.method == "rate-distortion":
        run = run_of(work, train, config.compensation, class_weights)
        tables = make_tables(work, run, config, progress)
    return Evidence(groups, scores, sensitivity, tables, notes)


def _weighted(
    work: Workload, train: Draw, groups: Grouping, config: QuantizeConfig, progress: Progress
) -> Mapping[str, Array]:
    """The sensitivity by which values are chosen: layer -> [groups, channels]."""
    try:
        graph = scoring_graph(work.model, work.layers, work.logits, work.example, config.scoring, work.further.counted)
        return fisher_squares(graph, work.layers, work.samples, train, groups, config.seed, progress)
    except UnsupportedOperatorError as error:
        what = "--storage archive" if config.storage == "archive" else f"--codebook {config.codebook}"
        raise UnsupportedOperatorError(
            f"{str(error).partition(';')[0]}, and {what} chooses values by gradients; use --storage packed or int8"
        ) from error


def make_measure(work: Workload, held: Draw, evidence: Evidence) -> PlanMeasure:
    """A measure of plans on the samples `held`, rounded as the evidence is."""
    rounder = TableRounder(evidence.tables) if evidence.tables else NearestRounder(work.model)
    return PlanMeasure(
        work.model,
        work.layers,
        (work.samples, held.indices, batch_size(work.layers)),
        (work.logits, evidence.groups),
        rounder,
        work.further.counted,
    )


def make_plan(
    work: Workload,
    evidence: Evidence,
    measure: Callable[[Plan], Measured] | None,
    config: QuantizeConfig,
    class_weights: Array,
    progress: Progress,
) -> Planned:
    """The plan that the method finds for `config.bits`; `measure` is None for a method that measures nothing.

    Raises:
        ConfigError: the layers that are kept leave nothing to meet the budget with.
    """
    kept = kept_layers(work.layers, config.keep)
    if (evidence.tables is None and evidence.scores is None) or measure is None:
        widths = {layer.name: kept.get(layer.name, int(config.bits)) for layer in work.layers}
        return Planned(Plan({layer.name: _constant(layer, widths[layer.name]) for layer in work.layers}))
    if config.method == "cbq":
        assert evidence.scores is not None
        return _by_importance(work, evidence.scores, measure, config, kept, progress)
    return _by_rate_distortion(work, evidence, measure, config, class_weights, kept, progress)


def deciding_layers(work: Workload) -> set[str]:
    """The layers whose channels are the classes: no other layer stands between them and the logits."""
    layers = {use.output: layer for layer in work.layers for use in layer.uses}
    waiting, seen, found = [work.logits.tensor], set[str](), set[str]()
    while waiting:
        name = waiting.pop()
        layer = layers.get(name)
        if layer is not None and layer.channels in (work.logits.classes, 1):
            found.add(layer.name)
        if layer is None and (node := work.model.producers.get(name)) is not None:
            waiting += [source for source in node.input if source and source not in seen]
            seen.update(node.input)
    return found


def kept_layers(layers: Layers, keep: Sequence[tuple[str, int]]) -> dict[str, int]:
    """Layer name -> the width that it keeps; of several patterns that match, the last counts.

    Raises:
        ConfigError: a pattern matches no layer.
    """
    kept: dict[str, int] = {}
    for pattern, width in keep:
        names = fnmatch.filter([layer.name for layer in layers], pattern)
        if not names:
            known = ", ".join(layer.name for layer in layers.layers[:8]) + (", ..." if len(layers) > 8 else "")
            raise ConfigError(f"--keep {pattern}={width}: no layer has such a name; the layers are: {known}")
        kept |= dict.fromkeys(names, width)
    return kept


def _constant(layer: Layer, bits: int) -> Array:
    return np.full(layer.channels, bits, np.int8)


class FreeChannels:
    """The channels that a search may choose for, laid end to end, when some layers keep their width.

    What a search chooses for is a unit: a channel, or all channels of a layer that the target gives one scale.
    """

    def __init__(self, layers: Layers, kept: Mapping[str, int], budget: float) -> None:
        self._layers, self._kept = layers, kept
        self.layers = [layer for layer in layers if layer.name not in kept]
        held = sum(layers.by_name[name].size * width for name, width in kept.items())
        self.size = sum(layer.size for layer in self.layers)
        self.budget = (budget * layers.size - held) / max(self.size, 1)
        channels = np.array([layer.channels for layer in self.layers], np.int64)
        units = np.where([layer.rules.per_tensor for layer in self.layers], 1, channels)
        self.sizes = np.repeat([layer.size for layer in self.layers] / np.maximum(units, 1), units)
        self.layer_of = np.repeat(np.arange(len(self.layers)), units)
        self._unit_of = np.repeat(np.arange(len(self.sizes)), np.repeat(channels // units, units))

    def plan(self, bits: Array) -> Plan:
        """The plan with these bits for the units."""
        return Plan(self.by_layer(bits.astype(np.int8)))

    def sums(self, values: Array) -> Array:
        """Values of the free channels, [channels, ...] -> their sums by unit, [units, ...]."""
        if len(values) == len(self.sizes):
            return values
        found = np.zeros((len(self.sizes), *values.shape[1:]))
        np.add.at(found, self._unit_of, values)
        return found

    def largest(self, values: Array) -> Array:
        """Values of the free channels, at least 0, [channels] -> the largest of each unit, [units]."""
        found = np.zeros(len(self.sizes))
        np.maximum.at(found, self._unit_of, values)
        return found

    def by_layer(self, values: Array) -> dict[str, Array]:
        """Values of the units by layer and channel, and the widths of the layers that keep theirs."""
        parts = np.split(values[self._unit_of], np.cumsum([layer.channels for layer in self.layers])[:-1])
        found = {layer.name: part for layer, part in zip(self.layers, parts, strict=True)}
        return {
            layer.name: found[layer.name]
            if layer.name in found
            else _constant(layer, self._kept[layer.name]).astype(values.dtype)
            for layer in self._layers
        }

    def require_budget(self, keep: Sequence[tuple[str, int]], bits: float) -> None:
        """Make sure that something is left for the free channels.

        Raises:
            ConfigError: nothing is.
        """
        if not self.layers or self.budget < 0:
            patterns = ", ".join(f"{pattern}={width}" for pattern, width in keep)
            raise ConfigError(
                f"--bits {bits:g} cannot be met: the layers of --keep {patterns} alone take it up; keep fewer layers"
            )


def _by_importance(
    work: Workload,
    scores: Scores,
    measure: Callable[[Plan], Measured],
    config: QuantizeConfig,
    kept: Mapping[str, int],
    progress: Progress,
) -> Planned:
    """CBQ's threshold search over all channels but the pinned ones.

    The layer that makes the logits is needed by every class, since the decision compares all logits; the score of its
    neurons, taken from the sample's own logit alone, cannot show that.
    """
    layers, notes = work.layers, []
    ends = {layers.layers[0].name, layers.layers[-1].name} if config.cbq.pin_ends else set()
    share = sum(layers.by_name[name].size for name in ends) / layers.size
    free = FreeChannels(layers, {**dict.fromkeys(ends, MOST_BITS), **kept}, config.bits)
    if ends and (share > LARGEST_PINNED_SHARE or free.budget <= 0 or not free.layers):
        notes.append(f"first and last layer are searched too: they hold {share:.0%} of the weights")
        free = FreeChannels(layers, kept, config.bits)
    free.require_budget(config.keep, config.bits)
    classes = sum(count > 0 for count in scores.samples)
    if classes < len(scores.class_names):
        notes.append(
            f"importance counts the {classes:,} of {len(scores.class_names):,} classes that were scored; whether a "
            f"channel is needed for others cannot be known without samples of them"
        )
    decides = deciding_layers(work)
    importance = [
        np.full(layer.channels, float(classes)) if layer.name in decides else scores.by_layer[layer.name].gamma
        for layer in free.layers
    ]
    found = search_thresholds(
        free.largest(np.concatenate(importance)),
        free.sums(np.concatenate([scores.by_layer[layer.name].saliency.sum(axis=0) for layer in free.layers])),
        free.sizes,
        free.budget,
        lambda bits: measure(free.plan(bits)).quality,
        config.cbq,
        lambda start, average: progress(
            "search", round((start - average) * 100), max(round((start - free.budget) * 100), 1)
        ),
    )
    thresholds = ", ".join(f"{p:g}" for p in found.thresholds)
    notes.append(f"thresholds on importance: {thresholds}; {found.measured} plans measured")
    return Planned(free.plan(found.bits), tuple(notes))


def _by_rate_distortion(
    work: Workload,
    evidence: Evidence,
    measure: Callable[[Plan], Measured],
    config: QuantizeConfig,
    class_weights: Array,
    kept: Mapping[str, int],
    progress: Progress,
) -> Planned:
    """Bits where they lower the predicted loss most; `criteria` says how it is predicted."""
    free = FreeChannels(work.layers, kept, config.bits)
    free.require_budget(config.keep, config.bits)
    total = config.search.exchanges + len(free.layers)
    done = 0

    def losses(bits: Array) -> Array:
        nonlocal done
        done += 1
        progress("search", min(done, total), total)
        return measure(free.plan(bits)).losses(class_weights)

    predicted = {name: free.sums(found) for name, found in criteria(free.layers, evidence, class_weights).items()}
    first = "sensitivity" if evidence.sensitivity is not None else "noise"
    factors = _measured_factors(free, predicted[first], lambda bits: float(losses(bits).mean()))
    for name in dict.fromkeys((first, "noise")):
        ratio = _per_layer(free, predicted[first]) / _per_layer(free, predicted[name])
        predicted[f"{name}, measured per layer"] = predicted[name] * (ratio * factors)[free.layer_of][:, None]
    allowed = np.ones((len(free.sizes), WIDTHS), bool)
    found = search_plan(predicted, free.layer_of, free.sizes, allowed, free.budget, losses, config.search)
    search = SearchReport(found.criterion, dict(found.measured), found.loss, found.exchanges, done)
    return Planned(free.plan(found.bits), (), search)


def criteria(layers: Sequence[Layer], evidence: Evidence, class_weights: Array) -> dict[str, Array]:
    """Predicted losses [channels, widths] by each criterion; e is the error that rounding adds to an output.

    - sensitivity: 1/2 E[sum g^2] E[e^2], the second order of the divergence from the float model, g its gradient
    - noise: E[e^2], relative to what the layer's outputs vary
    - saliency: mean |z dPhi/dz| of the channel, times E[e^2] relative to what its output varies
    - importance: likewise with gamma, how many classes need the channel (CBQ)

    An output beside the class scores that counts adds to each of them, as much as all classes together. Without
    gradients there is the noise alone.
    """
    scores, sensitivity, tables = evidence.scores, evidence.sensitivity, evidence.tables
    assert tables is not None
    shares = evidence.groups.sums(class_weights) / class_weights.sum()
    parts: dict[str, list[Array]] = {name: [] for name in ("sensitivity", "noise", "saliency", "importance")}
    for layer in layers:
        table = tables[layer.name]
        error = table.error.T
        relative = error / np.maximum(table.power, np.finfo(np.float32).tiny)[:, None]
        parts["noise"].append(error / max(float(table.power.sum()), np.finfo(np.float32).tiny))
        if sensitivity is None or scores is None:
            continue
        score = scores.by_layer[layer.name]
        parts["sensitivity"].append(0.5 * (shares @ sensitivity[layer.name])[:, None] * error)
        saliency, importance = shares @ score.saliency, shares @ score.beta
        if len(score.further_beta):
            saliency = saliency + score.further_saliency.sum(axis=0)
            importance = importance + score.further_beta.sum(axis=0)
        parts["saliency"].append(saliency[:, None] * relative)
        parts["importance"].append(importance[:, None] * relative)
    return {name: np.concatenate(part) for name, part in parts.items() if part}


def _per_layer(free: FreeChannels, losses: Array) -> Array:
    """Predicted loss of each layer at `CALIBRATION_BITS`, [layers]."""
    sums = np.bincount(free.layer_of, losses[:, CALIBRATION_BITS], len(free.layers))
    return np.maximum(sums, np.finfo(np.float32).tiny)


def _measured_factors(free: FreeChannels, losses: Array, loss: Callable[[Array], float]) -> Array:
    """For each layer, the loss that it causes alone at `CALIBRATION_BITS`, measured, over the predicted one."""
    finest = np.full(len(free.sizes), MOST_BITS)
    base = loss(finest)
    alone = [
        loss(np.where(free.layer_of == layer, CALIBRATION_BITS, MOST_BITS)) - base for layer in range(len(free.layers))
    ]
    return layer_factors(np.array(alone), _per_layer(free, losses))


def layer_factors(measured: Array, predicted: Array) -> Array:
    """Measured over predicted losses of layers; one that costs nothing by the samples at hand is not free of charge."""
    factors = measured / np.maximum(predicted, np.finfo(np.float64).tiny)
    positive = factors[factors > 0]
    return np.maximum(factors, 0.01 * float(np.median(positive)) if positive.size else 1.0)
