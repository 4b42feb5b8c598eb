"""Which channels of a float model's tensor a file still has, where channels that nobody needs were cut out of it."""

from __future__ import annotations

import numpy as np

from onnx_cbq.model import Array

# Numbers of a channel that are enough to know it by.
_ENOUGH = 4096


def kept_channels(values: Array, others: Array, axis: int) -> Array | None:
    """The positions of the file's channels among those of the float model, ascending; None where it has them all.

    They are those whose correlations with the file's channels add up to most. Cost: the product of both numbers of
    channels, times 4,096 at most.

    Raises:
        ValueError: the tensors differ in more than the number of channels.
    """
    if values.size == others.size:
        return None
    mine, theirs = (tuple(np.delete(part.shape, axis)) for part in (values, others))
    if values.ndim != others.ndim or mine != theirs or others.shape[axis] > values.shape[axis]:
        raise ValueError(f"tensors of shapes {values.shape} and {others.shape}")
    return _best(1 - _alike(others, axis) @ _alike(values, axis).T)


def _alike(values: Array, axis: int) -> Array:
    """Each channel less its mean, of length 1: [channels, numbers]."""
    rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1).astype(np.float64)
    rows = rows[:, :: -(-rows.shape[1] // _ENOUGH)]
    rows = rows - rows.mean(axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny))


def _best(cost: Array) -> Array:
    """The ascending positions of least cost, one for each row of [kept, channels]."""
    count, channels = cost.shape
    places, before = np.arange(channels), np.zeros((count, channels), np.int64)
    total = cost[0]
    for row in range(1, count):
        least = np.minimum.accumulate(total)
        at = np.maximum.accumulate(np.where(total == least, places, 0))
        before[row, 1:] = at[:-1]
        total = cost[row] + np.concatenate([[np.inf], least[:-1]])
    found = [int(np.argmin(total))]
    for row in range(count - 1, 0, -1):
        found.append(int(before[row, found[-1]]))
    return np.array(found[::-1])
