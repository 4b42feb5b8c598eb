"""Codes that come from a table, as small signed numbers: what a file stores and a Gather looks up."""

from __future__ import annotations

import numpy as np

from onnx_cbq.model import Array


def index_bits(values: int) -> int:
    """Bits of an index into a table of so many values, at least 1."""
    return max(int(np.ceil(np.log2(values))), 1)


def ranks(table: Array) -> tuple[Array, int]:
    """How a table [k] is looked up by signed numbers around 0, as a Gather takes them, and what is subtracted.

    A value's rank is its position less that of the value nearest to 0, or next to it where ranks would need more bits
    than positions do: a number in -2^(b-1) .. 2^(b-1) - 1, b = `index_bits(k)`. Negative ranks count from the end, so
    the table is turned: [rank 0, 1, ..., the largest, the smallest, ..., -1].
    """
    half = 1 << (index_bits(len(table)) - 1)
    zero = int(np.abs(table.astype(np.int16)).argmin())
    zero = int(np.clip(zero, max(len(table) - half, 0), half))
    return np.roll(table, -zero), zero


def rank_codes(codes: Array, table: Array) -> Array:
    """The ranks of int8 codes that are all in the table, int8 of the same shape."""
    return (np.searchsorted(table, codes) - ranks(table)[1]).astype(np.int8)


def ranks_fit(codes: Array, table: Array, bits: int) -> bool:
    """Whether the ranks of a channel's codes, all in the table, fit into `bits` bits; with 0 bits all codes are 0."""
    if bits == 0:
        return not codes.any()
    found, half = rank_codes(codes, table), 1 << (bits - 1)
    return bool((-half <= found.min(initial=0)) and (found.max(initial=0) < half))
