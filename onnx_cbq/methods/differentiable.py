"""From real-valued widths to a plan (Cheng et al., 2018, arXiv 1810.10351).

The gradient comes from training, the descent and the rounding from search; here they are put together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import numpy as np

from onnx_cbq.calibration.draw import MOST_HELD, draw
from onnx_cbq.calibration.samples import Indices
from onnx_cbq.evidence import measure_by_nearest, measure_by_tables, width_tables
from onnx_cbq.methods.channels import FreeChannels, kept_layers
from onnx_cbq.methods.descent import Descending, Slope
from onnx_cbq.methods.method import Learning, PlanMethod, Planned
from onnx_cbq.model import Array
from onnx_cbq.search.widths import Descent, DifferentiableConfig, LayerWidths, Moment, round_widths
from onnx_cbq.settings import MOST_BITS
from onnx_cbq.stages.scene import Scene
from onnx_cbq.training.records import Levels


@dataclass(frozen=True)
class WidthReport:
    """How real-valued widths became a plan.

    Attributes:
        layers: layer name -> its widths.
        trace: how the descent went.
        batch: samples that an update learned from.
        divergence: from the float model on samples held back, with the widths that the descent found, in nats; `even`
            with those that it began as, all alike. The plan is the better of the two.
    """

    layers: Mapping[str, LayerWidths]
    trace: tuple[Moment, ...]
    batch: int
    divergence: float
    even: float

    def lines(self) -> list[str]:
        """What the columns are, and where the descent ended."""
        last = self.trace[-1]
        worth = f"there, {last.price:.4f} is what a bit on average is worth"
        return [
            "columns of a number: channels that have so many bits",
            f"widths: {last.updates} updates of {self.batch} samples to a loss of {last.loss:.4f}; {worth}",
            f"measured: divergence {self.divergence:.4f} nats, with all channels alike {self.even:.4f}",
        ]

    def table(self) -> list[list[str]]:
        """How the widths moved, and what they were rounded to."""
        used = [width for width in range(MOST_BITS + 1) if any(layer.channels[width] for layer in self.layers.values())]
        rows = [["layer", "start", "end", "rounded", *map(str, used)]]
        for name, layer in self.layers.items():
            means = (f"{value:.2f}" for value in (layer.start, layer.end, layer.average))
            rows.append([name, *means, *(str(layer.channels[width] or "") for width in used)])
        return rows

    def to_json(self) -> dict[str, Any]:
        """Everything."""
        return asdict(self)


@dataclass(frozen=True)
class Differentiable(DifferentiableConfig, PlanMethod):
    """Real-valued widths of least loss, and the whole ones that they become.

    Activations stay float while widths are searched, as in every search.
    """

    name: ClassVar[str] = "differentiable"
    about: ClassVar[str] = "real-valued widths by gradient descent, needs torch"

    @property
    def learning(self) -> Learning:
        """From all samples of the card."""
        return Learning(self.augment, self.alpha)

    def plan(self, scene: Scene, bits: float) -> Planned:
        """Widths of at most `bits` on average.

        Raises:
            ConfigError: the layers that are kept leave nothing to meet the budget with, or torch is not installed.
            UnsupportedOperatorError: an operator cannot be trained.
        """
        # Only here, so that every other method works without torch.
        from onnx_cbq.training.widths import WidthLoss, width_parts  # noqa: PLC0415

        work, keep, weights = scene.work, scene.settings.keep, scene.class_weights
        free = FreeChannels(work.layers, kept_layers(work.layers, keep), bits)
        free.require_budget(keep, bits)
        unit = free.layer_of if self.granularity == "layer" else np.arange(len(free.sizes))
        sizes = np.bincount(unit, free.sizes)
        levels, learned, seed = _levels(scene), _learned(scene), scene.settings.samples.seed
        counted = weights, scene.evidence.groups

        def slope_from(updates: int, batch: int) -> Slope:
            loss_of = WidthLoss.of(work, levels, learned, counted, replace(self, batch=batch), seed, updates)

            def slope(widths: Array) -> tuple[float, Array]:
                loss, gradients = loss_of(free.by_layer(widths[unit]))
                each = free.sums(np.concatenate([gradients[layer.name] for layer in free.layers]))
                return loss, np.bincount(unit, each)

            return slope

        of_loss = width_parts(work, levels, learned, self)
        insisted = work.samples.fixed_batch
        config = replace(self, batch=insisted or min(self.batch, len(learned)))
        descending = Descending(
            config, work.cache, lambda: [*of_loss(), *counted, seed, keep, bits], scene.progress, insisted is None
        )
        found = descending.run(slope_from, sizes, free.budget)
        # What any width all alike becomes that has the budget as its average.
        even = round_widths(np.full(len(sizes), free.budget), sizes, free.budget)[unit]
        whole = round_widths(found.widths, sizes, free.budget)[unit]
        measure = scene.evidence.of(measure_by_tables if scene.settings.rounding.compensates else measure_by_nearest)
        loss, alike = (measure(free.plan(bits)).loss(weights) for bits in (whole, even))
        kept = whole if loss <= alike else even
        layers = _layer_widths(free, found, unit, kept)
        report = WidthReport(layers, found.trace, found.batch, loss, alike)
        return Planned(free.plan(kept), _notes(len(learned), report, config), report)


def _levels(scene: Scene) -> dict[str, Levels]:
    """Every layer at every width, rounded as the weights will be."""
    if scene.settings.rounding.compensates:
        return {name: Levels.of(table) for name, table in scene.evidence.of(width_tables).items()}
    work = scene.work
    return {layer.name: Levels.nearest(layer.rows(work.model.weight(layer.weight)), layer) for layer in work.layers}


def _learned(scene: Scene) -> Indices:
    """The card's samples of the classes that count, without those held back: for training behind it, and to measure by.

    Widths learn by heart which errors make up for each other on few samples, and lose several times as much on others.
    """
    work, settings = scene.work, scene.settings
    everything = draw(work.samples, work.class_names, None, settings.samples.seed)
    if settings.spared:
        everything, _ = everything.split(settings.spared, MOST_HELD)
    counted = np.flatnonzero(scene.class_weights).tolist()
    learned = np.concatenate([everything.by_class[m] for m in counted])
    return np.setdiff1d(learned, scene.evidence.held.indices)


def _notes(samples: int, report: WidthReport, config: DifferentiableConfig) -> tuple[str, ...]:
    """From how many samples widths were learned, and what stood in the way."""
    learned = f"--method differentiable: widths learned from {samples:,} samples of the card; evaluate with others"
    notes = [learned]
    if report.batch < config.batch:
        notes.append(
            f"--width-minutes {config.minutes:g}: too few for {config.updates} updates of {config.batch} samples, so "
            f"they learned from {report.batch} each"
        )
    if report.divergence > report.even:
        notes.append(
            f"--method differentiable: the widths that were learned lose {report.divergence:.4f} nats on samples held "
            f"back, all channels alike {report.even:.4f}, so they stay alike; more samples or --width-minutes may help"
        )
    return tuple(notes)


def _layer_widths(free: FreeChannels, found: Descent, unit: Array, bits: Array) -> dict[str, LayerWidths]:
    """What became of the widths, layer by layer."""
    ends, whole = free.by_layer(found.widths[unit]), free.plan(bits).bits
    return {
        layer.name: LayerWidths(
            found.first,
            float(ends[layer.name].mean()),
            float(whole[layer.name].mean()),
            tuple(np.bincount(whole[layer.name], minlength=9).tolist()),
        )
        for layer in free.layers
    }
