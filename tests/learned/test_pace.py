"""Rates rise at first, rise where there is far to go, and end at nothing; time decides only where it must."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_cbq.learned.pace import MOST_RISE, WARM_UP, by_time, rate_at, rise


def test_rates_rise_and_fall_to_nothing() -> None:
    """From a twentieth, by the cosine, with the whole rate where the warm-up ends at the start of the course."""
    assert rate_at(2.0, 0, 0.0) == pytest.approx(2.0 / WARM_UP)
    assert rate_at(2.0, WARM_UP, 0.0) == 2.0
    assert rate_at(2.0, 100, 0.5) == pytest.approx(1.0)
    assert rate_at(2.0, 200, 1.0) == 0
    course = [rate_at(1.0, done, done / 200) for done in range(200)]
    assert np.argmax(course) in range(WARM_UP - 3, WARM_UP + 1)


@pytest.mark.parametrize(("loss", "expected"), [(0.0, 1.0), (0.04, 1.0), (0.16, 2.0), (100.0, MOST_RISE), (-1.0, 1.0)])
def test_rates_are_higher_where_there_is_far_to_go(loss: float, expected: float) -> None:
    """With the square root of the loss, within bounds; a loss below 0 by the last digit is none."""
    assert rise(loss) == pytest.approx(expected)


def test_time_decides_only_where_it_would_run_out_first() -> None:
    """Guards repeated runs: the first updates are slow, and a run in time never looks at the clock."""
    assert not by_time(WARM_UP, 100, 0.9)
    assert not by_time(50, 100, 0.5)
    assert by_time(50, 100, 0.51)
