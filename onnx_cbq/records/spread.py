"""How much a tensor varies from sample to sample, from running sums."""

from __future__ import annotations

import numpy as np

from onnx_cbq.model import Array


class Spread:
    """Gathers batches [samples, ...]; elements that are not finite are left out.

    `variance` is the mean over the elements of their variance over the samples.
    """

    def __init__(self) -> None:
        self._count: Array | float = 0.0
        self._first: Array | None = None
        self._sum: Array | float = 0.0
        self._square: Array | float = 0.0

    def add(self, values: Array) -> None:
        """Take a batch in; an output that is one number is one sample of it."""
        values = np.atleast_1d(values)
        if not len(values):
            return
        values = values.astype(np.float64)
        finite = np.isfinite(values)
        if self._first is None:
            self._first = np.where(finite[0], values[0], 0.0)
        # Distances from the first sample, so that a large mean costs no digits.
        values = np.where(finite, values - self._first, 0.0)
        self._count = self._count + finite.sum(axis=0)
        self._sum = self._sum + values.sum(axis=0)
        self._square = self._square + np.square(values).sum(axis=0)

    def join(self, other: Spread) -> None:
        """Take in what another has gathered."""
        if other._first is None:
            return
        if self._first is None:
            self._first = np.zeros_like(other._first) + other._first
        moved = other._first - self._first
        self._count = self._count + other._count
        self._sum = self._sum + other._sum + other._count * moved
        self._square = self._square + other._square + moved * (2 * other._sum + other._count * moved)

    @property
    def variance(self) -> float:
        """The mean variance; 0 before anything was gathered."""
        count = np.maximum(self._count, 1)
        found = np.asarray(self._square / count - np.square(self._sum / count))
        return float(np.maximum(found, 0.0).mean()) if found.size else 0.0

    @property
    def is_empty(self) -> bool:
        """Whether nothing was gathered."""
        return self._first is None


def squared_distances(before: Array, after: Array) -> Array:
    """(after - before)^2, 0 where both are the same infinity or NaN; where only one is finite, that of its value."""
    with np.errstate(invalid="ignore", over="ignore"):
        change = np.nan_to_num(after) - np.nan_to_num(before)
    both = np.isfinite(before) == np.isfinite(after)
    finite = np.isfinite(before) & np.isfinite(after)
    one = np.where(np.isfinite(before), before, np.where(np.isfinite(after), after, 0.0))
    return np.square(np.where(finite, change, np.where(both, 0.0, one)), dtype=np.float64)
