"""What workers do to score channels: forward and backward passes over the samples of one class, summed up.

Shards are some batches of one row of the scores: of a class, or of an output beside the class scores. Where all batches
of a row are in one shard the sums of its neurons never leave the worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from onnx_cbq.calibration.samples import Batch, Indices, Samples
from onnx_cbq.errors import ModelError
from onnx_cbq.evidence.scoring_graph import ScoringGraph, UseSums
from onnx_cbq.execution import Place
from onnx_cbq.gradient.further import Further
from onnx_cbq.model import Array
from onnx_cbq.quantize.moments import shared_out
from onnx_cbq.records import Grouping, Layer, Layers
from onnx_cbq.runtime import Session

# beta, saliency and squared gradient of every layer, each [channels].
LayerRow = dict[str, tuple[Array, Array, Array]]


@dataclass(frozen=True)
class Shard:
    """Batches of one row.

    Attributes:
        row: a group of classes, or behind them an output that counts beside the class scores.
        first: the number of the first batch within its row.
        chunks: the samples of each.
        of, batches: samples and batches of the whole row.
    """

    row: int
    first: int
    chunks: tuple[Indices, ...]
    of: int
    batches: int

    @property
    def samples(self) -> int:
        """In these batches."""
        return sum(map(len, self.chunks))

    @property
    def last(self) -> bool:
        """Whether the row ends here."""
        return self.first + len(self.chunks) == self.batches

    @property
    def whole(self) -> bool:
        """Whether this is the whole row."""
        return self.first == 0 and self.last


@dataclass(frozen=True)
class ScoringWork:
    """A graph that scores layers, and samples whose classes are told apart up to groups."""

    graph: ScoringGraph
    layers: Layers
    samples: Samples
    groups: Grouping

    def start(self, place: Place) -> Scorer:
        """No session yet: not every task needs both."""
        return Scorer(self, place)


@dataclass(frozen=True)
class Scorer:
    """What a worker holds."""

    work: ScoringWork
    place: Place

    @cached_property
    def forward(self) -> Session:
        """Gives the logits, and the tensors that count beside them."""
        return self.place.session(self.work.graph.forward)

    def batches(self, shards: Sequence[Shard]) -> Iterator[Batch]:
        """Those of all shards, one after another."""
        return self.work.samples.of_chunks(chunk for shard in shards for chunk in shard.chunks)

    def signs(self, one: Further, deviations: Mapping[str, float], batch: Batch, seed: Sequence[int]) -> Array:
        """Seeds of a further output for a batch."""
        counts = batch.count, len(next(iter(batch.feeds.values())))
        return _signs(self.work.graph, one, deviations[one.tensor], counts, np.random.default_rng(seed))


@dataclass(frozen=True)
class Scored:
    """A row of the scores where a shard is all of it, else sums by name."""

    row: LayerRow | None
    sums: dict[str, Array]


@dataclass(frozen=True)
class Score:
    """Criticality, saliency and squared gradients by the logit of a group, or by a further output.

    Attributes:
        deviations: of further outputs over the samples.
    """

    deviations: Mapping[str, float]
    leaves: ClassVar[bool] = False

    def on(self, held: Scorer) -> Callable[[Sequence[Shard]], Iterator[Scored]]:
        """What comes of each shard."""
        graph, session = held.work.graph, held.place.session(held.work.graph.model)

        def run(shards: Sequence[Shard]) -> Iterator[Scored]:
            batches = held.batches(shards)
            for shard in shards:
                totals: dict[str, Array] = {}
                for number in range(len(shard.chunks)):
                    batch = next(batches)
                    fed = len(next(iter(batch.feeds.values())))
                    seeds = self._seeds(held, batch, shard.row, shard.first + number)
                    add_to(totals, session.run({**batch.feeds, **graph.feeds(fed, seeds)}))
                _check_finite(held.work.layers, graph, totals)
                yield Scored(row_of(held.work, totals, shard.of), {}) if shard.whole else Scored(None, totals)

        return run

    def _seeds(self, held: Scorer, batch: Batch, row: int, number: int) -> dict[str, Array]:
        graph, groups = held.work.graph, held.work.groups
        fed = len(next(iter(batch.feeds.values())))
        if row >= len(groups.names):
            one = graph.further[row - len(groups.names)]
            return {one.tensor: held.signs(one, self.deviations, batch, (0, row, number))}
        kind, phi, tensor = graph.logits.kind, graph.logits.phi, graph.logits.tensor
        return {tensor: phi.gradient(_padded(kind.seed(batch.labels, groups, row), fed), graph.shape(tensor, fed))}


@dataclass(frozen=True)
class Differentiate:
    """Squared gradients of a likelihood that the model draws, by random signs.

    Attributes:
        deviations: of further outputs over the samples.
        seed: of the signs.
    """

    deviations: Mapping[str, float]
    seed: int
    leaves: ClassVar[bool] = False

    def on(self, held: Scorer) -> Callable[[Sequence[Shard]], Iterator[dict[str, Array]]]:
        """Sums by name."""
        graph = held.work.graph
        names = [s.negative_square for uses in graph.sums.values() for s in uses]
        backward = held.place.session(graph.model.with_graph(outputs=names))

        def run(shards: Sequence[Shard]) -> Iterator[dict[str, Array]]:
            batches = held.batches(shards)
            for shard in shards:
                totals: dict[str, Array] = {}
                for number in range(len(shard.chunks)):
                    batch = next(batches)
                    fed = len(next(iter(batch.feeds.values())))
                    seeds = self._seeds(held, batch, (self.seed, shard.row, shard.first + number))
                    add_to(totals, backward.run({**batch.feeds, **graph.feeds(fed, seeds)}))
                yield totals

        return run

    def _seeds(self, held: Scorer, batch: Batch, seed: tuple[int, int, int]) -> dict[str, Array]:
        graph, fed = held.work.graph, len(next(iter(batch.feeds.values())))
        kind, phi, tensor = graph.logits.kind, graph.logits.phi, graph.logits.tensor
        logits = phi.rows(held.forward.run(batch.feeds, [tensor])[tensor])[: batch.count]
        towards = kind.direction(logits, batch.labels, held.work.groups, np.random.default_rng(seed))
        seeds = {tensor: phi.gradient(_padded(towards, fed), graph.shape(tensor, fed))}
        for i, one in enumerate(graph.further):
            signs = held.signs(one, self.deviations, batch, (*seed, i))
            seeds[one.tensor] = seeds[one.tensor] + signs if one.tensor in seeds else signs
        return seeds


def row_of(work: ScoringWork, totals: Mapping[str, Array], count: int) -> LayerRow:
    """A row of the scores, from the sums over its samples."""
    return {layer.name: _class_scores(layer, work.graph.sums[layer.name], totals, count) for layer in work.layers}


def _signs(
    graph: ScoringGraph, one: Further, deviation: float, counts: tuple[int, int], random: np.random.Generator
) -> Array:
    """Seeds of a further output: random signs, so that E s s^T = 1 / (elements x variance); `counts` real and fed."""
    count, fed = counts
    shape = graph.shape(one.tensor, fed)
    rest = int(np.prod(np.delete(shape, one.batch_axis)))
    scale = 1 / (deviation * np.sqrt(rest)) if deviation else 0.0
    signs = random.choice(np.array([-1.0, 1.0]), shape) * scale
    np.moveaxis(signs, one.batch_axis, 0)[count:] = 0
    return np.asarray(signs)


def _padded(rows: Array, fed: int) -> Array:
    """Rows [samples, ...] with zeros for the samples that only fill up a batch of `fed`."""
    return rows if len(rows) == fed else np.concatenate([rows, np.zeros((fed - len(rows), *rows.shape[1:]))])


def _check_finite(layers: Layers, graph: ScoringGraph, totals: Mapping[str, Array]) -> None:
    for layer in layers:
        sums = (totals.get(name) for use in graph.sums[layer.name] for name in (use.saliency, use.negative_square))
        if not all(value is None or np.isfinite(value).all() for value in sums):
            raise ModelError(
                f"tensor {layer.uses[0].output!r} of layer {layer.name!r}, or its gradient, holds NaN or infinity on "
                f"the calibration samples; expected finite numbers; check that the samples are prepared as the model "
                f"was trained"
            )


def add_to(totals: dict[str, Array], sums: Mapping[str, Array]) -> None:
    """Add sums up by name, in float64."""
    for name, value in sums.items():
        totals[name] = totals.get(name, 0.0) + value.astype(np.float64)


def squares(layer: Layer, uses: tuple[UseSums, ...], totals: Mapping[str, Array], count: int) -> Array:
    """Mean over samples of the sum of g^2 of one class, [channels]."""
    square = np.zeros(layer.channels)
    for use in uses:
        square = square - layer.per_channel(totals[use.negative_square]).sum(axis=1) / count
    return shared_out(square) if layer.kind == "table" else square


def _class_scores(
    layer: Layer, uses: tuple[UseSums, ...], totals: Mapping[str, Array], count: int
) -> tuple[Array, Array, Array]:
    """beta, saliency and squared gradient of one class from its totals, each [channels]."""
    beta, saliency = np.zeros((2, layer.channels))
    for use in uses:
        # [*neurons of a sample] -> [outputs, positions]
        critical = np.moveaxis(totals[use.critical], use.channel_axis, 0)
        critical = critical.reshape(len(critical), -1)
        outputs, positions = critical.shape
        beta = np.maximum(beta, layer.per_channel(critical.max(axis=1)).max(axis=1) / count)
        saliency = saliency + layer.per_channel(totals[use.saliency]).sum(axis=1) / (count * positions * outputs)
    saliency = saliency * layer.channels / max(len(uses), 1)
    if layer.kind == "table":
        # A row may be looked up several times in a sample.
        beta, saliency = np.minimum(shared_out(beta), 1), shared_out(saliency)
    return beta, saliency, squares(layer, uses, totals, count)
