"""What codes stand for: every grid keeps to one contract, whatever it is."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_cbq.model import Array
from onnx_cbq.records import Affine, Looked, Shared, Uniform, WeightGrid
from onnx_cbq.records.grids import GRIDS

BITS = 3
VALUES = np.array([0, 1, -1, 0.5, -0.5, 0.25, -0.25], np.float32)
CODES = np.array([-9, -2, 0, 5, 40], np.int8)
# A grid of each kind with codes [2 channels, n] that it has, and what they stand for, by hand.
CASES: list[tuple[WeightGrid, Array, list[list[float]]]] = [
    (Uniform(), np.array([[-3, 0, 3], [1, 2, -1]], np.int8), [[-3, 0, 3], [1, 2, -1]]),
    (Affine(np.array([-4, 1], np.int8)), np.array([[-4, 0, 3], [1, 3, -4]], np.int8), [[0, 4, 7], [0, 2, -5]]),
    (Looked(VALUES), np.array([[0, 1, 6], [2, 3, 3]], np.uint8), [[0, 1, -0.25], [-1, 0.5, 0.5]]),
    (Shared(CODES), np.array([[-9, 0, 40], [5, -2, 0]], np.int8), [[-9, 0, 40], [5, -2, 0]]),
]


def test_every_grid_has_a_case() -> None:
    assert {type(grid) for grid, _, _ in CASES} == set(GRIDS)


@pytest.mark.parametrize(("grid", "rows", "expected"), CASES)
def test_codes_stand_for_these_values(grid: WeightGrid, rows: Array, expected: list[list[float]]) -> None:
    found = grid.levels(rows)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    assert grid.holds(rows)
    assert all(grid.fits(codes, BITS) for codes in rows)


@pytest.mark.parametrize(("grid", "rows", "expected"), CASES)
def test_channels_that_stay_keep_their_values(grid: WeightGrid, rows: Array, expected: list[list[float]]) -> None:
    """A zero point that is left behind would move all that follow."""
    stays = np.array([False, True])
    np.testing.assert_array_equal(grid.kept(stays).levels(rows[stays]), expected[1:])


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("grid", "rows", "expected"), CASES)
def test_what_is_looked_up_is_what_codes_stand_for(
    grid: WeightGrid, rows: Array, expected: list[list[float]], *, shared: bool
) -> None:
    """As Gather does it: negative positions count from the end. Floats are values, integers are codes."""
    found = grid.lookup(rows, shared=shared)
    if found is None:
        assert not (shared and isinstance(grid, Shared))
        return
    values = found.table[found.positions.astype(np.int64)]
    np.testing.assert_array_equal(values, expected if found.table.dtype == np.float32 else rows)
    np.testing.assert_array_equal(grid.stored(rows), found.positions)


def test_zero_points_of_0_are_not_written() -> None:
    """The codes are those of a grid with a zero point all the same: -4 has no counterpart."""
    grid = Affine(np.zeros(2, np.int8))
    assert grid.zero_point is None
    assert grid.fits(np.array([-4, 3], np.int8), BITS)


@pytest.mark.parametrize(
    ("grid", "codes", "bits"),
    [
        (Uniform(), [4, 0], 3),
        (Uniform(), [1], 0),
        (Affine(np.array([1], np.int8)), [4], 3),
        (Affine(np.array([1], np.int8)), [-5], 3),
        (Looked(VALUES), [3], 2),
        (Looked(VALUES), [1], 0),
        (Shared(CODES), [-9, 40], 2),
        (Shared(CODES), [5], 0),
    ],
)
def test_codes_beyond_the_width_do_not_fit(grid: WeightGrid, codes: list[int], bits: int) -> None:
    """Packed into too few bits they would come back as others."""
    assert not grid.fits(np.array(codes, np.uint8 if isinstance(grid, Looked) else np.int8), bits)


@pytest.mark.parametrize(("grid", "codes"), [(Looked(VALUES), [7]), (Shared(CODES), [1])])
def test_codes_that_stand_for_nothing_are_seen(grid: WeightGrid, codes: list[int]) -> None:
    assert not grid.holds(np.array([codes], np.uint8 if isinstance(grid, Looked) else np.int8))
