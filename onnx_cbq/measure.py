"""What a plan does to a model: the float model with its weights rounded as planned, on held-back samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.special import log_softmax

from onnx_cbq.calibration.samples import Batch, Indices, Samples
from onnx_cbq.graph.logits import Logits
from onnx_cbq.model import Array, Model
from onnx_cbq.quantize.grid import Channels, quantize_rows
from onnx_cbq.quantize.table import Table
from onnx_cbq.records import Grouping, Layer, Layers, Plan, Seen
from onnx_cbq.runtime import Session

# Samples that plans are measured on stay in memory up to this size, and are read again for every plan beyond it.
HELD_BYTES = 128 << 20


@dataclass(frozen=True)
class Measured:
    """What a plan does on the held-back samples of each class, all arrays [classes].

    Attributes:
        counts: samples.
        hits: samples whose class is predicted.
        divergence: sum over samples of the Kullback-Leibler divergence from the float model, in nats.
        labels, divergences: of each sample, [samples].
    """

    counts: Array
    hits: Array
    divergence: Array
    labels: Array
    divergences: Array

    @property
    def accuracy(self) -> float:
        """Share of samples whose class is predicted, in [0, 1]."""
        return float(self.hits.sum() / self.counts.sum())

    def loss(self, class_weights: Array) -> float:
        """Mean divergence, a sample counting as its class does."""
        return float(class_weights @ self.divergence / (class_weights @ self.counts))

    def losses(self, class_weights: Array) -> Array:
        """What each sample adds to the loss, so that their mean is the loss, [samples]."""
        scale = len(self.labels) / (class_weights @ self.counts)
        return np.asarray(scale * class_weights[self.labels] * self.divergences)


class Rounder(Protocol):
    """How measured plans are rounded."""

    def rows(self, layer: Layer, bits: Array) -> Array:
        """The layer's weights at these widths, float32 [channels, weights per channel]."""

    def shift(self, layer: Layer, use: int, bits: Array) -> Array | None:
        """What the bias of a use takes up, [channels]; None for nothing."""


class NearestRounder:
    """Rounding to nearest. A layer is rounded to a width once and kept: a byte per weight and width."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._rounded: dict[tuple[str, int], Channels] = {}

    def rows(self, layer: Layer, bits: Array) -> Array:
        """The nearest levels."""
        rows = np.empty((layer.channels, layer.weights_per_channel), np.float32)
        for width in np.unique(bits):
            chosen = bits == width
            rows[chosen] = self._all(layer, int(width)).values[chosen]
        return rows

    def shift(self, layer: Layer, use: int, bits: Array) -> None:
        """Biases stay."""

    def _all(self, layer: Layer, width: int) -> Channels:
        if (layer.name, width) not in self._rounded:
            rows = layer.rows(self._model.weight(layer.weight))
            self._rounded[layer.name, width] = quantize_rows(
                rows, np.full(len(rows), width, np.int8), layer.rules, layer.lanes
            )
        return self._rounded[layer.name, width]


class TableRounder:
    """Rounding looked up in tables: layer name -> table."""

    def __init__(self, tables: Mapping[str, Table]) -> None:
        self._tables = tables

    def rows(self, layer: Layer, bits: Array) -> Array:
        """The compensated levels."""
        return self._tables[layer.name].rows(bits)

    def shift(self, layer: Layer, use: int, bits: Array) -> Array | None:
        """The mean of what rounding adds."""
        return self._tables[layer.name].shift(use, bits)


class PlanMeasure:
    """Measures plans, activations in float. A layer whose widths stay as they were is not rounded again."""

    def __init__(
        self,
        model: Model,
        layers: Layers,
        held: tuple[Samples, Indices, int],
        outputs: tuple[Logits, Grouping],
        rounder: Rounder | None,
    ) -> None:
        """Without `rounder` only `run` works."""
        logits, self._groups = outputs
        self._names = (logits.tensor, logits.output)
        self._source = model
        self._model = model.with_graph(outputs=dict.fromkeys(self._names))
        self._layers = layers
        self._logits = logits
        self._rounder = rounder
        self._values: dict[str, tuple[bytes, dict[str, Array]]] = {}
        self._batches = replayable(*held)
        self._reference = [self._log_shares(scores) for scores, _, _ in self._run(self._model, self._names)]

    def __call__(self, plan: Plan) -> Measured:
        """Run the model that `plan` makes over the held-back samples."""
        constants: dict[str, Array] = {}
        for layer in self._layers:
            constants |= self._constants(layer, plan.bits[layer.name])
        return self.run(constants)

    def run(self, constants: Mapping[str, Array]) -> Measured:
        """Run the model with some constants replaced over the held-back samples."""
        return self._compare(self._model.with_constants(constants), self._names)

    def run_instead(self, seen: Seen) -> Measured:
        """Run another model over the held-back samples; `seen.names` says what stands for the scores in it."""
        logits, output = (seen.name(name) for name in self._names)
        return self._compare(seen.model.with_graph(outputs=dict.fromkeys((logits, output))), (logits, output))

    def _compare(self, model: Model, names: tuple[str, str]) -> Measured:
        of_class = self._groups.of_class
        counts, hits, divergence = np.zeros((3, self._logits.classes))
        labels: list[Array] = []
        divergences: list[Array] = []
        for reference, (scores, predictions, batch) in zip(self._reference, self._run(model, names), strict=True):
            difference = reference - self._log_shares(scores)
            np.add.at(counts, batch.labels, 1)
            np.add.at(hits, batch.labels, of_class[predictions] == of_class[batch.labels])
            divergences.append((np.exp(reference) * difference).sum(axis=1))
            labels.append(batch.labels)
            np.add.at(divergence, batch.labels, divergences[-1])
        return Measured(counts, hits, divergence, np.concatenate(labels), np.concatenate(divergences))

    def _log_shares(self, logits: Array) -> Array:
        """Logarithms of the probabilities of the groups, [samples, groups]."""
        shares = log_softmax(logits, axis=1)
        if self._groups.is_trivial:
            return np.asarray(shares)
        together = self._groups.sums(np.exp(shares))
        return np.log(np.maximum(together, np.finfo(np.float64).tiny))

    def _run(self, model: Model, names: tuple[str, str]) -> Iterator[tuple[Array, Array, Batch]]:
        """Logits [count, classes] in float64, predictions [count] and the batch itself."""
        session = Session(model)
        for batch in self._batches():
            values = session.run(batch.feeds)
            logits, output = (values[name].reshape(len(values[name]), -1)[: batch.count] for name in names)
            yield logits.astype(np.float64), output.argmax(axis=1), batch

    def _constants(self, layer: Layer, bits: Array) -> dict[str, Array]:
        assert self._rounder is not None
        key = bits.tobytes()
        known = self._values.get(layer.name)
        if known is None or known[0] != key:
            constants = {layer.weight: layer.unrows(self._rounder.rows(layer, bits))}
            for i, use in enumerate(layer.uses):
                shift = self._rounder.shift(layer, i, bits) if use.bias else None
                if shift is not None:
                    bias = self._source.weight(str(use.bias))
                    constants[str(use.bias)] = (bias + shift).astype(np.float32)
            self._values[layer.name] = (key, constants)
        return self._values[layer.name][1]


def replayable(samples: Samples, indices: Indices, size: int) -> Callable[[], Iterator[Batch]]:
    """A function that gives the batches anew each time; they are kept in memory if they are small."""
    one = samples.read(indices[:1])
    if sum(value.nbytes for value in one.values()) * len(indices) > HELD_BYTES:
        return lambda: samples.batches(indices, size)
    kept = list(samples.batches(indices, size))
    return lambda: iter(kept)
