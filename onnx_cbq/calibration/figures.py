"""What the values of samples are like: least, greatest, mean and deviation, overall and of each channel or feature."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from onnx_cbq.model import Array


@dataclass(frozen=True)
class Figures:
    """Figures of raw samples.

    Attributes:
        exact: whether the range is known, as of decoded images, and not what some samples happen to have.
        lows, highs, means, deviations: of each channel of images or signals, or of each feature.
        low, high, mean, deviation: of all values together.
    """

    exact: bool
    lows: tuple[float, ...]
    highs: tuple[float, ...]
    means: tuple[float, ...]
    deviations: tuple[float, ...]
    mean: float
    deviation: float

    @property
    def low(self) -> float:
        """The least value."""
        return min(self.lows)

    @property
    def high(self) -> float:
        """The greatest value."""
        return max(self.highs)

    @property
    def channels(self) -> int:
        """How many channels, or features, there are."""
        return len(self.lows)


def of_pixels(channels: int) -> Figures:
    """Figures of decoded images: 0 to 255, whatever the samples have."""
    low, high, middle = (0.0,) * channels, (255.0,) * channels, (127.5,) * channels
    return Figures(True, low, high, middle, middle, 127.5, 127.5)  # noqa: FBT003, the first field


def measured(batches: Iterable[Array], axis: int) -> Figures:
    """Figures of raw samples [n, ...], batch by batch; channels or features are along `axis` of a sample.

    Samples that are single numbers have one feature. Values that are not finite are left to whoever prepares them.
    """
    lows = highs = totals = squares = np.zeros(0)
    count = 0
    for batch in batches:
        rows = np.asarray(batch, np.float64).reshape(len(batch), -1) if batch.ndim == 1 else _rows(batch, axis)
        rows = np.where(np.isfinite(rows), rows, 0)
        low, high = rows.min(axis=0), rows.max(axis=0)
        first = not count
        lows, highs = (low, high) if first else (np.minimum(lows, low), np.maximum(highs, high))
        totals = rows.sum(axis=0) if first else totals + rows.sum(axis=0)
        squares = np.square(rows).sum(axis=0) if first else squares + np.square(rows).sum(axis=0)
        count += len(rows)
    means = totals / count
    deviations = np.sqrt(np.maximum(squares / count - means**2, 0))
    mean = float(means.mean())
    spread = float(np.sqrt(max(float((squares / count).mean()) - mean**2, 0.0)))
    lowest, highest, centres, widths = (tuple(part.tolist()) for part in (lows, highs, means, deviations))
    return Figures(False, lowest, highest, centres, widths, mean, spread)  # noqa: FBT003, the first field


def _rows(batch: Array, axis: int) -> Array:
    """Samples [n, ...] with the channels last, float64 [n * positions, channels]."""
    moved = np.moveaxis(np.asarray(batch, np.float64), axis + 1, -1)
    return moved.reshape(-1, moved.shape[-1])
