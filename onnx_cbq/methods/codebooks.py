"""Which values weights share: by k-means, by the loss's Hessian, or by error and code length."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnx_cbq.evidence import Evidence, channel_costs
from onnx_cbq.evidence.tables import chunks_of_moments
from onnx_cbq.methods.entropy import measured_spacings
from onnx_cbq.methods.method import Fit
from onnx_cbq.methods.shared_values import Points, Share, SharedValues, ShareEvidence
from onnx_cbq.model import Array
from onnx_cbq.quantize.codebook import MOST_VALUES, Codebook, ecsq, kmeans, make_codebook
from onnx_cbq.search.spacings import LEAST_SENSITIVITY, find_tau
from onnx_cbq.stages.scene import Rounding
from onnx_cbq.storage import Storage

_TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class KMeans(SharedValues):
    """Every error counts the same."""

    name: ClassVar[str] = "kmeans"
    about: ClassVar[str] = "2^B values that weights share"

    def shares(self, evidence: Evidence, rounding: Rounding, needed_by: str) -> ShareEvidence:  # noqa: ARG002
        """1 for every error."""
        shapes = {layer.name: (layer.channels, layer.weights_per_channel) for layer in evidence.work.layers}
        ones = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
        return ShareEvidence(ones, {name: np.ones(channels) for name, (channels, _) in shapes.items()})

    def codebook(self, values: Array, weights: Array, share: Share, largest: int) -> Codebook:
        """As many values as the share has."""
        return make_codebook(kmeans(values, weights, share.values), None, largest)

    def counts(self, values: Array, weights: Array, share: Share) -> Array:
        """How many weights take each of the values in use."""
        levels = make_codebook(kmeans(values, weights, share.values)).levels
        found = np.bincount(np.searchsorted((levels[1:] + levels[:-1]) / 2, values))
        return np.asarray(found[found > 0])

    def finder(self, points: Points, estimate: Callable[[Share], float]) -> Callable[[float], tuple[Share, float]]:  # noqa: ARG002
        """By the most values whose estimate does not exceed the rate; at least 2."""

        def find(wanted: float) -> tuple[Share, float]:
            low, high = 2, MOST_VALUES + 1
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if estimate(Share(middle)) <= wanted else (low, middle)
            return Share(low), estimate(Share(low))

        return find


@dataclass(frozen=True)
class HessianKMeans(KMeans):
    """Errors count by the diagonal of the loss's Hessian."""

    name: ClassVar[str] = "hessian-kmeans"
    about: ClassVar[str] = "2^B values that weights share, errors counted by the loss's Hessian"

    def shares(self, evidence: Evidence, rounding: Rounding, needed_by: str) -> ShareEvidence:  # noqa: ARG002
        """h of every weight. Cost: a backward pass, and a forward pass for the moments of what layers read."""
        return _by_hessian(evidence, _floored_costs(evidence, needed_by))


@dataclass(frozen=True)
class Ecsq(SharedValues):
    """Entropy-constrained: values by error and code length, so the rate is met by the price of a bit."""

    name: ClassVar[str] = "ecsq"
    about: ClassVar[str] = "with --storage archive, shared values by error and code length"

    def fit(self, storage: Storage) -> Fit | None:
        """Archives only: nothing else has code lengths."""
        return Fit(learned=False, keep=False) if storage.coded else None

    def shares(self, evidence: Evidence, rounding: Rounding, needed_by: str) -> ShareEvidence:
        """h of every weight; where rounding compensates, what its spacings are set by, corrected layer by layer."""
        costs = _floored_costs(evidence, needed_by)
        if not rounding.compensates:
            return _by_hessian(evidence, costs)
        spacings = evidence.of(measured_spacings, "spacings")
        costs = {name: value * spacings.factors[name] for name, value in costs.items()}
        by_row = {name: costs[name] * spacings.weights[name] for name in costs}
        sizes = {layer.name: layer.weights_per_channel for layer in evidence.work.layers}
        spread = {name: np.repeat(value[:, None], sizes[name], 1) for name, value in by_row.items()}
        return ShareEvidence({name: value.astype(np.float32) for name, value in spread.items()}, costs)

    def codebook(self, values: Array, weights: Array, share: Share, largest: int) -> Codebook:
        """Values by error and code length at the price of the share."""
        clusters = ecsq(values, weights, share.price)
        return make_codebook(clusters.centres, clusters.counts, largest)

    def counts(self, values: Array, weights: Array, share: Share) -> Array:
        """How many weights take each of the values in use."""
        return ecsq(values, weights, share.price).counts

    def finder(self, points: Points, estimate: Callable[[Share], float]) -> Callable[[float], tuple[Share, float]]:
        """By the price whose estimate is the rate; the price goes with the square of a spacing."""
        spread = np.mean([float(np.mean(weights) * np.var(values)) for values, weights in points.values()])
        start = float(np.sqrt(max(spread, _TINY)))

        def find(wanted: float) -> tuple[Share, float]:
            tau = find_tau(lambda tau: estimate(Share(price=tau**2)), wanted, start)
            share = Share(price=tau**2)
            return share, estimate(share)

        return find


def _floored_costs(evidence: Evidence, needed_by: str) -> dict[str, Array]:
    """a_c of every layer; a channel whose loss is estimated as next to nothing counts as a share of the mean."""
    found = channel_costs(evidence, evidence.class_weights, needed_by)
    tiny = float(np.finfo(np.float32).tiny)
    return {
        name: np.maximum(costs, max(LEAST_SENSITIVITY * float(costs.mean()), tiny)) for name, costs in found.items()
    }


def _by_hessian(evidence: Evidence, costs: Mapping[str, Array]) -> ShareEvidence:
    """h of every weight."""
    hessian = {}
    for moments in chunks_of_moments(evidence.work, evidence.run):
        for name, found in moments.items():
            squares = np.concatenate([np.einsum("gnn->gn", part) for part in found.second], axis=1)
            if found.means:  # the moments are those around the mean
                squares = squares + np.mean([np.square(seen) for seen, _ in found.means], axis=0)
            rows = len(costs[name]) // len(squares)
            hessian[name] = (costs[name][:, None] * np.repeat(squares, rows, axis=0)).astype(np.float32)
    return ShareEvidence(hessian, costs)
