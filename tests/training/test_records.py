"""Learning rates rise where there is far to go, and only there."""

from __future__ import annotations

import pytest

from onnx_cbq.training.records import Schedule


@pytest.mark.parametrize(
    ("loss", "rise"), [(-1e-9, 1), (0.0, 1), (0.01, 1), (0.04, 1), (0.09, 1.5), (0.36, 3), (2.3, 4)]
)
def test_rates_rise_with_the_square_root_of_the_loss_within_bounds(loss: float, rise: float) -> None:
    """Rates for a net that starts far off would destroy one that starts close."""
    assert Schedule(10, 1.0, 5, 0, "refine", usual_loss=0.04).rise(loss) == pytest.approx(rise)


def test_rates_of_a_net_without_a_usual_loss_stay() -> None:
    assert Schedule(10, 1.0, 5, 0, "train").rise(2.0) == 1
