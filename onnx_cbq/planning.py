"""Turn a method's name into a plan: hand the search its arrays and a function that measures a plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from onnx_cbq.calibration.samples import Batch, Indices, Samples
from onnx_cbq.config import MOST_BITS, CbqConfig
from onnx_cbq.graph.logits import Logits
from onnx_cbq.model import Array, Model
from onnx_cbq.progress import Progress
from onnx_cbq.quantize.grid import Channels, quantize_rows
from onnx_cbq.records import Layer, Layers, Plan, Scores
from onnx_cbq.runtime import Session
from onnx_cbq.search.cbq import search_thresholds

# The first and the last layer are pinned only where they hold at most this share of the weights.
LARGEST_PINNED_SHARE = 0.1
# Samples that plans are measured on stay in memory up to this size, and are read again for every plan beyond it.
HELD_BYTES = 128 << 20


@dataclass(frozen=True)
class Planned:
    """A plan, and what the search has to say about how it came about."""

    plan: Plan
    notes: tuple[str, ...] = ()


def plan_uniform(layers: Layers, bits: int) -> Planned:
    """The same width for every channel."""
    return Planned(Plan({layer.name: np.full(layer.channels, bits, np.int8) for layer in layers}))


def plan_by_importance(
    layers: Layers,
    scores: Scores,
    logits: Logits,
    budget: float,
    measure: Callable[[Plan], float],
    config: CbqConfig,
    progress: Progress,
) -> Planned:
    """CBQ's threshold search over all channels but the pinned ones.

    The layer that makes the logits is needed by every class, since the decision compares all logits; the score of its
    neurons, taken from the sample's own logit alone, cannot show that.
    """
    notes: list[str] = []
    pinned = _pinned(layers, config, notes)
    free = [layer for layer in layers if layer.name not in pinned]
    classes = float(len(scores.class_names))
    decides = {layer.name for layer in layers if any(use.output == logits.tensor for use in layer.uses)}
    importance = [
        np.full(layer.channels, classes) if layer.name in decides else scores.by_layer[layer.name].gamma
        for layer in free
    ]
    saliency = [scores.by_layer[layer.name].saliency.sum(axis=0) for layer in free]
    sizes = [np.full(layer.channels, layer.weights_per_channel) for layer in free]
    held = sum(layer.size for layer in layers if layer.name in pinned) * MOST_BITS
    rest = (budget * layers.size - held) / sum(layer.size for layer in free)

    def plan_of(bits: Array) -> Plan:
        parts = np.split(bits, np.cumsum([layer.channels for layer in free])[:-1])
        searched = {layer.name: part for layer, part in zip(free, parts, strict=True)}
        return Plan(
            {layer.name: searched.get(layer.name, np.full(layer.channels, MOST_BITS, np.int8)) for layer in layers}
        )

    found = search_thresholds(
        np.concatenate(importance),
        np.concatenate(saliency),
        np.concatenate(sizes),
        rest,
        lambda bits: measure(plan_of(bits)),
        config,
        lambda start, average: progress("search", round((start - average) * 100), round((start - rest) * 100)),
    )
    thresholds = ", ".join(f"{p:g}" for p in found.thresholds)
    notes.append(f"thresholds on importance: {thresholds}; {found.measured} plans measured")
    return Planned(plan_of(found.bits), tuple(notes))


def _pinned(layers: Layers, config: CbqConfig, notes: list[str]) -> set[str]:
    ends = {layers.layers[0].name, layers.layers[-1].name} if config.pin_ends else set()
    share = sum(layers.by_name[name].size for name in ends) / layers.size
    if share <= LARGEST_PINNED_SHARE:
        return ends
    notes.append(f"first and last layer are searched too: they hold {share:.0%} of the weights")
    return set()


class PlanMeasure:
    """Accuracy of a plan: the model with its weights rounded as planned, activations in float.

    Rounding a layer to a width is done once and kept: a byte per weight and width.
    """

    def __init__(
        self, model: Model, layers: Layers, samples: Samples, indices: Indices, size: int, output: str
    ) -> None:
        self._model = model
        self._layers = layers
        self._output = output
        self._rounded: dict[tuple[str, int], Channels] = {}
        self._values: dict[str, tuple[bytes, Array]] = {}
        self._batches = _replayable(samples, indices, size)

    def __call__(self, plan: Plan) -> float:
        """Share of samples whose class is predicted, in [0, 1]."""
        weights = {layer.weight: self._weight(layer, plan.bits[layer.name]) for layer in self._layers}
        session = Session(self._model.with_constants(weights))
        hits = count = 0
        for batch in self._batches():
            scores = session.run(batch.feeds, [self._output])[self._output]
            predictions = scores.reshape(len(scores), -1)[: batch.count].argmax(axis=1)
            hits += int((predictions == batch.labels).sum())
            count += batch.count
        return hits / count

    def _weight(self, layer: Layer, bits: Array) -> Array:
        key = bits.tobytes()
        known = self._values.get(layer.name)
        if known is None or known[0] != key:
            rows = np.empty((layer.channels, layer.weights_per_channel), np.float32)
            for width in np.unique(bits):
                chosen = bits == width
                rows[chosen] = self._rows(layer, int(width)).values[chosen]
            self._values[layer.name] = (key, layer.unrows(rows))
        return self._values[layer.name][1]

    def _rows(self, layer: Layer, width: int) -> Channels:
        if (layer.name, width) not in self._rounded:
            weight = self._model.constant(layer.weight)
            assert weight is not None
            rows = layer.rows(weight)
            self._rounded[layer.name, width] = quantize_rows(rows, np.full(len(rows), width, np.int8))
        return self._rounded[layer.name, width]


def _replayable(samples: Samples, indices: Indices, size: int) -> Callable[[], Iterator[Batch]]:
    """A function that gives the batches anew each time; they are kept in memory if they are small."""
    one = samples.read(indices[:1])
    if sum(value.nbytes for value in one.values()) * len(indices) > HELD_BYTES:
        return lambda: samples.batches(indices, size)
    kept = list(samples.batches(indices, size))
    return lambda: iter(kept)
