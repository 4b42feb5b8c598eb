"""Second moments of what a layer's weights multiply, collected a batch at a time.

Let x be a row of the float model's inputs of the layer (see `patches`), x~ the same row once the layers in front are
quantized, both less their means (where the layer has a bias, which then takes up the mean). For weights q in place of w
the layer's output is off by w x - q x~, and over many rows

    E (w x - q x~)^2  =  (a - q) H (a - q)^T + const,   H = E x~ x~^T,   a = w C H^-1,   C = E x x~^T

so q is rounded towards a, the weights that best repair what the layers in front have done, in the metric H
(Frantar et al., OPTQ, arXiv 2210.17323, for H; the aim a is the least-squares solution). Without quantized layers in
front x~ = x and a = w. Where the output is added to another branch s of a block, which has become s~, the sum is what
counts: E (w x + s - q x~ - s~)^2 has the same form with a = (w C + M) H^-1, M = E (s - s~) x~^T, so the last layer of
every block repairs what the blocks in front of it have left.

Where a layer has more than `WIDEST` weights per channel, H is kept as blocks along its diagonal, as few and as even as
possible. The moments of some of the samples are kept by themselves, too, for a choice that is to hold on other samples
(see `damping`); of the first block, which stands for all. Memory: two float64 matrices per block and group, and two;
while they are collected, as many float32 rows as there are weights, too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from onnx_cbq.model import Array
from onnx_cbq.records import Layer

WIDEST = 4608
# Share of what tables look up that may be any row, whichever the samples look up.
UNSEEN = 0.1


@dataclass(frozen=True)
class Held:
    """Moments of the samples held back, within the first part, as in `Moments`, and their share of all rows."""

    second: Array
    cross: Array
    share: float
    missing: Array | None = None


@dataclass(frozen=True)
class Moments:
    """Moments of a layer's inputs; a *part* is a block of the weights of a channel.

    Attributes:
        second: H, float64 [groups, n, n] for each part.
        cross: C, likewise; the same arrays as `second` if nothing in front is quantized.
        means: for each use of the layer, the mean of x and of x~ over all its rows, float64 [groups, weights per
            channel]; empty if they are not known.
        rows: number of rows per group.
        shares: how often each row of a table is looked up, adding up to 1, [channels]; None where all channels have a
            part in every output.
        held: what samples held back add to the first part; None if they are not known.
        missing: M, float64 [groups, channels per group, n] of the only part; empty where no branch lacks anything,
            where there are more parts, each of which would repair the same, and where no samples were held back to
            tell what of it holds for others.
        missing_mean: the mean of s - s~, [channels]; None likewise.
    """

    second: tuple[Array, ...]
    cross: tuple[Array, ...]
    means: tuple[tuple[Array, Array], ...]
    rows: int
    shares: Array | None = None
    held: Held | None = None
    missing: tuple[Array, ...] = ()
    missing_mean: Array | None = None

    @property
    def matrices(self) -> tuple[Array, ...]:
        """All second moments."""
        return (*self.second, *self.cross, *self.missing)


def part_slices(width: int) -> tuple[slice, ...]:
    """The parts of `width` weights per channel."""
    count = -(-width // WIDEST)
    edges = [round(i * width / count) for i in range(count + 1)]
    return tuple(slice(start, stop) for start, stop in pairwise(edges))


def white(layer: Layer, mean_square: float) -> Moments:
    """Moments of uncorrelated inputs, for a product whose channels do not share rows; see `patches.has_rows`."""
    slices = part_slices(layer.weights_per_channel)
    second = tuple(mean_square * np.eye(s.stop - s.start)[None] for s in slices)
    return Moments(second, second, (), 0)


def looked_up(layer: Layer, counts: Array) -> Moments:
    """Moments of a table whose rows were looked up so many times, [channels].

    Its output is the row itself: the error is the mean square of the row's numbers, and no row repairs another.
    """
    return replace(white(layer, 1 / layer.weights_per_channel), shares=shared_out(counts / max(counts.sum(), 1)))


def shared_out(values: Array) -> Array:
    """What is known of each row of a table, [..., rows], with a tenth of it for all rows alike.

    Rows that the samples do not look up, others will.
    """
    return np.asarray((1 - UNSEEN) * values + UNSEEN * values.mean(axis=-1, keepdims=True))


def mean_shift(moments: Moments, rows: Array, quantized: Array, layer: Layer | None = None) -> list[Array]:
    """For each use, the mean of w x + s - q x~ - s~ over the rows: what the bias takes up, [channels].

    Nothing where the outputs of `layer`, whose weights they are, must stay above 0: where they are small, a mean of
    large ones would take them below.
    """
    if layer is not None and layer.positive:
        return [np.zeros(len(rows)) for _ in moments.means]
    groups = len(moments.second[0])
    w, q = (values.reshape(groups, -1, values.shape[1]) for values in (rows, quantized))
    lost = 0.0 if moments.missing_mean is None else moments.missing_mean
    return [(w @ aimed[:, :, None] - q @ seen[:, :, None]).reshape(-1) + lost for aimed, seen in moments.means]


def combine(uses: list[Moments]) -> Moments:
    """Moments of a layer from those of its uses, every row counting alike; of several, other branches count nothing."""
    if len(uses) == 1:
        return uses[0]
    rows = sum(use.rows for use in uses)

    def mean(kind: str) -> tuple[Array, ...]:
        parts = zip(*(getattr(use, kind) for use in uses), strict=True)
        return tuple(
            np.sum([m * (use.rows / rows) for m, use in zip(part, uses, strict=True)], axis=0) for part in parts
        )

    second = mean("second")
    same = all(use.cross is use.second for use in uses)
    means = tuple(use.means[0] for use in uses)
    return Moments(second, second if same else mean("cross"), means, rows, held=_held_of(uses))


def _held_of(uses: list[Moments]) -> Held | None:
    """What is held back of all uses; None if that is not known of each."""
    held = [use.held for use in uses if use.held is not None]
    if len(held) < len(uses):
        return None
    counts = np.array([one.share * use.rows for one, use in zip(held, uses, strict=True)])
    second, cross = (
        np.tensordot(counts / counts.sum(), [getattr(one, kind) for one in held], 1) for kind in ("second", "cross")
    )
    return Held(second, cross, float(counts.sum() / sum(use.rows for use in uses)))
