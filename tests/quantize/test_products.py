"""Products of many rows, against float64, and the same last digits for any number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from onnx_cbq.model import Array
from onnx_cbq.quantize.products import product
from onnx_cbq.system import workers

# Rows, columns of both sides: below a tile, a whole one, some of them and a part; and groups, some and more than are
# taken together.
SHAPES = [
    (1, 5, 3, 4),
    (1, 300, 128, 128),
    (1, 70, 391, 130),
    (7, 40, 9, 9),
    (70, 11, 6, 5),
    (1, 0, 4, 4),
    (3, 8, 4, 0),
]


def sides(shape: tuple[int, int, int, int]) -> tuple[Array, Array]:
    groups, rows, left, right = shape
    random = np.random.default_rng(sum(shape))
    return (
        random.standard_normal((groups, rows, left)).astype(np.float32),
        random.standard_normal((groups, rows, right)).astype(np.float32),
    )


@pytest.fixture
def threads() -> Iterator[None]:
    """The number of threads is what it was in the end."""
    kept = list(workers._share)
    yield
    workers._share[:] = kept


def exact(left: Array, right: Array) -> tuple[Array, Array]:
    """In float64, and how far a sum in float32 may be off: rows x 2^-24 of the sum of magnitudes, in any order."""
    x, y = left.astype(np.float64), right.astype(np.float64)
    slack = (left.shape[1] + 1) * 2.0**-24 * np.einsum("gra,grb->gab", np.abs(x), np.abs(y))
    return np.einsum("gra,grb->gab", x, y), slack


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_are_those_of_float64(shape: tuple[int, int, int, int]) -> None:
    left, right = sides(shape)
    expected, slack = exact(left, right)
    found = product(left, right)
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    assert (np.abs(found - expected) <= slack).all()


@pytest.mark.parametrize("columns", [1, 127, 128, 129, 300])
def test_the_other_half_of_a_symmetric_product_is_the_same(columns: int) -> None:
    """Weights of rows stand on one side only, so the two sides differ, and their product is symmetric all the same."""
    right, _ = sides((1, 50, columns, 1))
    left = right * np.random.default_rng(0).uniform(0.5, 2, 50).astype(np.float32)[:, None]
    expected, slack = exact(left, right)
    found = product(left, right, symmetric=True)
    # Each side was rounded once more than the other.
    assert (np.abs(found - expected) <= 3 * slack).all()
    tiles = [slice(start, start + 128) for start in range(0, columns, 128)]
    for i, rows in enumerate(tiles):
        for others in tiles[:i]:
            np.testing.assert_array_equal(found[0, rows, others], found[0, others, rows].T)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_number_of_threads_changes_no_digit(shape: tuple[int, int, int, int], *, symmetric: bool) -> None:
    """Workers have fewer threads than one process has, and have to give the same bytes."""
    left, right = sides(shape)
    right = left if symmetric else right
    found = []
    for count in (1, 2, 3):
        workers.share(count)
        found.append(product(left, right, symmetric=symmetric).tobytes())
    assert found[0] == found[1] == found[2]
