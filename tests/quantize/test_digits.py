"""Short numbers are the nearest ones, and short."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_cbq.model import Array
from onnx_cbq.quantize.digits import few_digits, largest_steps, on_steps


def spread(count: int) -> Array:
    """Numbers of either sign, from very small to very large."""
    random = np.random.default_rng(0)
    return (random.normal(size=count) * np.exp2(random.uniform(-100, 100, count))).astype(np.float32)


@pytest.mark.parametrize("digits", [2, 4, 8])
def test_short_numbers_have_so_many_digits_and_none_is_nearer(digits: int) -> None:
    """What is stored beyond them would be noise that no coder can make smaller."""
    values = spread(2000)
    found = few_digits(values, digits)
    assert not (found.view(np.uint32) & np.uint32((1 << 23 - digits) - 1)).any()
    # Between two neighbours of so many digits lies a 2^digits-th of the power of two below.
    step = np.exp2(np.floor(np.log2(np.abs(values.astype(np.float64)))) - digits)
    assert (np.abs(found.astype(np.float64) - values) <= step / 2).all()
    assert np.array_equal(few_digits(found, digits), found)
    above = few_digits(values, digits, up=True).astype(np.float64)
    assert ((above >= values) & (above - values < step)).all()


def test_zeros_and_powers_of_two_stay() -> None:
    values = np.array([0, 1, -2, 2.0**-126, 2.0**100], np.float32)
    assert np.array_equal(few_digits(values, 4), values)


def test_steps_are_the_largest_powers_of_two_that_are_allowed() -> None:
    steps = largest_steps(np.array([0.25, 1.9, 64.0, 0.0]))
    assert steps.tolist() == [0.25, 1, 64, 0]
    assert on_steps(np.array([0.3, -1.7, 5.0, 0.123], np.float32), steps).tolist() == pytest.approx(
        [0.25, -2, 0, 0.123]
    )


def test_steps_count_in_units() -> None:
    """An int32 bias is a multiple of s_x s_w: its lowest bits are zeros only if the step is one, too."""
    units = np.array([0.3, 0.3, 7.0, 7.0])
    steps = largest_steps(np.array([2.5, 2.3, 8.0, 0.0]), units)
    assert steps.tolist() == pytest.approx([2.4, 1.2, 7, 7])
