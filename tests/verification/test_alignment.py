"""Channels that a file lacks are found by the numbers of those that it has."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from onnx_cbq.model import Array
from onnx_cbq.verification.alignment import kept_channels


def correlation(one: Array, other: Array) -> float:
    return float(np.corrcoef(one.reshape(-1), other.reshape(-1))[0, 1])


@pytest.mark.parametrize("seed", range(5))
def test_the_channels_are_the_most_alike_in_order(seed: int) -> None:
    """Against all choices: some channels are hardly known again, and the best of each alone may not ascend."""
    random = np.random.default_rng(seed)
    values = random.standard_normal((6, 7, 3))
    values[:, 3] = values[:, 2] + 0.3 * random.standard_normal((6, 3))
    kept = np.sort(random.choice(7, 4, replace=False))
    others = values[:, kept] * 2.5 + 1 + random.standard_normal((6, 4, 3))
    best = max(
        combinations(range(7), 4),
        key=lambda chosen: sum(correlation(values[:, c], others[:, k]) for k, c in enumerate(chosen)),
    )
    found = kept_channels(values, others, 1)
    assert found is not None
    assert found.tolist() == list(best)


def test_along_the_last_axis_and_with_constant_channels() -> None:
    random = np.random.default_rng(0)
    values = random.standard_normal((40, 5))
    values[:, 1] = 3
    found = kept_channels(values, values[:, [0, 3, 4]] + 0.01, -1)
    assert found is not None
    assert found.tolist() == [0, 3, 4]


def test_the_same_number_is_all_of_them_whatever_the_form() -> None:
    assert kept_channels(np.zeros((2, 6)), np.zeros((2, 6)), 1) is None
    assert kept_channels(np.zeros((2, 3, 6)), np.zeros((6, 6)), -1) is None


@pytest.mark.parametrize("shape", [(2, 8), (3, 5), (2, 4, 1)])
def test_other_forms_are_no_parts(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="tensors of shapes"):
        kept_channels(np.zeros((2, 6)), np.zeros(shape), 1)
