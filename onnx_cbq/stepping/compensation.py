"""What a layer's weights become when some of their inputs are taken away: the others take up what they can.

An output z = w x + b keeps the inputs R of its row. What comes nearest to it, in the mean square over what was seen, is

    w'_R = w C[:, R] C[R, R]^-1        b' = b + (w - w') m

with m and C the mean and the covariance of x: linear regression on the inputs that are left (as channel pruning does
it, He et al., ICCV 2017, arXiv 1707.06168). Where nothing adds a constant, second moments stand for the covariance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnx_cbq.model import Array
from onnx_cbq.quantize.compensate import best_aim
from onnx_cbq.quantize.patches import input_rows
from onnx_cbq.records import Layer

# Output positions of a sample that are looked at.
_POSITIONS = 64
# What is added to the diagonal of C, as a share of its mean, with at least so many rows per input; with fewer, more.
_DAMPING, _ENOUGH = 1e-2, 10


@dataclass(frozen=True)
class Inputs:
    """The rows that a layer multiplies.

    Attributes:
        mean: of them, [n]; 0 where they are not centred.
        second: their covariance or, not centred, second moments, [n, n].
        damping: what is added to its diagonal, as a share of the mean.
    """

    mean: Array
    second: Array
    damping: float

    @staticmethod
    def of(layer: Layer, values: Sequence[Array], random: np.random.Generator, *, centred: bool) -> Inputs:
        """From what each use reads. Cost: n^2 multiplications per row, of at most `_POSITIONS` rows per sample."""
        uses = zip(layer.uses, values, strict=True)
        rows = np.concatenate([input_rows(layer, use, x, _POSITIONS, random)[0] for use, x in uses])
        mean = rows.mean(axis=0, dtype=np.float64) if centred else np.zeros(rows.shape[1])
        rows = rows - mean.astype(np.float32)
        damping = _DAMPING * max(1.0, _ENOUGH * rows.shape[1] / len(rows))
        return Inputs(mean, (rows.T @ rows).astype(np.float64) / len(rows), damping)

    def variances(self, rows: Array) -> Array:
        """Of what rows [channels, n] give, [channels]."""
        return np.asarray(((rows @ self.second) * rows).sum(axis=1))


def taken_up(rows: Array, inputs: Inputs, before: Array, after: Array) -> tuple[Array, Array]:
    """Rows [channels, n] that read `after`, bool likewise, in place of `before`, and what biases take up, [channels].

    Channels that lose nothing stay as they are, and inputs that come back do so with weights of 0. Cost: r^3 / 3
    multiplications for r inputs that are left, once for all channels that lose and keep the same.
    """
    read = np.where(before, rows, 0).astype(np.float64)
    found = read.copy()
    losing = np.flatnonzero((before & ~after).any(axis=1))
    kinds, of = np.unique(after[losing], axis=0, return_inverse=True)
    for i, kept in enumerate(kinds):
        chosen = losing[of.reshape(-1) == i]
        found[chosen] = 0
        if kept.any():
            columns = inputs.second[:, kept]
            wanted, near = read[chosen] @ columns, read[chosen][:, kept]
            found[np.ix_(chosen, kept)] = best_aim(near[None], columns[kept][None], wanted[None], inputs.damping)[0]
    return found.astype(np.float32), (read - found) @ inputs.mean
