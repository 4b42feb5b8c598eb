"""From real-valued widths to a plan: `--method differentiable` (Cheng et al., 2018, arXiv 1810.10351).

The gradient comes from training, the descent and the rounding from search; here they are put together.
"""

from __future__ import annotations

import time

import numpy as np

from onnx_cbq.calibration.samples import Indices, draw
from onnx_cbq.config import DifferentiableConfig, QuantizeConfig
from onnx_cbq.model import Array
from onnx_cbq.planning import Evidence, FreeChannels, Planned, kept_layers
from onnx_cbq.progress import Progress
from onnx_cbq.search.widths import Descent, LayerWidths, WidthReport, descend, round_widths
from onnx_cbq.training.records import Levels
from onnx_cbq.workload import Workload

# The first steps are slower than the rest, and say nothing about when the time will be over.
_UNTIMED_STEPS = 20


def descend_to_plan(
    work: Workload, evidence: Evidence, config: QuantizeConfig, class_weights: Array, progress: Progress
) -> Planned:
    """Real-valued widths of least loss for `config.bits`, and the whole ones that they become.

    Activations stay float while widths are searched, as in every search.

    Raises:
        ConfigError: the layers that are kept leave nothing to meet the budget with, or torch is not installed.
        UnsupportedOperatorError: an operator cannot be trained.
    """
    # Only here, so that every other method works without torch.
    from onnx_cbq.training.widths import WidthLoss  # noqa: PLC0415

    free = FreeChannels(work.layers, kept_layers(work.layers, config.keep), config.bits)
    free.require_budget(config.keep, config.bits)
    settings = config.differentiable
    unit = free.layer_of if settings.granularity == "layer" else np.arange(len(free.sizes))
    sizes = np.bincount(unit, free.sizes)
    levels, learned = _levels(work, evidence), _learned(work, config, class_weights)
    loss_of = WidthLoss.of(work, levels, learned, (class_weights, evidence.groups), settings, config.seed)

    def slope(widths: Array) -> tuple[float, Array]:
        loss, gradients = loss_of(free.by_layer(widths[unit]))
        each = free.sums(np.concatenate([gradients[layer.name] for layer in free.layers]))
        return loss, np.bincount(unit, each)

    found = descend(slope, sizes, free.budget, settings, _Clock(settings, progress))
    bits = round_widths(found.widths, sizes, free.budget)
    note = f"--method differentiable: widths learned from {len(learned):,} samples of the card; evaluate with others"
    return Planned(free.plan(bits[unit]), (note,), widths=_report(free, found, unit, bits))


class _Clock:
    """How much of a descent is over: by steps, or by time where that would run out first; tells the progress."""

    def __init__(self, config: DifferentiableConfig, progress: Progress) -> None:
        self._config, self._progress, self._begun = config, progress, time.monotonic()

    def __call__(self, steps: int) -> float:
        self._progress("search", min(steps, self._config.steps), self._config.steps)
        spent = (time.monotonic() - self._begun) / (60 * self._config.minutes)
        by_steps = steps / self._config.steps
        return max(by_steps, spent) if steps > _UNTIMED_STEPS else by_steps


def _levels(work: Workload, evidence: Evidence) -> dict[str, Levels]:
    """Every layer at every width, rounded as the evidence is, or to nearest."""
    if evidence.tables is not None:
        return {name: Levels.of(table) for name, table in evidence.tables.items()}
    return {layer.name: Levels.nearest(layer.rows(work.model.weight(layer.weight)), layer) for layer in work.layers}


def _learned(work: Workload, config: QuantizeConfig, class_weights: Array) -> Indices:
    """The card's samples of the classes that count, without those that a refinement behind it holds back."""
    everything = draw(work.samples, work.class_names, None, config.seed)
    if config.refine is not None:
        everything, _ = everything.split(config.refine.held_back)
    counted = np.flatnonzero(class_weights).tolist()
    return np.sort(np.concatenate([everything.by_class[m] for m in counted]))


def _report(free: FreeChannels, found: Descent, unit: Array, bits: Array) -> WidthReport:
    """What became of the widths, layer by layer."""
    ends, whole = free.by_layer(found.widths[unit]), free.plan(bits[unit]).bits
    layers = {
        layer.name: LayerWidths(
            found.first,
            float(ends[layer.name].mean()),
            float(whole[layer.name].mean()),
            tuple(np.bincount(whole[layer.name], minlength=9).tolist()),
        )
        for layer in free.layers
    }
    return WidthReport(layers, found.trace)
