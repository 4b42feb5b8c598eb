"""What a layer's weights become when some of their inputs are taken away: the others take up what they can.

An output z = w x + b keeps the inputs R of its row. What comes nearest to it over rows that were seen, drawn towards
the weights as they are by a damping d, is

    w'_R = w_R + w_G C[G, R] (C[R, R] + d)^-1        b' = b + (w - w') m

with G the inputs that go, m and C the mean and the covariance of x: linear regression on the inputs that are left (as
channel pruning does it, He et al., ICCV 2017, arXiv 1707.06168). Where nothing adds a constant, second moments stand
for the covariance. With fewer rows X than inputs, the same from a system of their number:

    w'_R = w_R + (w_G X_G^T) (X_R X_R^T + n d)^-1 X_R
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from onnx_cbq.model import Array
from onnx_cbq.quantize.patches import input_rows
from onnx_cbq.records import Layer

# Output positions of a sample that are looked at, and rows of layers with more inputs than that.
_POSITIONS, _MOST_ROWS = 32, 2048
# The damping as a share of the mean variance, with at least so many rows per input; with fewer, more.
_DAMPING, _ENOUGH = 1e-2, 10


@dataclass(frozen=True)
class Inputs:
    """The rows that a layer multiplies.

    Attributes:
        mean: of them, [n]; 0 where they are not centred.
        rows: float32 [rows, n], less the mean.
        damping: in units of squared inputs.
    """

    mean: Array
    rows: Array
    damping: float

    @staticmethod
    def of(rows: Array, *, centred: bool) -> Inputs:
        """From rows [rows, n] as `read_rows` gives them."""
        if rows.shape[1] > _MOST_ROWS:
            rows = rows[:: -(-len(rows) // _MOST_ROWS)]
        mean = rows.mean(axis=0, dtype=np.float64) if centred else np.zeros(rows.shape[1])
        rows = rows - mean.astype(np.float32)
        shortage = max(1.0, _ENOUGH * rows.shape[1] / len(rows))
        return Inputs(mean, rows, _DAMPING * shortage * float(np.square(rows).mean()))

    def variances(self, weights: Array) -> Array:
        """Of what weights [channels, n] give, [channels]."""
        return np.asarray(np.square(self.rows @ weights.T.astype(np.float32)).mean(axis=0, dtype=np.float64))


def read_rows(layer: Layer, values: Sequence[Array], random: np.random.Generator) -> Array:
    """The rows under `_POSITIONS` outputs of each sample, [rows, n], of what each use of a layer reads."""
    uses = zip(layer.uses, values, strict=True)
    return np.concatenate([input_rows(layer, use, x, _POSITIONS, random)[0] for use, x in uses])


def taken_up(weights: Array, inputs: Inputs, before: Array, after: Array) -> tuple[Array, Array]:
    """Weights [channels, n] that read `after`, bool likewise, not `before`, and what biases take up, [channels].

    Channels that lose nothing stay as they are, and inputs that come back do so with weights of 0. Cost: for r inputs
    that are left and m rows, m r min(m, r) + min(m, r)^3 / 3 multiplications, once for all channels that lose and keep
    the same.
    """
    read = np.where(before, weights, 0).astype(np.float64)
    found = read * after
    losing = np.flatnonzero((before & ~after).any(axis=1))
    kinds, of = np.unique(after[losing], axis=0, return_inverse=True)
    for i, kept in enumerate(kinds):
        chosen = losing[of.reshape(-1) == i]
        left = inputs.rows[:, kept]
        # Where nothing varies, nothing can be told.
        if kept.any() and inputs.damping > 0:
            lost = inputs.rows @ (read[chosen] * ~kept).T.astype(np.float32)
            found[np.ix_(chosen, kept)] += _regression(left, lost, inputs.damping).T
    return found.astype(np.float32), (read - found) @ inputs.mean


def _regression(x: Array, z: Array, damping: float) -> Array:
    """What makes z [rows, channels] of x [rows, n], [n, channels]."""
    ridge = len(x) * damping
    if len(x) < x.shape[1]:
        gram = (x @ x.T).astype(np.float64)
        gram[np.diag_indices_from(gram)] += ridge
        return np.asarray(x.T @ cho_solve(cho_factor(gram), z.astype(np.float64)))
    second = (x.T @ x).astype(np.float64)
    second[np.diag_indices_from(second)] += ridge
    return np.asarray(cho_solve(cho_factor(second), (x.T @ z).astype(np.float64)))
