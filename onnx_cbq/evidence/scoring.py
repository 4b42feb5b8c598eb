"""Class scores of every channel by one pass over the samples (CBQ, arXiv 2211.14928, importance score).

For a sample of class m with Phi its logit, a neuron with output z has criticality |z dPhi/dz|, the first-order Taylor
estimate of what removing it changes. It is critical if that exceeds epsilon.

    beta[m, neuron] = share of the samples of class m for which the neuron is critical
    beta[m, filter] = max of beta[m, neuron] over its feature map          gamma[filter] = sum over m of beta[m, filter]

The layer's own output z is scored (batch norm folded): behind a ReLU, z and relu(z) give the same product.

Batches hold one class each, and the sums over samples are taken inside the graph. So the only memory is one running
sum per neuron, whatever the number of samples and of classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from onnx_cbq.calibration.draw import Draw
from onnx_cbq.calibration.samples import Batch, Indices, Samples
from onnx_cbq.errors import ModelError
from onnx_cbq.evidence.scoring_graph import ScoringGraph, UseSums
from onnx_cbq.gradient.further import Further
from onnx_cbq.model import Array, Model
from onnx_cbq.quantize.moments import shared_out
from onnx_cbq.records import Grouping, Layer, Layers, LayerScores, Scores
from onnx_cbq.records.spread import Spread
from onnx_cbq.runtime import Session
from onnx_cbq.system.progress import Progress, silent

LARGEST_BATCH = 100
# Layer outputs of one batch; the whole graph holds about four times as much.
BATCH_BYTES = 256 << 20


def score_channels(
    graph: ScoringGraph,
    layers: Layers,
    samples: Samples,
    drawn: Draw,
    groups: Grouping,
    progress: Progress = silent,
) -> Scores:
    """Score every channel on the samples `drawn`. Cost: about three forward passes per sample.

    Scores are by group; Phi is the mean logit of the sample's group. Outputs that count beside the class scores have
    scores of their own, where Phi is their sum with random signs, in units of what they vary.

    Raises:
        CalibrationError: a sample cannot be read.
        ModelError: outputs or gradients are not finite.
    """
    session = Session(graph.model)
    kind, phi, tensor = graph.logits.kind, graph.logits.phi, graph.logits.tensor
    rows: dict[int, dict[str, tuple[Array, Array, Array]]] = {}
    seen = _Seen(graph, layers, samples, drawn, groups)
    done, total = 0, sum(map(len, seen.by_group)) + len(graph.further) * len(drawn.indices)

    def add_row(number: int, indices: Indices, seeds: Callable[[Batch, int], dict[str, Array]]) -> None:
        nonlocal done
        if not len(indices):
            return
        totals: dict[str, Array] = {}
        for batch in samples.batches(indices, batch_size(layers)):
            fed = len(next(iter(batch.feeds.values())))
            _add_to(totals, session.run({**batch.feeds, **graph.feeds(fed, seeds(batch, fed))}))
        _check_finite(layers, graph, totals)
        rows[number] = {
            layer.name: _class_scores(layer, graph.sums[layer.name], totals, len(indices)) for layer in layers
        }
        done += len(indices)
        progress("scoring", done, total)

    for number, indices in enumerate(seen.by_group):
        add_row(
            number,
            indices,
            lambda batch, fed, number=number: {  # type: ignore[misc]
                tensor: phi.gradient(_padded(kind.seed(batch.labels, groups, number), fed), graph.shape(tensor, fed))
            },
        )
    random = np.random.default_rng(0)
    deviations = seen.deviations() if graph.further else {}
    for number, one in enumerate(graph.further, start=len(seen.by_group)):
        add_row(
            number,
            drawn.indices,
            lambda batch, fed, one=one: {  # type: ignore[misc]
                one.tensor: _signs(graph, one, deviations[one.tensor], (batch.count, fed), random)
            },
        )
    counts = tuple(len(indices) for indices in seen.by_group)
    shape = len(groups.names), len(groups.names) + len(graph.further)
    return Scores(tuple(_by_layer(rows, layers, shape)), groups.names, counts)


def _by_layer(
    rows: Mapping[int, dict[str, tuple[Array, Array, Array]]], layers: Layers, shape: tuple[int, int]
) -> Iterator[LayerScores]:
    """The scores of each layer: a row for every class, then those of further outputs. The rows are used up.

    `shape` is the number of classes, and of all rows. A row that nothing is written to takes no memory.
    """
    classes, total = shape
    for layer in layers:
        found = np.zeros((3, total, layer.channels))
        for number, row in rows.items():
            found[:, number] = row.pop(layer.name)
        yield LayerScores(layer.name, *found[:, :classes], *found[:2, classes:])


def fisher_squares(
    graph: ScoringGraph,
    layers: Layers,
    samples: Samples,
    drawn: Draw,
    groups: Grouping,
    seed: int,
    progress: Progress = silent,
) -> dict[str, Array]:
    """What noise at the output of each channel costs: the diagonal of the Fisher information, [groups, channels].

    It is the mean over samples of the sum over the channel's neurons of g^2, for each layer by name, where g is the
    gradient of the log-likelihood of a group of classes that the model itself draws.

    To second order the Kullback-Leibler divergence from the model is 1/2 d F d^T with F = J^T (diag p - p p^T) J. With
    random signs e the seed s = sqrt(p) e - p (sqrt(p) . e) has E s s^T = diag p - p p^T, so a single backward pass per
    sample estimates the diagonal of F without bias (`records.answers.Kind.direction`). Outputs that count beside the
    class scores have seeds of independent signs in the same pass. Cost: about four forward passes per sample.
    """
    names = [s.negative_square for uses in graph.sums.values() for s in uses]
    forward, backward = Session(graph.forward), Session(graph.model.with_graph(outputs=names))
    random = np.random.default_rng(seed)
    kind, phi, tensor = graph.logits.kind, graph.logits.phi, graph.logits.tensor
    seen = _Seen(graph, layers, samples, drawn, groups)
    deviations = seen.deviations() if graph.further else {}
    # A row that nothing is written to takes no memory.
    found = {layer.name: np.zeros((len(seen.by_group), layer.channels)) for layer in layers}
    done = 0
    for number, indices in enumerate(seen.by_group):
        if not len(indices):
            continue
        totals: dict[str, Array] = {}
        for batch in samples.batches(indices, batch_size(layers)):
            fed = len(next(iter(batch.feeds.values())))
            logits = phi.rows(forward.run(batch.feeds, [tensor])[tensor])[: batch.count]
            towards = kind.direction(logits, batch.labels, groups, random)
            seeds = {tensor: phi.gradient(_padded(towards, fed), graph.shape(tensor, fed))}
            for one in graph.further:
                signs = _signs(graph, one, deviations[one.tensor], (batch.count, fed), random)
                seeds[one.tensor] = seeds[one.tensor] + signs if one.tensor in seeds else signs
            _add_to(totals, backward.run({**batch.feeds, **graph.feeds(fed, seeds)}))
        for layer in layers:
            found[layer.name][number] = _squares(layer, graph.sums[layer.name], totals, len(indices))
        done += len(indices)
        progress("sensitivity", done, sum(map(len, seen.by_group)))
    return found


class _Seen:
    """The samples that are scored: those of each group, and what further outputs are on them."""

    def __init__(self, graph: ScoringGraph, layers: Layers, samples: Samples, drawn: Draw, groups: Grouping) -> None:
        self._graph, self._layers, self._samples, self._drawn = graph, layers, samples, drawn
        self.by_group = members(samples, drawn, groups)

    def deviations(self) -> dict[str, float]:
        """Standard deviation of each further output over the samples: tensor -> number, 0 if it does not vary."""
        graph, size = self._graph, batch_size(self._layers)
        return deviations(graph.forward, graph.further, self._samples, self._drawn.indices, size)


def deviations(
    model: Model, further: Sequence[Further], samples: Samples, indices: Indices, size: int
) -> dict[str, float]:
    """Standard deviation of each further output over the samples: tensor -> number, 0 if it does not vary."""
    spreads = {one.tensor: Spread() for one in further}
    session = Session(model.with_graph(outputs=list(spreads)))
    for batch in samples.batches(indices, size):
        values = session.run(batch.feeds)
        for one in further:
            spreads[one.tensor].add(np.moveaxis(values[one.tensor], one.batch_axis, 0)[: batch.count])
    return {name: float(np.sqrt(spread.variance)) for name, spread in spreads.items()}


def members(samples: Samples, drawn: Draw, groups: Grouping) -> list[Indices]:
    """The samples drawn that have a class of each group; where a sample has several classes it stands in all."""
    if samples.known is None or samples.known.truth.ndim == 1:
        return list(drawn.by_group(groups.of_class))
    indices = drawn.indices
    truth, kind = samples.known.truth[indices], samples.known.kind
    return [indices[kind.having(truth, groups, number)] for number in range(len(groups.names))]


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


def batch_size(layers: Layers) -> int:
    """How many samples to run at once, so that their layer outputs fit `BATCH_BYTES`."""
    per_sample = sum(4 * int(np.prod(use.output_shape)) // layer.samples for layer in layers for use in layer.uses)
    return max(min(BATCH_BYTES // max(per_sample, 1), LARGEST_BATCH), 1)


def _check_finite(layers: Layers, graph: ScoringGraph, totals: Mapping[str, Array]) -> None:
    for layer in layers:
        sums = (totals.get(name) for use in graph.sums[layer.name] for name in (use.saliency, use.negative_square))
        if not all(value is None or np.isfinite(value).all() for value in sums):
            raise ModelError(
                f"tensor {layer.uses[0].output!r} of layer {layer.name!r}, or its gradient, holds NaN or infinity on "
                f"the calibration samples; expected finite numbers; check that the samples are prepared as the model "
                f"was trained"
            )


def _add_to(totals: dict[str, Array], sums: Mapping[str, Array]) -> None:
    for name, value in sums.items():
        totals[name] = totals.get(name, 0.0) + value.astype(np.float64)


def _squares(layer: Layer, uses: tuple[UseSums, ...], totals: Mapping[str, Array], count: int) -> Array:
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
    return beta, saliency, _squares(layer, uses, totals, count)
