"""Arrays that were mapped from a file and never read whole: where they lie, and letting go of what was read."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np

from onnx_cbq.model.model import Array

# Weights of so many bytes together are not held twice, and not read where they need not be; this holds for those of
# so many bytes each, since what is smaller may be a shape, a table of indices or a mask.
LARGE, HUGE = 1 << 29, 1 << 20


def place_of(value: Array) -> tuple[Path, int] | None:
    """The real file of a contiguous array, and the byte at which it begins; None where it is in memory."""
    base = _mapping(value)
    if base is None or not value.flags.c_contiguous or base.filename is None:
        return None
    return Path(base.filename).resolve(), int(base.offset) + _distance(base, value)


def release(value: Array) -> None:
    """Let go of the pages of an array that lies in a file; whoever reads it again finds them there again."""
    base = _mapping(value)
    if base is None or not value.flags.c_contiguous or not hasattr(mmap, "MADV_DONTNEED"):
        return
    start = _distance(base, value) + int(base.offset) % mmap.ALLOCATIONGRANULARITY
    first = start - start % mmap.PAGESIZE
    pages: mmap.mmap = base._mmap  # type: ignore[attr-defined]  # noqa: SLF001, numpy has no other name for it
    pages.madvise(mmap.MADV_DONTNEED, first, start + value.nbytes - first)


def _mapping(value: Array) -> np.memmap[tuple[int, ...], np.dtype[np.generic]] | None:
    """The array that was mapped, of which this one is a part; those on the way are parts of it as well."""
    base: object = value
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap) and not isinstance(base.base, np.ndarray):
            return base
        base = base.base
    return None


def _distance(base: Array, value: Array) -> int:
    return int(value.__array_interface__["data"][0] - base.__array_interface__["data"][0])
