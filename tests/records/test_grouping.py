"""Sums over groups of classes, with the matrix of who belongs where and without it."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_cbq.records import Grouping

NAMES = tuple("abcd")


@pytest.mark.parametrize("of_class", [[0, 1, 2, 3], [2, 0, 3, 1], [0, 1, 0, 2], [0, 0, 0, 1]])
@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4)])
def test_sums_are_those_of_the_members(of_class: list[int], shape: tuple[int, ...]) -> None:
    """Where each class is a group by itself nothing is multiplied: a thousand classes would take a million products."""
    groups = Grouping.of(NAMES, np.array(of_class))
    values = np.random.default_rng(0).normal(size=shape)
    expected = np.stack([values[..., np.array(of_class) == g].sum(axis=-1) for g in range(max(of_class) + 1)], axis=-1)
    np.testing.assert_allclose(groups.sums(values), expected, rtol=1e-12)
    for g in range(len(groups.names)):
        np.testing.assert_array_equal(groups.member(g), groups.members[g])
