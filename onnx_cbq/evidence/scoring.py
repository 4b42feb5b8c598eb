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

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from onnx_cbq.calibration.draw import Draw
from onnx_cbq.calibration.samples import Indices, Samples
from onnx_cbq.evidence.gradients import (
    Differentiate,
    LayerRow,
    Score,
    ScoringWork,
    Shard,
    add_to,
    row_of,
    squares,
)
from onnx_cbq.evidence.tensors import deviations
from onnx_cbq.execution import IN_PROCESS, Engine
from onnx_cbq.model import Array
from onnx_cbq.records import Grouping, Layers, LayerScores, Scores
from onnx_cbq.system.progress import Progress, silent

LARGEST_BATCH = 100
# Layer outputs of one batch; the whole graph holds about four times as much.
BATCH_BYTES = 256 << 20
# Batches of a class that are summed up before their sums are handed on.
_TOGETHER = 8


def score_channels(work: ScoringWork, drawn: Draw, progress: Progress = silent, engine: Engine = IN_PROCESS) -> Scores:
    """Score every channel on the samples `drawn`. Cost: about three forward passes per sample.

    Scores are by group; Phi is the mean logit of the sample's group. Outputs that count beside the class scores have
    scores of their own, where Phi is their sum with random signs, in units of what they vary.

    Memory: one running sum per neuron, whatever the number of samples and of classes, and the scores.

    Raises:
        CalibrationError: a sample cannot be read.
        ModelError: outputs or gradients are not finite.
    """
    layers, groups, further = work.layers, work.groups, work.graph.further
    by_group = members(work.samples, drawn, groups)
    given = [*by_group, *(drawn.indices for _ in further)]
    shards = _shards(work, given)
    rows: dict[int, LayerRow] = {}
    totals: dict[str, Array] = {}
    done, total = 0, sum(map(len, given))
    task = Score(_deviations(work, drawn, engine))
    with engine.crew(work, shards) as crew:
        for shard, found in zip(shards, crew.each(task), strict=True):
            add_to(totals, found.sums)
            if found.row is not None:
                rows[shard.row] = found.row
            elif shard.last:
                rows[shard.row], totals = row_of(work, totals, shard.of), {}
            done += shard.samples
            progress("scoring", done, total)
    counts = tuple(len(indices) for indices in by_group)
    shape = len(groups.names), len(groups.names) + len(further)
    return Scores(tuple(_by_layer(rows, layers, shape)), groups.names, counts)


def _shards(work: ScoringWork, rows: Sequence[Indices]) -> list[Shard]:
    """The batches of every row, up to `_TOGETHER` of them in a shard."""
    size, found = batch_size(work.layers), []
    for row, indices in enumerate(rows):
        chunks = work.samples.chunks(indices, size)
        found += [
            Shard(row, first, tuple(chunks[first : first + _TOGETHER]), len(indices), len(chunks))
            for first in range(0, len(chunks), _TOGETHER)
        ]
    return found


def _by_layer(rows: Mapping[int, LayerRow], layers: Layers, shape: tuple[int, int]) -> Iterator[LayerScores]:
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
    work: ScoringWork, drawn: Draw, seed: int, progress: Progress = silent, engine: Engine = IN_PROCESS
) -> dict[str, Array]:
    """What noise at the output of each channel costs: the diagonal of the Fisher information, [groups, channels].

    It is the mean over samples of the sum over the channel's neurons of g^2, for each layer by name, where g is the
    gradient of the log-likelihood of a group of classes that the model itself draws.

    To second order the Kullback-Leibler divergence from the model is 1/2 d F d^T with F = J^T (diag p - p p^T) J. With
    random signs e the seed s = sqrt(p) e - p (sqrt(p) . e) has E s s^T = diag p - p p^T, so a single backward pass per
    sample estimates the diagonal of F without bias (`records.answers.Kind.direction`). Outputs that count beside the
    class scores have seeds of independent signs in the same pass. Cost: about four forward passes per sample.
    """
    graph = work.graph
    given = members(work.samples, drawn, work.groups)
    shards = _shards(work, given)
    # A row that nothing is written to takes no memory.
    found = {layer.name: np.zeros((len(given), layer.channels)) for layer in work.layers}
    totals: dict[str, Array] = {}
    done = 0
    task = Differentiate(_deviations(work, drawn, engine), seed)
    with engine.crew(work, shards) as crew:
        for shard, sums in zip(shards, crew.each(task), strict=True):
            add_to(totals, sums)
            if shard.last:
                for layer in work.layers:
                    found[layer.name][shard.row] = squares(layer, graph.sums[layer.name], totals, shard.of)
                totals = {}
            done += shard.samples
            progress("sensitivity", done, sum(map(len, given)))
    return found


def _deviations(work: ScoringWork, drawn: Draw, engine: Engine) -> Mapping[str, float]:
    """How much further outputs vary over the samples; see `tensors.deviations`."""
    graph = work.graph
    return deviations(graph.forward, graph.further, work.samples, drawn.indices, batch_size(work.layers), engine)


def members(samples: Samples, drawn: Draw, groups: Grouping) -> list[Indices]:
    """The samples drawn that have a class of each group; where a sample has several classes it stands in all."""
    if samples.known is None or samples.known.truth.ndim == 1:
        return list(drawn.by_group(groups.of_class))
    indices = drawn.indices
    truth, kind = samples.known.truth[indices], samples.known.kind
    return [indices[kind.having(truth, groups, number)] for number in range(len(groups.names))]


def batch_size(layers: Layers) -> int:
    """How many samples to run at once, so that their layer outputs fit `BATCH_BYTES`."""
    per_sample = sum(4 * int(np.prod(use.output_shape)) // layer.samples for layer in layers for use in layer.uses)
    return max(min(BATCH_BYTES // max(per_sample, 1), LARGEST_BATCH), 1)
