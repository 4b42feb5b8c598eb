"""Equalize the channels between layers where that lowers the divergence from the float model, measured.

An activation has one scale for all its channels, so a small channel gets few of its levels. Making the channels alike
(see `graph.equalize`) helps there, but the weights behind it must follow, and a row of weights of unlike size rounds
worse. Which of the two counts for more is measured: the model with its activations on their grids, and every layer
behind a pair rounded to the width asked for, runs over held-back samples with and without.

Where that loses nothing worth having without, nothing is equalized. Else all pairs together, first, at each of a few
strengths. If the best lowers the divergence beyond chance, each pair is left out in turn, the least promising first,
and stays out unless that raises the divergence beyond chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from onnx_cbq.calibration.draw import Draw
from onnx_cbq.calibration.samples import Indices
from onnx_cbq.evidence.cache import Kept
from onnx_cbq.evidence.kept import checked
from onnx_cbq.evidence.measure import PlanMeasure
from onnx_cbq.evidence.scoring import batch_size
from onnx_cbq.evidence.tables import run_of
from onnx_cbq.evidence.tensors import collect_ranges
from onnx_cbq.evidence.workload import Workload
from onnx_cbq.graph.equalize import equalized, factors, scale_columns
from onnx_cbq.graph.normalise import normalise
from onnx_cbq.graph.pairs import Pair, find_pairs
from onnx_cbq.graph.shapes import Example
from onnx_cbq.model import Array, Model
from onnx_cbq.records import ActivationGrid, Grouping, Layer, Layers, Plan
from onnx_cbq.search.rate_distortion import ENOUGH, saves
from onnx_cbq.settings import MOST_BITS
from onnx_cbq.stages.activations import choose_grids
from onnx_cbq.stages.compensation import Fitting, fitting_plan, round_in_order, round_to_nearest
from onnx_cbq.stages.samples import draw_samples, weights_of
from onnx_cbq.stages.scene import SceneSettings
from onnx_cbq.storage.qdq import simulate_activations
from onnx_cbq.system.progress import Progress, silent
from onnx_cbq.system.store import Entry

# Exponents of the ranges: 1 makes all channels alike, 1/2 makes up for half of the difference on a log scale.
STRENGTHS = (0.5, 1.0)
# Pairs are looked at where the noise that the activation's grid causes behind the second layer falls below this share.
_LARGEST_NOISE = 0.7
_HELD_BACK = 0.25
# Standard errors by which the divergence must fall.
_CERTAINTY = 2.0
# Below so many held-back samples nothing can be told from chance.
_FEWEST_HELD = 20
# Ranges, grids and moments are gathered from about so many samples.
_SAMPLES = 200
_ROWS = 4000
_WIDEST_COMPENSATED = 1280

Chosen = Mapping[Pair, float]


@dataclass(frozen=True)
class _Found:
    """Ranges of the channels of every pair, the loss before and after, and how strongly which pairs are equalized."""

    ranges: Mapping[Pair, Array]
    before: float
    after: float
    chosen: Chosen


@dataclass(frozen=True)
class _Trial:
    """What the pairs' tensors and second layers become at one strength.

    Attributes:
        grids: of the tensors between the layers of each pair.
        constants: rounded weights and corrected biases of each pair's second layer, scaled back.
    """

    grids: Mapping[Pair, Mapping[str, ActivationGrid]]
    constants: Mapping[Pair, Mapping[str, Array]]


def equalize(work: Workload, settings: SceneSettings, bits: float, progress: Progress = silent) -> Workload:
    """`work`, aimed at its target, with pairs of layers equalized that gain by it, and a note that says which.

    What they gain is measured with weights of about `bits`.

    Cost: some runs over a few of the samples, and one over the held-back ones for each pair if there is anything to
    gain; next to nothing without pairs whose channels are unlike.

    Raises:
        OnnxCbqError: the samples are too few, or a class is unknown.
    """
    weights = weights_of(work, settings.samples)
    train, held = draw_samples(work, settings.samples, weights).split(_HELD_BACK)
    pairs = find_pairs(work.model, work.layers, work.example.shapes(work.model))
    if not pairs or len(held.indices) < _FEWEST_HELD:
        return work
    few = Draw((train.indices[:: -(-len(train.indices) // _SAMPLES)],))
    # The outputs are checked on the example; what a Clip lets through there must be known, too.
    seen = np.union1d(few.indices, np.arange(work.example.batch) % len(work.samples.labels))
    width = max(round(bits), 1)
    found = work.cache.of(
        _kept(pairs),
        lambda: [
            *(work.cache.digests.samples(work.samples, indices) for indices in (few.indices, held.indices, seen)),
            *(work.cache.digests.model(work.model), work.layers.layers, pairs, work.logits, work.further.counted),
            *(work.placement, work.target, weights, width),
            *(settings.activations, settings.rounding, settings.compensation),
        ],
        lambda: _find(work, settings, pairs, (few, held, seen), (width, weights), progress),
    )
    if not found.chosen:
        return work

    def equalize_channels(model: Model, example: Example) -> Model:  # noqa: ARG001
        return equalized(model, _scales(found.ranges, found.chosen))

    rewritten = normalise(work.model, work.example, (equalize_channels,))
    names = ", ".join(pair.name for pair in pairs if pair in found.chosen)
    note = f"channels equalized between {names}: measured divergence {found.before:.4g} -> {found.after:.4g}"
    return replace(work, model=rewritten.model, notes=(*work.notes, *(rewritten.notes or (note,))))


def _find(
    work: Workload,
    settings: SceneSettings,
    pairs: Sequence[Pair],
    drawn: tuple[Draw, Draw, Indices],
    wanted: tuple[int, Array],
    progress: Progress,
) -> _Found:
    """Which of the pairs gain by it.

    Of few samples, those held back, and those whose ranges are seen; with weights of a width, classes weighing so much.
    """
    (few, held, seen), (width, weights) = drawn, wanted
    axes = {pair.tensor: pair.channel_axis for pair in pairs}
    found = collect_ranges(work.model, axes, work.samples, seen, batch_size(work.layers), work.engine)
    ranges = {pair: pair.of_tensor(found[pair.tensor]) for pair in pairs}
    noise = {pair: _noise(work.model, pair, ranges[pair]) for pair in pairs}
    promising = sorted((pair for pair in pairs if noise[pair] < _LARGEST_NOISE), key=lambda pair: noise[pair])
    if not promising:
        return _Found(ranges, 0.0, 0.0, {})
    trials = _Trials(work, settings, width, ranges, (few, held), promising)
    return _Found(ranges, *_search(trials, promising, weights, progress))


def _search(trials: _Trials, pairs: Sequence[Pair], weights: Array, progress: Progress) -> tuple[float, float, Chosen]:
    """Measured loss before and after, and the strength of every pair that is equalized."""
    total, done = 1 + len(STRENGTHS) + len(pairs), 0

    def losses(chosen: Chosen) -> Array:
        nonlocal done
        done += 1
        progress("equalize", done, total)
        return trials.losses(chosen, weights)

    base = losses({})
    if base.mean() <= ENOUGH:
        progress("equalize", total, total)
        return float(base.mean()), float(base.mean()), {}
    together = {strength: losses(dict.fromkeys(pairs, strength)) for strength in STRENGTHS}
    best = min(STRENGTHS, key=lambda strength: float(together[strength].mean()))
    chosen, loss = dict.fromkeys(pairs, best), together[best]
    if not saves(base - loss, _CERTAINTY):
        progress("equalize", total, total)
        return float(base.mean()), float(base.mean()), {}
    for pair in reversed(pairs):
        others = {p: s for p, s in chosen.items() if p != pair}
        without = losses(others)
        if not saves(without - loss, _CERTAINTY):
            chosen, loss = others, without
    return float(base.mean()), float(loss.mean()), chosen


class _Trials:
    """Runs the model with any pairs equalized; what a pair becomes at each strength is found once."""

    def __init__(
        self,
        work: Workload,
        settings: SceneSettings,
        width: int,
        ranges: Mapping[Pair, Array],
        split: tuple[Draw, Draw],
        pairs: Sequence[Pair],
    ) -> None:
        few, held = split
        self._model, self._ranges, self._pairs = work.model, ranges, pairs
        self._placement = work.placement
        between = {name for pair in pairs for name in pair.path}
        rest = [name for name in self._placement.measured if name not in between]
        self._grids = choose_grids(work, rest, few, settings.activations)

        @cache
        def trial(strength: float) -> _Trial:
            return _trial(work, settings, width, ranges, few, dict.fromkeys(pairs, strength))

        self._trial = trial
        groups = Grouping.single(work.class_names)
        samples = (work.samples, held.indices, batch_size(work.layers))
        outputs = work.logits, groups, work.further.counted
        self._measure = PlanMeasure(work.model, work.layers, samples, outputs, None, engine=work.engine)

    def losses(self, chosen: Chosen, weights: Array) -> Array:
        """What each held-back sample adds to the loss, a sample counting as its class does, [samples]."""
        grids = dict(self._grids)
        constants: dict[str, Array] = {}
        for pair in self._pairs:
            trial = self._trial(chosen.get(pair, 0.0))
            grids |= trial.grids[pair]
            constants |= trial.constants[pair]
        model = equalized(self._model.with_constants(constants), _scales(self._ranges, chosen))
        return self._measure.run_instead(simulate_activations(model, self._placement, grids)).losses(weights)


def _trial(
    work: Workload,
    settings: SceneSettings,
    width: int,
    ranges: Mapping[Pair, Array],
    drawn: Draw,
    strengths: Chosen,
) -> _Trial:
    scales = _scales(ranges, strengths)
    model = equalized(work.model, scales)
    changed = replace(work, model=model)
    paths = {pair: [name for name in pair.path if name in work.placement.measured] for pair in strengths}
    tensors = list(dict.fromkeys(name for path in paths.values() for name in path))
    grids = choose_grids(changed, tensors, drawn, settings.activations)
    constants = _rounded(changed, settings, width, drawn, list(strengths))
    rounded = equalized(model.with_constants(constants), _inverse(scales))
    return _Trial(
        {pair: {name: grids[name] for name in path} for pair, path in paths.items()},
        {pair: {name: rounded.weight(name) for name in _constants(pair)} for pair in strengths},
    )


def _rounded(
    work: Workload, settings: SceneSettings, width: int, drawn: Draw, pairs: Sequence[Pair]
) -> dict[str, Array]:
    """Weights and biases of the second layers, rounded to `width` bits as the settings say, in a single pass.

    Wide layers would take minutes to compensate; there it is rounding to nearest with one bit more.
    """
    compensates = settings.rounding.compensates
    layers = [reader.layer for pair in pairs for reader in pair.readers]
    wide = [layer for layer in layers if not compensates or layer.weights_per_channel > _WIDEST_COMPENSATED]
    rest = [layer for layer in layers if layer not in wide]
    nearest, quick = _plan(wide, min(width + compensates, MOST_BITS)), _plan(rest, width)
    constants = round_to_nearest(work.model, Layers(tuple(wide)), nearest).constants(Layers(tuple(wide)))
    if rest:
        quickly = replace(settings.compensation, refits=0, sweeps=0, rows=_ROWS, passes=1)
        run = run_of(work, drawn, quickly, weights_of(work, settings.samples))
        rounded, fitting = Layers(tuple(rest)), Fitting(fitting_plan(quick, quickly))
        constants |= round_in_order(work.model, None, rounded, fitting, run, engine=work.engine).constants(rounded)
    return constants


def _plan(layers: Sequence[Layer], width: int) -> Plan:
    return Plan({layer.name: np.full(layer.channels, width, np.int8) for layer in layers})


def _kept(pairs: Sequence[Pair]) -> Kept[_Found]:
    def pack(found: _Found) -> Entry:
        ranges = {str(i): found.ranges[pair] for i, pair in enumerate(pairs)}
        chosen = [[pairs.index(pair), strength] for pair, strength in found.chosen.items()]
        return Entry(ranges, {"before": found.before, "after": found.after, "chosen": chosen})

    def unpack(entry: Entry) -> _Found:
        ranges = {pair: checked(entry.arrays[str(i)], "f4", (pair.count,)) for i, pair in enumerate(pairs)}
        chosen = {pairs[int(i)]: float(strength) for i, strength in entry.facts["chosen"]}
        return _Found(ranges, float(entry.facts["before"]), float(entry.facts["after"]), chosen)

    return Kept("equalization", 4, pack, unpack)


def _scales(ranges: Mapping[Pair, Array], strengths: Chosen) -> dict[Pair, Array]:
    return {pair: factors(ranges[pair], strength, pair.bound) for pair, strength in strengths.items()}


def _inverse(scales: Mapping[Pair, Array]) -> dict[Pair, Array]:
    return {pair: 1 / scale for pair, scale in scales.items()}


def _constants(pair: Pair) -> list[str]:
    layers = [reader.layer for reader in pair.readers]
    return [name for layer in layers for name in (layer.weight, layer.uses[0].bias) if name is not None]


def _noise(model: Model, pair: Pair, ranges: Array) -> float:
    """Power of the noise behind the readers, relative to that without equalization: |W2 S|^2 / |W2|^2."""
    weights = [(reader, model.weight(reader.layer.weight).astype(np.float64)) for reader in pair.readers]
    scales = factors(ranges, 1.0, pair.bound)
    scaled = sum(float(np.square(scale_columns(reader, weight, scales)).sum()) for reader, weight in weights)
    return scaled / max(sum(float(np.square(weight).sum()) for _, weight in weights), float(np.finfo(np.float32).tiny))
