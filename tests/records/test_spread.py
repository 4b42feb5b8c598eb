"""Variances that are gathered in parts, against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_cbq.model import Array
from onnx_cbq.records.spread import Spread

# A mean far from 0: sums of squares in place of distances lose all digits of the variance.
VALUES = np.random.default_rng(0).standard_normal((30, 4, 3)) + 1e6


def gathered(*parts: Array) -> Spread:
    spread = Spread()
    for part in parts:
        spread.add(part)
    return spread


def joined(*spreads: Spread) -> Spread:
    total = Spread()
    for spread in spreads:
        total.join(spread)
    return total


@pytest.mark.parametrize("cuts", [[], [1], [10, 11, 29], [0, 30]], ids=str)
def test_parts_joined_are_the_whole(cuts: list[int]) -> None:
    """Workers gather a part each."""
    parts = np.split(VALUES, cuts)
    # Squares of distances from the first sample are some times the variance: a few digits of float64 are lost.
    expected = VALUES.var(axis=0).mean()
    assert joined(*map(gathered, parts)).variance == pytest.approx(expected, rel=1e-12)
    assert joined(gathered(*parts)).variance == pytest.approx(expected, rel=1e-12)


def test_what_is_joined_stays_as_it_is() -> None:
    """Pieces of an engine in this process are the worker's own."""
    first, second = gathered(VALUES[:10]), gathered(VALUES[10:])
    before = first.variance, second.variance
    total = joined(first, second)
    total.add(VALUES[:3])
    assert (first.variance, second.variance) == before


def test_nothing_joined_is_nothing_and_what_is_not_finite_is_left_out() -> None:
    assert joined(Spread(), Spread()).is_empty
    broken = VALUES.copy()
    broken[3, 0, 0], broken[12, 1, 2] = np.nan, np.inf
    masked = np.ma.masked_invalid(broken)
    found = joined(gathered(broken[:11]), Spread(), gathered(broken[11:]))
    assert found.variance == pytest.approx(float(masked.var(axis=0).mean()), rel=1e-12)
