"""Pairs of weights that some processors add in 16 bits, and codes that never overflow there.

x86 without VNNI multiplies uint8 activations a with int8 codes q by `vpmaddubsw`, which adds two neighbouring products
in 16 bits and saturates: a_i q_i + a_j q_j. With activations up to `top` no input can saturate exactly if

    -32768 <= top (min(q_i, 0) + min(q_j, 0))        top (max(q_i, 0) + max(q_j, 0)) <= 32767

which for codes -127 .. 127 and top = 255 is |q_i + q_j| <= 128: codes of unlike signs always fit. With top <= 129 all
do.

Which codes are neighbours; those of all kernels count.

- onnxruntime multiplies matrices whose rows run over the reduced numbers: the positions of the kernel, at each of them
  the channels of the group (NHWC, after im2col; the symmetric Conv likewise), or the rows of a Gemm's matrix. It takes
  four at a time from the start, and `vpmaddubsw` adds the first two and the last two: 2j and 2j + 1 (MLAS
  `QgemmU8X8KernelAvx2`, `QgemvU8S8KernelAvx2`, `ConvSymKernelAvx2` and their AVX-512 forms, filters laid out by
  `ReorderFilter` of `qlinearconv.cc`; found on 1.22 and 1.32 as well).
- oneDNN, which OpenVINO uses, fills the channels of each position up to a multiple of four, so that with an odd number
  of channels others meet (`jit_avx2_x8s8s32x`; found on OpenVINO 2026.4).
- Its matrix product cuts rows of 257 to 1,535 numbers in half, and counts anew from there (`gemm_driver`).

Kernels of depthwise convolutions add in 32 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from onnx_cbq.model import Array

_LARGEST_SUM = 32767
_LARGEST_CODE = 127
# Numbers in a row that some kernels cut in half.
_HALVED = range(257, 1536)


@dataclass(frozen=True)
class Lanes:
    """Which weights of a row meet in one 16-bit lane, and what their codes may add up to.

    Attributes:
        partners: position of each weight's partner, -1 where it has none; int32 [kinds of pairs, n].
        limit: of the sum of two codes of one sign.
    """

    partners: Array
    limit: int

    def sums(self, codes: Array) -> Array:
        """The largest magnitude of the sum of two weights that meet, by row: codes or floats [..., n] -> [...]."""
        wide = codes.astype(np.int32) if codes.dtype == np.int8 else codes
        sums = [np.abs(wide + self._partner(wide, kind)).max(axis=-1, initial=0) for kind in self.partners]
        return np.asarray(np.max(sums, axis=0))

    def fit(self, codes: Array) -> Array:
        """Whether no pair of a row can saturate, bool [...] for codes [..., n] within -127 .. 127."""
        return np.asarray(self.sums(codes) <= self.limit)

    def box(self, wanted: Array) -> tuple[Array, Array]:
        """The lowest and the highest code of each weight so that any codes within fit, both whole numbers [..., n].

        `wanted` [..., n] are codes that one would like, whole or not. Half the distance of a pair's codes to the limit
        is left to either, so each may lie `limit` / 2 around half their difference; what is beyond the limit is taken
        from both alike. Codes `wanted` that fit are within.
        """
        within = np.clip(wanted, -_LARGEST_CODE, _LARGEST_CODE)
        low, high = np.full_like(within, -_LARGEST_CODE), np.full_like(within, _LARGEST_CODE)
        for kind in self.partners:
            middle = (within - self._partner(within, kind)) / 2
            paired = kind >= 0
            low = np.where(paired, np.maximum(low, middle - self.limit / 2), low)
            high = np.where(paired, np.minimum(high, middle + self.limit / 2), high)
        return np.ceil(low), np.floor(high)

    def nearest(self, wanted: Array) -> Array:
        """Whole codes near `wanted` [..., n] that fit."""
        return np.clip(np.rint(wanted), *self.box(wanted))

    def _partner(self, values: Array, kind: Array) -> Array:
        return np.where(kind >= 0, values[..., np.maximum(kind, 0)], 0)


def lanes(shape: tuple[int, ...], top: int, *, positions_first: bool = False) -> Lanes | None:
    """The lanes of a row of weights, None where no two codes of -127 .. 127 can overflow.

    Args:
        shape: of a row: channels of the group, then the axes of the kernel; a matrix has none.
        top: the largest activation code.
        positions_first: the channels are the last axis instead.
    """
    if top * 2 * _LARGEST_CODE <= _LARGEST_SUM:
        return None
    return Lanes(_partners(shape, positions_first), _LARGEST_SUM // top)


@lru_cache(maxsize=256)
def _partners(shape: tuple[int, ...], positions_first: bool) -> Array:  # noqa: FBT001, a key of the cache
    """Partners by the order of im2col, and where they differ, by filled-up channels and in halves."""
    size = int(np.prod(shape))
    places = np.arange(size, dtype=np.int32)
    # [positions of the kernel, channels]
    order = places.reshape(-1, shape[-1]) if positions_first else places.reshape(shape[0], -1).T
    whole, half = order.reshape(-1), -(-size // 2)
    kinds = [[whole]]
    if order.shape[1] % 2 and 1 not in order.shape:
        kinds.append(list(order))
    if half % 2 and size in _HALVED:
        kinds.append([whole[:half], whole[half:]])
    found = np.stack([_neighbours(lines, size) for lines in kinds])
    found.flags.writeable = False
    return found


def _neighbours(lines: Sequence[Array], size: int) -> Array:
    """The partner of each place when each line of places is cut into pairs from its start, int32 [size]."""
    found = np.full(size, -1, np.int32)
    for line in lines:
        even = len(line) // 2 * 2
        first, second = line[0:even:2], line[1:even:2]
        found[first], found[second] = second, first
    return found
