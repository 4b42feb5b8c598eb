"""Layouts say of every number which channel it is of, held against arrays that numpy reshaped and transposed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onnx_cbq.graph.layouts import Layout, spread
from onnx_cbq.model import Array


def numbered(shape: tuple[int, ...], axis: int) -> Array:
    """An array that holds the number of the channel everywhere."""
    sizes = [-1 if i == axis else 1 for i in range(len(shape))]
    return np.broadcast_to(np.arange(shape[axis]).reshape(sizes), shape)


def channels_of(layout: Layout) -> Array:
    """The same by the layout: digits in the order of their significance make the number."""
    factors = [factor for axis in layout.axes for factor in axis]
    places = np.indices([factor.size for factor in factors])
    total, weight = np.zeros([factor.size for factor in factors], np.int64), 1
    for digit in sorted((f.digit for f in factors if f.digit is not None), reverse=True):
        (index,) = (i for i, factor in enumerate(factors) if factor.digit == digit)
        total, weight = total + weight * places[index], weight * factors[index].size
    return total.reshape(layout.shape)


def a_shape(random: np.random.Generator, size: int) -> tuple[int, ...]:
    """Any shape of so many numbers."""
    found = list[int]()
    while size > 1 and len(found) < 5:
        divisors = [d for d in range(1, size + 1) if size % d == 0]
        found.append(int(random.choice(divisors)))
        size //= found[-1]
    return (*found, size)


@pytest.mark.parametrize("seed", range(60))
def test_channels_are_where_numpy_puts_them(seed: int) -> None:
    random = np.random.default_rng(seed)
    shape = tuple(int(size) for size in random.choice([1, 2, 3, 4, 6, 12], size=4))
    axis = int(random.integers(4))
    values, layout = numbered(shape, axis), Layout.of(shape, axis)
    followed = 0
    for _ in range(8):
        if random.random() < 0.5:
            order = random.permutation(values.ndim).tolist()
            values, layout = values.transpose(order), layout.transposed(order)
        else:
            wanted = a_shape(random, values.size)
            reshaped = layout.reshaped(wanted)
            if reshaped is None:
                continue
            values, layout = values.reshape(wanted), reshaped
        followed += 1
        assert layout.shape == values.shape
        np.testing.assert_array_equal(channels_of(layout), values)
        if len(layout.holders) == 1:
            (holder,) = layout.holders
            along = np.moveaxis(values, holder, 0).reshape(values.shape[holder], -1)[:, 0]
            np.testing.assert_array_equal(spread(layout.axes[holder], np.arange(shape[axis])), along)
            assert (layout.plain is not None) == (along.tolist() == list(range(shape[axis])))
    assert followed > 0


def test_a_shape_that_cuts_through_a_factor_is_not_followed() -> None:
    """6 channels of 4 positions as 8 x 3: no axis holds whole digits."""
    assert Layout.of((6, 4), 0).reshaped((8, 3)) is None


def test_a_reshape_must_keep_how_many_numbers_there_are() -> None:
    layout = Layout.of((6, 4), 0)
    assert layout.reshaped((6, 2)) is None
    assert layout.reshaped((6, 8)) is None
    assert math.prod(layout.shape) == 24
