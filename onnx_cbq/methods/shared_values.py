"""Weights that take shared values: what their errors count, the values, and integer weights at a rate.

What an error of a weight counts is 1 for k-means, and for the other two the diagonal of the loss's Hessian, estimated
(see `criteria`) as

    h = 1/2 E[sum_p g_p^2] E[x^2]        g: gradient at the channel's outputs p, x: what the weight multiplies there

which needs one backward pass for all weights. The mean square of the weight's own gradient, sum_p g_p x_p, would be
the other estimate. `benchmarks/limit.py` compares them over 1,000 samples, values shared by the whole net: their
logarithms correlate by 0.74 on LeNet and 0.95 on ResNet-20. With 8 values or fewer the product kept more accuracy
(ResNet-20 at 3 bits 65.9 % beside 13.5 %), with 16 the weights' own gradients did (79.4 % beside 74.6 %). The product
is taken: it costs less, and does better where values are few.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from onnx_cbq.evidence import Evidence
from onnx_cbq.evidence.workload import Workload
from onnx_cbq.methods.method import Fit, RateMethod, Spent, coded_bits
from onnx_cbq.methods.rate import meet_rate, rate_note
from onnx_cbq.model import Array
from onnx_cbq.quantize.codebook import MOST_VALUES, Codebook, code_lengths, largest_number
from onnx_cbq.quantize.grid import Channels
from onnx_cbq.quantize.problem import Problem
from onnx_cbq.quantize.shared import Charges, fit_shared, nearest_channels
from onnx_cbq.quantize.weights import as_weights
from onnx_cbq.records import Layer, LayerWeights, Shared
from onnx_cbq.search.rate_distortion import RateDistortionConfig
from onnx_cbq.settings import CHOOSE, check, check_kinds, either, option
from onnx_cbq.stages.compensation import Rounded
from onnx_cbq.stages.scene import Rounding, Scene
from onnx_cbq.stages.solution import Chosen
from onnx_cbq.storage import Storage

SCOPES = ("layer", "net")
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
    """How many values a codebook may have, and the price of a bit, lambda of `quantize.codebook`."""

    values: int = MOST_VALUES
    price: float = 0.0


# Values and what they count, both [n], by layer; of the whole net under the name "".
Points = Mapping[str, tuple[Array, Array]]


@dataclass(frozen=True)
class SharedValues(RateMethod):
    """Values that weights share: as many as the bits tell apart, or so many bits in an archive.

    With rounding to nearest this is the paper's algorithm and no more: biases stay. Where rounding compensates, weights
    make up for each other's errors, and the values of a layer are refitted to that; those of a whole net stay.

    Attributes:
        scope: which weights share values, those of a "layer" or of the whole "net".
        held_back: share of the calibration samples of each class that layers are measured on, and nothing else.
    """

    shares_values: ClassVar[bool] = True

    scope: str = option("layer", CHOOSE, "|".join(SCOPES), flag="codebook-scope")
    held_back: float = RateDistortionConfig.held_back

    def __post_init__(self) -> None:
        check_kinds(self)
        check(self.scope in SCOPES, "--codebook-scope", either(SCOPES), self.scope)

    @property
    def option(self) -> str:
        """How a user asks for it."""
        return f"--codebook {self.name}"

    @property
    def whole_net(self) -> bool:
        """Whether there is one codebook for all layers."""
        return self.scope == "net"

    def fit(self, storage: Storage) -> Fit | None:
        """Whole bits where they count values, any rate in an archive."""
        return Fit(goals=storage.coded, learned=False, keep=False, fractions=storage.coded)

    @abstractmethod
    def shares(self, evidence: Evidence, rounding: Rounding, needed_by: str) -> ShareEvidence:
        """What errors count; `needed_by` is the option that an error names where an operator has no gradient."""

    @abstractmethod
    def codebook(self, values: Array, weights: Array, share: Share, largest: int) -> Codebook:
        """The values for weights [n] whose errors count `weights` [n]; codes are at most `largest`."""

    @abstractmethod
    def counts(self, values: Array, weights: Array, share: Share) -> Array:
        """How many weights take each of the values in use."""

    @abstractmethod
    def finder(self, points: Points, estimate: Callable[[Share], float]) -> Callable[[float], tuple[Share, float]]:
        """From a rate to the share whose estimate does not exceed it, and that estimate."""

    def choose(self, scene: Scene, bits: float) -> Chosen:
        """Weights on 2^bits values, or at most `bits` each on average once coded."""
        if scene.settings.storage.coded:
            chosen, rate = self.choose_at_rate(scene, bits, coded_bits(scene))
            return replace(chosen, notes=(rate_note(rate, bits), *chosen.notes))
        shares = self._shares(scene, self.option)
        with scene.clock.stage("rounding"):
            rounded = round_to_values(scene, self, shares, Share(min(1 << int(bits), MOST_VALUES)))
            return Chosen(rounded, (self._note(rounded),))

    def choose_at_rate(self, scene: Scene, bits: float, spent: Spent, codes: float = 1.0) -> tuple[Chosen, float]:
        """Weights that take at most `bits` each on average, and what they take."""
        shares = self._shares(scene, f"--storage {scene.settings.storage.name}")
        with scene.clock.stage("rounding"):
            rounded, rate = self._at_rate(scene, shares, bits, spent, codes)
            return Chosen(rounded, (self._note(rounded),)), rate

    def trial_weights(self, weights: LayerWeights) -> LayerWeights:
        """With a table of every code up to the largest."""
        largest = int(np.abs(weights.codes).max(initial=1))
        return replace(weights, grid=Shared(np.arange(-largest, largest + 1, dtype=np.int8)))

    def _shares(self, scene: Scene, needed_by: str) -> ShareEvidence:
        return scene.evidence.of(_Shares(self, scene.settings.rounding, needed_by), "codebook")

    def _at_rate(
        self, scene: Scene, shares: ShareEvidence, bits: float, spent: Spent, codes: float
    ) -> tuple[Rounded, float]:
        """Weights on shared values that take at most so many bits each, and what they take."""
        total = scene.work.layers.size
        points = _points(scene.work, shares, self)
        stride = max(total // _SAMPLE, 1)
        some = {name: (values[::stride], weights[::stride]) for name, (values, weights) in points.items()}

        def estimate(share: Share) -> float:
            bits = (_entropy(self.counts(*found, share)) * len(points[name][0]) for name, found in some.items())
            return sum(bits) / total

        def make(share: Share) -> Rounded:
            return round_to_values(scene, self, shares, share)

        return meet_rate(bits, self.finder(points, estimate), make, spent, codes)

    def _note(self, rounded: Rounded) -> str:
        grids = (weights.grid for weights in rounded.weights.values())
        counts = [len(grid.table) for grid in grids if isinstance(grid, Shared)]
        which = "the weights of the whole net" if self.whole_net else "the weights of a layer"
        several = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else f"{counts[0]}"
        return f"{which} share {several} values"


@dataclass(frozen=True)
class _Shares:
    """The piece of evidence of a method; `needed_by` as in `SharedValues.shares`."""

    method: SharedValues
    rounding: Rounding
    needed_by: str

    def __call__(self, evidence: Evidence) -> ShareEvidence:
        return self.method.shares(evidence, self.rounding, self.needed_by)


def round_to_values(scene: Scene, method: SharedValues, shares: ShareEvidence, share: Share) -> Rounded:
    """Every layer on shared values."""
    work, books = scene.work, find_codebooks(scene.work, method, shares, share)

    def fitting(layer: Layer, problem: Problem) -> Channels:
        charges = Charges(shares.costs[layer.name], share.price)
        settings = scene.settings.compensation
        return fit_shared(problem, books[layer.name], charges, settings, refit=not method.whole_net)

    def nearest(layer: Layer) -> LayerWeights:
        rows = layer.rows(work.model.weight(layer.weight))
        found = nearest_channels(rows, shares.hessian[layer.name], books[layer.name], share.price)
        return as_weights(layer, found)

    return scene.settings.rounding.weights(scene, fitting, nearest)


def find_codebooks(work: Workload, method: SharedValues, shares: ShareEvidence, share: Share) -> dict[str, Codebook]:
    """The codebook of each layer by the paper's algorithms; all layers may have the same one."""
    largest = {layer.name: largest_number(layer.lanes) for layer in work.layers}
    if method.whole_net:
        largest = {"": min(largest.values())}
    points = _points(work, shares, method)
    books = {name: method.codebook(*found, share, largest[name]) for name, found in points.items()}
    return {layer.name: books[layer.name if layer.name in books else ""] for layer in work.layers}


def _points(work: Workload, shares: ShareEvidence, method: SharedValues) -> Points:
    found = {
        layer.name: (layer.rows(work.model.weight(layer.weight)).reshape(-1), shares.hessian[layer.name].reshape(-1))
        for layer in work.layers
    }
    if not method.whole_net:
        return found
    values, weights = (np.concatenate(part) for part in zip(*found.values(), strict=True))
    return {"": (values, weights)}


def _entropy(counts: Array) -> float:
    """Bits per weight of the values that weights take, by how often each is taken."""
    return float(counts @ code_lengths(counts) / counts.sum())
