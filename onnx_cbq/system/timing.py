"""How long things take: medians of runs that take turns, and how sure these are."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np


class Median(float):
    """A median that knows its standard error: half of what the ranks n/2 -+ sqrt(n)/2 of n values lie apart.

    The number of values below the true median is binomial, of deviation sqrt(n)/2.
    """

    error: float

    @staticmethod
    def of(values: Sequence[float]) -> Median:
        """Of at least one value."""
        ordered, n = np.sort(values), len(values)
        low, high = (int(np.clip(round(n / 2 + side * math.sqrt(n) / 2), 0, n - 1)) for side in (-1, 1))
        found = Median(np.median(ordered))
        found.error = float(ordered[high] - ordered[low]) / 2
        return found


def median_seconds(runs: Sequence[Callable[[], object]], seconds: float = 1.0) -> list[Median]:
    """Median seconds of each of some runs, which take turns so that a drifting clock hits all alike."""
    times: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 5:
        for run, spent in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            spent.append(time.perf_counter() - start)
    return [Median.of(spent) for spent in times]
