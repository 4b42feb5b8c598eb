"""Weights that take shared values: what their errors count, the values, and integer weights at a rate.

What an error of a weight counts is 1 for k-means, and for the other two the diagonal of the loss's Hessian, estimated
(see `planning.criteria`) as

    h = 1/2 E[sum_p g_p^2] E[x^2]        g: gradient at the channel's outputs p, x: what the weight multiplies there

which needs one backward pass for all weights. The mean square of the weight's own gradient, sum_p g_p x_p, would be
the other estimate. `benchmarks/limit.py` compares them over 1,000 samples, values shared by the whole net: their
logarithms correlate by 0.74 on LeNet and 0.95 on ResNet-20. With 8 values or fewer the product kept more accuracy
(ResNet-20 at 3 bits 65.9 % beside 13.5 %), with 16 the weights' own gradients did (79.4 % beside 74.6 %). The product
is taken: it costs less, and does better where values are few.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from onnx_cbq.config import QuantizeConfig
from onnx_cbq.emit.archive import coded_bits
from onnx_cbq.entropic import StepEvidence, channel_costs, meet_rate
from onnx_cbq.model import Array
from onnx_cbq.planning import Evidence
from onnx_cbq.progress import Progress, silent
from onnx_cbq.quantize.codebook import (
    MOST_VALUES,
    Codebook,
    code_lengths,
    ecsq,
    kmeans,
    largest_number,
    make_codebook,
)
from onnx_cbq.quantize.grid import Channels
from onnx_cbq.quantize.problem import Problem
from onnx_cbq.quantize.shared import Charges, fit_shared, nearest_channels
from onnx_cbq.ranks import rank_codes
from onnx_cbq.records import Layer, LayerWeights, Seen
from onnx_cbq.rounding import Rounded, chunks_of_moments, round_in_order
from onnx_cbq.search.steps import LEAST_SENSITIVITY, find_tau
from onnx_cbq.statistics import Run
from onnx_cbq.workload import Workload

# Weights of the whole net that a rate is estimated by, evenly from all layers.
_SAMPLE = 1 << 16


@dataclass(frozen=True)
class ShareEvidence:
    """What errors count, for each layer by name.

    Attributes:
        hessian: h of each weight, float32 [channels, n].
        costs: what a squared error at the outputs of a channel counts, above 0, [channels].
    """

    hessian: Mapping[str, Array]
    costs: Mapping[str, Array]


@dataclass(frozen=True)
class Share:
    """How many values there are, or with "ecsq" the price of a bit.

    Attributes:
        config: the settings.
        values: how many values a codebook may have.
        price: lambda of `quantize.codebook`.
    """

    config: QuantizeConfig
    values: int = MOST_VALUES
    price: float = 0.0


def gather_shares(
    work: Workload, evidence: Evidence, steps: StepEvidence | None, config: QuantizeConfig, run: Run
) -> ShareEvidence:
    """What errors count by the settings; `steps` corrects them layer by layer, where it was measured.

    Cost: a forward pass, unless every error counts the same.
    """
    if config.codebook == "kmeans":
        shapes = {layer.name: (layer.channels, layer.weights_per_channel) for layer in work.layers}
        ones = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
        return ShareEvidence(ones, {name: np.ones(channels) for name, (channels, _) in shapes.items()})
    costs = {name: _floored(value) for name, value in channel_costs(work, evidence, run.class_weights).items()}
    if steps is not None:
        costs = {name: value * steps.factors[name] for name, value in costs.items()}
        by_row = {name: costs[name] * steps.weights[name] for name in costs}
        sizes = {layer.name: layer.weights_per_channel for layer in work.layers}
        spread = {name: np.repeat(value[:, None], sizes[name], 1) for name, value in by_row.items()}
        return ShareEvidence({name: value.astype(np.float32) for name, value in spread.items()}, costs)
    hessian = {}
    for moments in chunks_of_moments(work, run):
        for name, found in moments.items():
            squares = np.concatenate([np.einsum("gnn->gn", part) for part in found.second], axis=1)
            if found.means:  # the moments are those around the mean
                squares = squares + np.mean([np.square(seen) for seen, _ in found.means], axis=0)
            rows = len(costs[name]) // len(squares)
            hessian[name] = (costs[name][:, None] * np.repeat(squares, rows, axis=0)).astype(np.float32)
    return ShareEvidence(hessian, costs)


def round_to_values(
    work: Workload, simulated: Seen | None, shares: ShareEvidence, share: Share, run: Run, progress: Progress = silent
) -> Rounded:
    """Every layer on shared values.

    With rounding to "nearest" this is the paper's algorithm and no more: biases stay. With "compensate" weights make up
    for each other's errors, and the values of a layer are refitted to that; those of a whole net stay as they are.
    """
    config, books = share.config, find_codebooks(work, shares, share)
    if config.rounding == "compensate":
        refit = config.codebook_scope == "layer"

        def fitting(layer: Layer, problem: Problem) -> Channels:
            charges = Charges(shares.costs[layer.name], share.price)
            return fit_shared(problem, books[layer.name], charges, config.compensation, refit=refit)

        return round_in_order(work.model, simulated, work.layers, fitting, run, config.compensation, progress)
    weights = {}
    for layer in work.layers:
        rows = layer.rows(work.model.weight(layer.weight))
        found = nearest_channels(rows, shares.hessian[layer.name], books[layer.name], share.price)
        weights[layer.name] = LayerWeights(layer.unrows(found.codes), found.scale, found.bits, table=found.table)
    return Rounded(weights, {}, ())


def find_codebooks(work: Workload, shares: ShareEvidence, share: Share) -> dict[str, Codebook]:
    """The codebook of each layer by the paper's algorithms; all layers have the same one with the scope "net"."""
    points, largest = _points(work, shares, share.config), _largest(work, share.config)
    books = {name: _codebook(*found, share, largest[name]) for name, found in points.items()}
    return {layer.name: books[layer.name if layer.name in books else ""] for layer in work.layers}


def round_to_values_at_rate(
    work: Workload, simulated: Seen | None, shares: ShareEvidence, config: QuantizeConfig, run: Run, progress: Progress
) -> tuple[Rounded, float]:
    """Weights on shared values that take at most `config.bits` each on average once coded, and what they take.

    ECSQ meets the rate by its price, k-means by the number of values. Cost: up to `entropic.PASSES` times that of
    `round_to_values`.
    """
    total = work.layers.size
    points = _points(work, shares, config)
    stride = max(total // _SAMPLE, 1)
    some = {name: (values[::stride], weights[::stride]) for name, (values, weights) in points.items()}

    def estimate(share: Share) -> float:
        return sum(_entropy(*found, share) * len(points[name][0]) for name, found in some.items()) / total

    def spent(rounded: Rounded) -> float:
        coded = [(rank_codes(w.codes, w.table), w.bits) for w in rounded.weights.values() if w.table is not None]
        return coded_bits(coded, config.coder) / total

    def make(share: Share) -> Rounded:
        return round_to_values(work, simulated, shares, share, run, progress)

    find = _find_price(config, points, estimate) if config.codebook == "ecsq" else _find_values(config, estimate)
    return meet_rate(config.bits, find, make, spent)


def _find_price(
    config: QuantizeConfig, points: Mapping[str, tuple[Array, Array]], estimate: Callable[[Share], float]
) -> Callable[[float], tuple[Share, float]]:
    """From a rate to the price whose estimate it is; the price goes with the square of a step."""
    spread = np.mean([float(np.mean(weights) * np.var(values)) for values, weights in points.values()])
    start = float(np.sqrt(max(spread, np.finfo(np.float32).tiny)))

    def find(wanted: float) -> tuple[Share, float]:
        tau = find_tau(lambda tau: estimate(Share(config, price=tau**2)), wanted, start)
        share = Share(config, price=tau**2)
        return share, estimate(share)

    return find


def _find_values(config: QuantizeConfig, estimate: Callable[[Share], float]) -> Callable[[float], tuple[Share, float]]:
    """From a rate to the most values whose estimate does not exceed it; at least 2."""

    def find(wanted: float) -> tuple[Share, float]:
        low, high = 2, MOST_VALUES + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if estimate(Share(config, middle)) <= wanted else (low, middle)
        share = Share(config, low)
        return share, estimate(share)

    return find


def _points(work: Workload, shares: ShareEvidence, config: QuantizeConfig) -> dict[str, tuple[Array, Array]]:
    """Weights and what they count, both [n], by layer; of the whole net under the name ""."""
    found = {
        layer.name: (layer.rows(work.model.weight(layer.weight)).reshape(-1), shares.hessian[layer.name].reshape(-1))
        for layer in work.layers
    }
    if config.codebook_scope == "layer":
        return found
    values, weights = (np.concatenate(part) for part in zip(*found.values(), strict=True))
    return {"": (values, weights)}


def _largest(work: Workload, config: QuantizeConfig) -> dict[str, int]:
    """What the numbers of each codebook may be, by layer; of the whole net under the name ""."""
    found = {layer.name: largest_number(layer.lanes) for layer in work.layers}
    return found if config.codebook_scope == "layer" else {"": min(found.values())}


def _codebook(values: Array, weights: Array, share: Share, largest: int) -> Codebook:
    if share.config.codebook == "ecsq":
        clusters = ecsq(values, weights, share.price)
        return make_codebook(clusters.centres, clusters.counts, largest)
    return make_codebook(kmeans(values, weights, share.values), None, largest)


def _entropy(values: Array, weights: Array, share: Share) -> float:
    """Bits per weight of the values that weights take, by how often each is taken."""
    if share.config.codebook == "ecsq":
        counts = ecsq(values, weights, share.price).counts
    else:
        levels = make_codebook(kmeans(values, weights, share.values)).levels
        counts = np.bincount(np.searchsorted((levels[1:] + levels[:-1]) / 2, values))
        counts = counts[counts > 0]
    return float(counts @ code_lengths(counts) / counts.sum())


def _floored(costs: Array) -> Array:
    """A channel whose loss was estimated as next to nothing counts as a share of its layer's mean."""
    return np.maximum(costs, max(LEAST_SENSITIVITY * float(costs.mean()), float(np.finfo(np.float32).tiny)))
