"""Ranks stand for codes: a Gather gives the codes back, in as few bits as positions take."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_cbq.records.ranks import index_bits, rank_codes, ranks, ranks_fit


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 9, 16, 31, 32, 200, 255])
@pytest.mark.parametrize("kind", ["signed", "above", "below", "odd"])
def test_a_lookup_by_rank_gives_the_code(count: int, kind: str) -> None:
    """Guards against a table turned the wrong way, and ranks that need a bit more than positions."""
    random = np.random.default_rng(count)
    allowed = {"signed": (-127, 128), "above": (-20, 128), "below": (-127, 30), "odd": (-127, 128)}[kind]
    every = np.arange(*allowed)
    every = every[every % 2 != 0] if kind == "odd" else every
    if count > len(every):
        pytest.skip("so many different codes there are not")
    table = np.sort(random.choice(every, count, replace=False)).astype(np.int8)
    codes = random.choice(table, (7, 9))
    turned, zero = ranks(table)
    found = rank_codes(codes, table)
    np.testing.assert_array_equal(turned[found.astype(int)], codes)
    bits = index_bits(count)
    assert 0 <= zero < max(count, 2)
    assert -(1 << (bits - 1)) <= found.min() <= found.max() < 1 << (bits - 1)
    assert all(ranks_fit(row, table, bits) for row in codes)


def test_small_values_have_small_ranks() -> None:
    """What the coder of an archive lives on."""
    table = np.array([-100, -20, 0, 15, 90], np.int8)
    assert rank_codes(table, table).tolist() == [-2, -1, 0, 1, 2]


def test_ranks_beyond_their_bits_are_found() -> None:
    table = np.array([-100, -20, 0, 15, 90], np.int8)
    assert not ranks_fit(table, table, 2)
    assert not ranks_fit(np.array([15], np.int8), table, 0)
    assert ranks_fit(np.array([0, 0], np.int8), table, 0)
