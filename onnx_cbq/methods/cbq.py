"""Class-based quantization: thresholds on how many classes need a channel (Sun et al., DATE 2023, arXiv 2211.14928)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnx_cbq.evidence import class_scores
from onnx_cbq.evidence.workload import Workload
from onnx_cbq.methods.channels import FreeChannels, kept_layers
from onnx_cbq.methods.method import PlanMethod, Planned
from onnx_cbq.methods.unmeasured import plan_by_weights, unmeasured_note, why_alike
from onnx_cbq.search.cbq import CbqConfig, search_thresholds
from onnx_cbq.settings import MOST_BITS
from onnx_cbq.stages.scene import Scene

# The first and the last layer are pinned only where they hold at most this share of the weights.
LARGEST_PINNED_SHARE = 0.1


@dataclass(frozen=True)
class Cbq(CbqConfig, PlanMethod):
    """The paper's threshold search over all channels but the pinned ones.

    The layer that makes the logits is needed by every class, since the decision compares all logits; the score of its
    neurons, taken from the sample's own logit alone, cannot show that.
    """

    name: ClassVar[str] = "cbq"
    about: ClassVar[str] = "by class importance"

    def plan(self, scene: Scene, bits: float) -> Planned:
        """Widths of at most `bits` on average."""
        layers, keep, notes = scene.work.layers, scene.settings.keep, []
        scores = scene.evidence.of(class_scores)
        measure = scene.settings.rounding.measure(scene.evidence)
        kept = kept_layers(layers, keep)
        ends = {layers.layers[0].name, layers.layers[-1].name} if self.pin_ends else set()
        share = sum(layers.by_name[name].size for name in ends) / layers.size
        free = FreeChannels(layers, {**dict.fromkeys(ends, MOST_BITS), **kept}, bits)
        if ends and (share > LARGEST_PINNED_SHARE or free.budget <= 0 or not free.layers):
            notes.append(f"first and last layer are searched too: they hold {share:.0%} of the weights")
            free = FreeChannels(layers, kept, bits)
        free.require_budget(keep, bits)
        classes = sum(count > 0 for count in scores.samples)
        if classes < len(scores.class_names):
            notes.append(
                f"importance counts the {classes:,} of {len(scores.class_names):,} classes that were scored; whether a "
                f"channel is needed for others cannot be known without samples of them"
            )
        decides = deciding_layers(scene.work)
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
            self,
            lambda start, average: scene.progress(
                "search", round((start - average) * 100), max(round((start - free.budget) * 100), 1)
            ),
        )
        accuracies = {accuracy for _, accuracy in found.moves}
        if len(accuracies) == 1 and (why := why_alike(free, measure, scene.class_weights)):
            return Planned(plan_by_weights(scene.work.model, free), (*notes, unmeasured_note(why)))
        thresholds = ", ".join(f"{p:g}" for p in found.thresholds)
        notes.append(f"thresholds on importance: {thresholds}; {found.measured} plans measured")
        return Planned(free.plan(found.bits), tuple(notes))


def deciding_layers(work: Workload) -> set[str]:
    """The layers whose channels are the classes: no other layer stands between them and the logits."""
    layers = {use.output: layer for layer in work.layers.products for use in layer.uses}
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
