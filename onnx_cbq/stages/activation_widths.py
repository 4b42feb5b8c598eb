"""A width for each activation, by what it costs there: some are cheap at 4 bits, and some are not.

As with weights (`search.rate_distortion`) the activations share bits: their average over what is multiplied, each width
w_t weighed by the multiplications m_t that read the activation, is at most what was asked for,

    min  sum_t D_t(w_t)        sum_t m_t w_t <= B sum_t m_t

and D_t(w), what the divergence from the float model rises by with activation t alone at w bits, is predicted in three
ways, the best of which by measurement is where trades begin: measured at one width and scaled by the squared error of
the grids, D_t(w) = D_t(p) E_t(w) / E_t(p); that squared error alone, over the squares of the values; and alike for all
multiplications, which is one width for all where the average is one. Weights are float meanwhile. Activations that are
to have one grid count as one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnx_cbq.calibration.draw import Draw, thinned
from onnx_cbq.evidence.cache import Kept
from onnx_cbq.evidence.kept import checked
from onnx_cbq.evidence.measure import PlanMeasure
from onnx_cbq.evidence.scoring import batch_size
from onnx_cbq.evidence.workload import Workload
from onnx_cbq.graph.responses import find_response
from onnx_cbq.model import Array
from onnx_cbq.quantize.activations import relative_error
from onnx_cbq.records import ActivationGrid, Grouping
from onnx_cbq.search.rate_distortion import Hopeless, RateDistortionConfig, search_plan
from onnx_cbq.settings import MOST_BITS
from onnx_cbq.stages.activations import AutoBits, grids_for, see_activations
from onnx_cbq.stages.samples import draw_samples, weights_of
from onnx_cbq.stages.scene import SceneSettings
from onnx_cbq.storage.qdq import simulate_activations
from onnx_cbq.system.progress import Progress, silent
from onnx_cbq.system.store import Entry

# Widths are measured on so many of the samples held back, and trade so often.
_MOST_HELD = 250
# What one activation costs is known once its standard error is below this share of it, or it is next to nothing beside
# the most that one costs.
_KNOWN, _LITTLE = 0.1, 0.01
_SEARCH = RateDistortionConfig(exchanges=40, strengths=(2.0,))
# What costs nothing measurable is taken to cost this share of what costs most; exact grids have some error, too.
_LEAST, _EXACT = 1e-4, 1e-9

Unit = tuple[str, ...]
Grids = Mapping[str, ActivationGrid]


@dataclass(frozen=True)
class _Found:
    """The width of each unit, int8 [units]; the measured loss, and that of one width for all."""

    widths: Array
    loss: float
    even: float


def choose_widths(work: Workload, settings: SceneSettings, progress: Progress = silent) -> Workload:
    """`work`, aimed at its target, with widths of its activations as `settings.activations.auto` asks, and a note.

    Cost: for each activation a run over up to 250 samples, a tenth of them where its cost is soon known, and likewise
    for each of at most 40 trades.

    Raises:
        OnnxCbqError: the samples are too few, or a class is unknown.
    """
    auto, bits = settings.activations.auto, settings.activations.bits
    units = _units(work)
    if auto is None:
        return work
    weights = weights_of(work, settings.samples)
    train, held = draw_samples(work, settings.samples, weights).split(_SEARCH.held_back)
    held = Draw((thinned(held.indices, _MOST_HELD),))
    if not units or not len(held.indices):
        alone = f"a single sample, so nothing can be measured; {auto.even} bits each"
        why = alone if units else "no activation has a width to choose"
        return _with(work, units, np.full(len(units), auto.even), f"--activation-bits {auto}: {why}", bits)
    sizes = np.array([_macs(work, unit) for unit in units], np.float64)
    digests = work.cache.digests
    found = work.cache.of(
        _kept(len(units)),
        lambda: [
            *(digests.samples(work.samples, part.indices) for part in (train, held)),
            *(digests.model(work.model), units, sizes, work.logits, work.further.counted, weights),
            *(work.placement, work.target, settings.activations),
        ],
        lambda: _find(_Trials.of(work, settings, (train, held), units, weights), sizes, auto, progress),
    )
    return _with(work, units, found.widths, _note(found, auto, sizes), bits)


def _with(work: Workload, units: Sequence[Unit], widths: Array, note: str, bits: int) -> Workload:
    """The workload with these widths, 8 bits for what shares a grid with others, and a note."""
    chosen = {name: int(width) for unit, width in zip(units, widths, strict=True) for name in unit}
    every = {**dict.fromkeys(work.narrow, MOST_BITS), **chosen}
    return replace(work.with_widths(every, bits), notes=(*work.notes, note))


def _note(found: _Found, auto: AutoBits, sizes: Array) -> str:
    counted = sorted(Counter(found.widths.tolist()).items())
    listed = ", ".join(f"{width} ({count})" for width, count in counted)
    average = sizes @ found.widths / sizes.sum()
    return (
        f"--activation-bits {auto}: bits of activations {listed}, {average:.2f} on average of what is multiplied; "
        f"measured divergence with float weights {found.loss:.4g}, {found.even:.4g} at {auto.even} bits each"
    )


def _units(work: Workload) -> list[Unit]:
    """The activations whose width is free, those together that are to have one grid."""
    left, found = set(work.narrow), list[Unit]()
    for group in (*work.placement.alike, *({name} for name in work.placement.measured)):
        members = tuple(sorted(left & set(group)))
        # What shares a grid of 8 bits has it.
        if members and set(group) <= work.narrow:
            found.append(members)
        left -= set(members)
    return found


def _macs(work: Workload, unit: Unit) -> int:
    """Multiplications for one sample that read one of these activations."""
    uses = ((layer, use) for layer in work.layers.products for use in layer.uses)
    return max(sum(layer.macs_of(use) for layer, use in uses if work.placement.grid_of(use.activation) in unit), 1)


@dataclass(frozen=True)
class _Trials:
    """Runs the model with any widths.

    Attributes:
        grids: of all activations at each width of the free ones.
        errors: squared error over the squares, [units, widths].
    """

    work: Workload
    units: Sequence[Unit]
    grids: Mapping[int, Grids]
    errors: Array
    measure: PlanMeasure
    weights: Array

    @staticmethod
    def of(
        work: Workload, settings: SceneSettings, split: tuple[Draw, Draw], units: Sequence[Unit], weights: Array
    ) -> _Trials:
        """By the values of activations on the first samples, measured on the others."""
        train, held = split
        seen = see_activations(work, work.placement.measured, train)
        free = {name for unit in units for name in unit}
        grids = {
            width: grids_for(
                work, seen, {name: width if name in free else MOST_BITS for name in seen}, settings.activations.range
            )
            for width in range(2, MOST_BITS + 1)
        }
        errors = np.full((len(units), MOST_BITS + 1), np.inf)
        for (i, unit), (width, made) in ((pair, entry) for pair in enumerate(units) for entry in grids.items()):
            each = (relative_error(seen[name], made[name], find_response(work.model, name)) for name in unit)
            errors[i, width] = max(each)
        groups, samples = Grouping.single(work.class_names), (work.samples, held.indices, batch_size(work.layers))
        outputs = work.logits, groups, work.further.counted
        measure = PlanMeasure(work.model, work.layers, samples, outputs, None, engine=work.engine)
        return _Trials(work, units, grids, errors, measure, weights)

    def losses(self, widths: Array, enough: Hopeless | None = None) -> Array:
        """What each sample adds to the loss at these widths, [samples]; of the first alone once these are enough."""
        grids = dict(self.grids[MOST_BITS])
        for unit, width in zip(self.units, widths.tolist(), strict=True):
            grids |= {name: self.grids[width][name] for name in unit}
        stop = None if enough is None else lambda found: enough(found.losses(self.weights))
        simulated = simulate_activations(self.work.model, self.work.placement, grids)
        return self.measure.run_instead(simulated, stop).losses(self.weights)


def _find(trials: _Trials, sizes: Array, auto: AutoBits, progress: Progress) -> _Found:
    """The best widths by measurement."""
    count, steps = len(sizes), iter(range(1, 10**9))
    total = count + 2 + _SEARCH.exchanges

    def losses(bits: Array, hopeless: Hopeless | None = None) -> Array:
        progress("activation widths", min(next(steps), total), total)
        return trials.losses(bits, hopeless)

    probe = min(max(round(auto.average), 2), MOST_BITS - 1)
    finest = np.full(count, MOST_BITS, np.int8)
    base, costs = losses(finest), list[float]()
    for widths in _each_at(finest, probe):
        found = losses(widths, lambda found: _is_known(found - base[: len(found)], max(costs, default=0.0)))
        costs.append(float((found - base[: len(found)]).mean()))
    alone = np.array(costs)
    alone = np.maximum(alone, max(float(alone.max()), np.finfo(np.float64).tiny) * _LEAST)
    least = _EXACT * trials.errors.max(axis=1, keepdims=True, where=np.isfinite(trials.errors), initial=0.0)
    errors = np.maximum(trials.errors, np.maximum(least, np.finfo(np.float64).tiny))
    criteria = {
        "measured": alone[:, None] * errors / errors[:, [probe]],
        "error": errors,
        "alike": sizes[:, None] * 4.0 ** -np.arange(MOST_BITS + 1),
    }
    allowed = np.isin(np.arange(MOST_BITS + 1), auto.widths) & np.ones((count, 1), bool)
    finite = {name: np.where(allowed, predicted, 0.0) for name, predicted in criteria.items()}
    plan = search_plan(finite, np.arange(count), sizes, allowed, auto.average, losses, _SEARCH)
    even = np.full(count, auto.even, np.int8)
    loss = float(losses(even).mean())
    progress("activation widths", total, total)
    return _Found(plan.bits, plan.loss, loss) if plan.loss <= loss else _Found(even, loss, loss)


def _is_known(costs: Array, most: float) -> bool:
    """Whether the mean of what the first samples cost tells what all do, where the dearest activation costs `most`."""
    mean, error = float(costs.mean()), float(costs.std()) / np.sqrt(len(costs))
    return bool(error < _KNOWN * abs(mean) or mean + 2 * error < _LITTLE * most)


def _each_at(widths: Array, width: int) -> Iterator[Array]:
    """The widths with one of them another, one after the other."""
    for i in range(len(widths)):
        changed = widths.copy()
        changed[i] = width
        yield changed


def _kept(units: int) -> Kept[_Found]:
    def pack(found: _Found) -> Entry:
        return Entry({"widths": found.widths}, {"loss": found.loss, "even": found.even})

    def unpack(entry: Entry) -> _Found:
        widths = checked(entry.arrays["widths"], "i1", (units,))
        return _Found(widths, float(entry.facts["loss"]), float(entry.facts["even"]))

    return Kept("activation widths", 2, pack, unpack)
