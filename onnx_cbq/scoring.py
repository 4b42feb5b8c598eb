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

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from onnx_cbq.calibration.samples import Draw, Indices, Samples
from onnx_cbq.config import ScoringConfig
from onnx_cbq.errors import ModelError
from onnx_cbq.gradient.backward import attach, build_backward
from onnx_cbq.gradient.expand import expand
from onnx_cbq.gradient.step import Builder
from onnx_cbq.graph.logits import Logits
from onnx_cbq.graph.shapes import Example
from onnx_cbq.model import Array, Model
from onnx_cbq.progress import Progress, silent
from onnx_cbq.records import Grouping, Layer, Layers, LayerScores, Scores, Use
from onnx_cbq.runtime import Session

LARGEST_BATCH = 100
# Layer outputs of one batch; the whole graph holds about four times as much.
BATCH_BYTES = 256 << 20


@dataclass(frozen=True)
class UseSums:
    """Graph outputs that hold one batch's sums for one use of a layer."""

    critical: str  # samples for which each neuron is critical, the use's output shape without the batch
    saliency: str  # sum of |z g| per output channel
    negative_square: str  # -sum of g^2 per output channel
    channel_axis: int  # of `critical`


@dataclass(frozen=True)
class ScoringGraph:
    """A model that gives the sums for one batch, fed with the samples and with `seed`, one-hot on their class.

    `forward` gives the logits alone: behind a layer, nothing of the sums reads them.
    """

    model: Model
    forward: Model
    seed: str
    logits: str
    logits_shape: tuple[int, ...]  # without the batch
    sums: Mapping[str, tuple[UseSums, ...]]  # by layer; uses that the logits do not depend on are left out


def scoring_graph(
    model: Model, layers: Layers, logits: Logits, example: Example, config: ScoringConfig
) -> ScoringGraph:
    """Build the graph that scores `layers`.

    Raises:
        UnsupportedOperatorError: a node between a layer and the logits has no gradient rule.
    """
    expanded = expand(model, example).model
    shapes = example.shapes(expanded)
    backward = build_backward(expanded, shapes, logits.tensor, [use.output for layer in layers for use in layer.uses])
    sums = {
        layer.name: tuple(
            _add_sums(backward.build, use, layer.samples, backward.gradients[use.output], config)
            for use in layer.uses
            if use.output in backward.gradients
        )
        for layer in layers
    }
    outputs = [name for uses in sums.values() for s in uses for name in (s.critical, s.saliency, s.negative_square)]
    attached = attach(expanded, backward, logits.tensor, shapes, outputs)
    forward = expanded.with_graph(outputs=[logits.tensor])
    return ScoringGraph(attached, forward, backward.seed, logits.tensor, shapes[logits.tensor][1:], sums)


def score_channels(
    graph: ScoringGraph,
    layers: Layers,
    samples: Samples,
    drawn: Draw,
    groups: Grouping,
    progress: Progress = silent,
) -> Scores:
    """Score every channel on the samples `drawn`. Cost: about three forward passes per sample.

    Scores are by group; Phi is the mean logit of the sample's group.

    Raises:
        CalibrationError: a sample cannot be read.
        ModelError: outputs or gradients are not finite.
    """
    session = Session(graph.model)
    rows: list[dict[str, tuple[Array, Array, Array]]] = []
    done = 0
    by_group = drawn.by_group(groups.of_class)
    seeds = groups.members / groups.members.sum(axis=1, keepdims=True)
    for indices, seed in zip(by_group, seeds, strict=True):
        totals = _class_totals(session, graph, samples, indices, seed, batch_size(layers))
        _check_finite(layers, graph, totals)
        rows.append(
            {layer.name: _class_scores(layer, graph.sums[layer.name], totals, len(indices)) for layer in layers}
        )
        done += len(indices)
        progress("scoring", done, len(drawn.indices))
    scores = (
        LayerScores(layer.name, *(np.stack(part) for part in zip(*(row[layer.name] for row in rows), strict=True)))
        for layer in layers
    )
    return Scores(tuple(scores), groups.names, tuple(len(indices) for indices in by_group))


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
    sample estimates the diagonal of F without bias. For a group G, e_G sqrt(P_G) (p restricted to G) / P_G stands in
    place of sqrt(p) e. Cost: about four forward passes per sample.
    """
    names = [s.negative_square for uses in graph.sums.values() for s in uses]
    forward, backward = Session(graph.forward), Session(graph.model.with_graph(outputs=names))
    random = np.random.default_rng(seed)
    rows: list[dict[str, Array]] = []
    done = 0
    for indices in drawn.by_group(groups.of_class):
        totals: dict[str, Array] = {}
        for batch in samples.batches(indices, batch_size(layers)):
            fed = len(next(iter(batch.feeds.values())))
            nothing = np.zeros((fed, *graph.logits_shape), np.float32)
            logits = forward.run(batch.feeds)[graph.logits]
            towards = _random_direction(softmax(logits.reshape(fed, -1).astype(np.float64), axis=1), groups, random)
            towards[batch.count :] = 0
            _add_to(totals, backward.run({**batch.feeds, graph.seed: towards.reshape(nothing.shape)}))
        rows.append({layer.name: _squares(layer, graph.sums[layer.name], totals, len(indices)) for layer in layers})
        done += len(indices)
        progress("sensitivity", done, len(drawn.indices))
    return {layer.name: np.stack([row[layer.name] for row in rows]) for layer in layers}


def _random_direction(shares: Array, groups: Grouping, random: np.random.Generator) -> Array:
    """Seeds s with E s s^T = the Fisher information of the groups, float32 like `shares` p, [samples, classes]."""
    together = groups.sums(shares)
    root = np.sqrt(together)
    signed = root * random.choice(np.array([-1.0, 1.0]), together.shape)
    within = signed / np.maximum(together, np.finfo(np.float64).tiny)
    return np.asarray(shares * (within[:, groups.of_class] - signed.sum(axis=1, keepdims=True)), np.float32)


def batch_size(layers: Layers) -> int:
    """How many samples to run at once, so that their layer outputs fit `BATCH_BYTES`."""
    per_sample = sum(4 * int(np.prod(use.output_shape)) // layer.samples for layer in layers for use in layer.uses)
    return max(min(BATCH_BYTES // max(per_sample, 1), LARGEST_BATCH), 1)


def _class_totals(
    session: Session, graph: ScoringGraph, samples: Samples, indices: Indices, seed_row: Array, size: int
) -> dict[str, Array]:
    """The graph's sums over all samples of one group, whose seed is `seed_row` [classes], in float64."""
    totals: dict[str, Array] = {}
    for batch in samples.batches(indices, size):
        fed = len(next(iter(batch.feeds.values())))
        seed = np.zeros((fed, *graph.logits_shape), np.float32)
        seed[: batch.count] = seed_row.reshape(graph.logits_shape)
        _add_to(totals, session.run({**batch.feeds, graph.seed: seed}))
    return totals


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
    for use in uses if count else ():
        square = square - layer.per_channel(totals[use.negative_square]).sum(axis=1) / count
    return square


def _class_scores(
    layer: Layer, uses: tuple[UseSums, ...], totals: Mapping[str, Array], count: int
) -> tuple[Array, Array, Array]:
    """beta, saliency and squared gradient of one class from its totals, each [channels]; 0 without samples."""
    beta, saliency = np.zeros((2, layer.channels))
    for use in uses if count else ():
        # [*neurons of a sample] -> [outputs, positions]
        critical = np.moveaxis(totals[use.critical], use.channel_axis, 0)
        critical = critical.reshape(len(critical), -1)
        outputs, positions = critical.shape
        beta = np.maximum(beta, layer.per_channel(critical.max(axis=1)).max(axis=1) / count)
        saliency = saliency + layer.per_channel(totals[use.saliency]).sum(axis=1) / (count * positions * outputs)
    return beta, saliency * layer.channels / max(len(uses), 1), _squares(layer, uses, totals, count)


def _add_sums(build: Builder, use: Use, measured: int, gradient: str, config: ScoringConfig) -> UseSums:
    """Add the sums over one batch of what output z of `use` and its gradient g give."""
    z, g = use.output, gradient
    shape, batch_axis, channel_axis = list(use.output_shape), use.batch_axis, use.channel_axis
    merged = shape[batch_axis] // measured
    if merged > 1:
        # Samples and positions share an axis, samples first: [..., N T, ...] -> [..., N, T, ...]
        split = [*shape[:batch_axis], -1, merged, *shape[batch_axis + 1 :]]
        z, g = (build.op("Reshape", name, build.ints(split)) for name in (z, g))
        shape, channel_axis = split, channel_axis + (channel_axis > batch_axis)
    others = [axis for axis in range(len(shape)) if axis != channel_axis]
    criticality = build.op("Abs", build.op("Mul", z, g))
    critical = build.not_zero(_excess(build, criticality, [a for a in range(len(shape)) if a != batch_axis], config))
    # g (-g), because onnxruntime turns a sum of g g into an operator that is three times as slow.
    square = build.op("Mul", g, build.op("Neg", g))
    return UseSums(
        critical=build.reduce_sum(critical, [batch_axis], keepdims=False),
        saliency=build.reduce_sum(criticality, others, keepdims=False),
        negative_square=build.reduce_sum(square, others, keepdims=False),
        channel_axis=channel_axis - (channel_axis > batch_axis),
    )


def _excess(build: Builder, criticality: str, axes: list[int], config: ScoringConfig) -> str:
    """What is above 0 just where a neuron is critical."""
    if config.relative:
        mean = build.op("ReduceMean", criticality, build.ints(axes))
        return build.op("Sub", criticality, build.op("Mul", mean, build.number(config.epsilon)))
    if config.epsilon < np.finfo(np.float32).smallest_normal:
        return criticality
    return build.op("Sub", criticality, build.number(config.epsilon))
