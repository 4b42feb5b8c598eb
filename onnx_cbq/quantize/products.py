"""Products of many rows, whose last digits do not depend on how many threads share the work.

A library that spreads one product over threads cuts it by their number, and adds up in another order for each. Here it
is cut into tiles of a fixed size, and each of them is computed by one thread.
"""

from __future__ import annotations

import numpy as np

from onnx_cbq.model import Array
from onnx_cbq.system.blas import one_thread
from onnx_cbq.system.workers import in_threads

# Columns of a tile, and groups that are taken together.
_TILE, _GROUPS = 128, 32


def product(left: Array, right: Array, *, symmetric: bool = False) -> Array:
    """The sum over rows of left x right, float32 [groups, rows, a] and [groups, rows, b] -> [groups, a, b].

    If it is `symmetric` only one half is computed. Cost: a b multiplications per row, half of it if symmetric.
    """
    groups, _, columns = left.shape
    found = np.empty((groups, columns, right.shape[2]), np.result_type(left, right))
    with one_thread():
        if groups > 1:

            def some(start: int) -> None:
                part = slice(start, start + _GROUPS)
                np.matmul(left[part].swapaxes(1, 2), right[part], out=found[part])

            for _ in in_threads(some, range(0, groups, _GROUPS)):
                pass
            return found

        def tile(start: int) -> None:
            stop, first = start + _TILE, start if symmetric else 0
            found[0, start:stop, first:] = left[0, :, start:stop].T @ right[0, :, first:]

        for _ in in_threads(tile, range(0, columns, _TILE)):
            pass
    if symmetric:
        for start in range(0, columns, _TILE):
            stop = start + _TILE
            found[0, stop:, start:stop] = found[0, start:stop, stop:].T
    return found
