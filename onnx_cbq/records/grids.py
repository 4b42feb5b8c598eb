"""What the codes of weights stand for: value = f(code) s, with a scale s for each channel.

    uniform     f(q) = q
    affine      f(q) = q - z          a zero point z for each channel
    levels      f(q) = l[q]           codes are positions in a table of floats
    shared      f(q) = q              all codes come from a table; a file may hold their positions in it

A grid says what a writer, a check and a cut need to know of it, so that none of them asks which it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

import numpy as np

from onnx_cbq.model import Array
from onnx_cbq.records.ranks import rank_codes, ranks, ranks_fit
from onnx_cbq.settings import MOST_BITS


def largest_code(bits: int, *, mid_rise: bool) -> int:
    """The largest code of a uniform grid."""
    return (1 << bits) - 1 if mid_rise else (1 << (bits - 1)) - 1


def fits_bits(codes: Array, bits: int) -> bool:
    """Whether the codes of one channel lie on one of the uniform grids of `bits` bits."""
    if bits == 0:
        return not codes.any()
    largest = int(np.abs(codes.astype(np.int16)).max(initial=0))
    on_tread = bits > 1 and largest <= largest_code(bits, mid_rise=False)
    on_rise = bits < MOST_BITS and largest <= largest_code(bits, mid_rise=True) and bool((codes % 2 != 0).all())
    return on_tread or on_rise


@dataclass(frozen=True)
class Lookup:
    """How a file looks codes up: `table` at `positions`.

    Attributes:
        positions: integers in the shape of the codes; negative ones count from the table's end.
        table: float32 where it holds values, int8 where it holds codes.
        what: a word for it, of which names in the file are made.
    """

    positions: Array
    table: Array
    what: str


class WeightGrid(ABC):
    """What codes stand for. Rows are codes [channels, n]; the members are `GRIDS`."""

    @property
    def zero_point(self) -> Array | None:
        """What is subtracted from the codes, int8 [channels]; None for 0."""
        return None

    def levels(self, rows: Array) -> Array:
        """f of the codes, float32 of the same shape."""
        return rows.astype(np.float32)

    @abstractmethod
    def fits(self, codes: Array, bits: int) -> bool:
        """Whether a channel of so many bits may have these codes, [n]."""

    def holds(self, rows: Array) -> bool:  # noqa: ARG002
        """Whether there is a value for each code."""
        return True

    def kept(self, channels: Array | slice) -> Self:  # noqa: ARG002
        """The grid of the channels that are True, [channels], or of a few that follow each other."""
        return self

    def lookup(self, codes: Array, *, shared: bool) -> Lookup | None:  # noqa: ARG002
        """How codes in any shape are looked up; None where they stand for themselves.

        With `shared`, codes that come from a table are looked up too.
        """
        return None

    def stored(self, codes: Array) -> Array:
        """The numbers that an archive holds for codes in any shape."""
        return codes


@dataclass(frozen=True)
class Uniform(WeightGrid):
    """Codes around 0, a mid-tread or a mid-rise grid for each channel (see `quantize.grid`)."""

    def fits(self, codes: Array, bits: int) -> bool:
        """On either of the grids of that width."""
        return fits_bits(codes, bits)


UNIFORM = Uniform()


@dataclass(frozen=True)
class Affine(WeightGrid):
    """Codes -2^(b-1) .. 2^(b-1) - 1 less a zero point, int8 [channels]."""

    zero: Array

    @property
    def zero_point(self) -> Array | None:
        """What is subtracted from the codes, int8 [channels]; None where that is 0 everywhere."""
        return self.zero if self.zero.any() else None

    def levels(self, rows: Array) -> Array:
        """Codes less the zero points."""
        return rows.astype(np.float32) - self.zero[:, None]

    def fits(self, codes: Array, bits: int) -> bool:
        """2^b codes around 0."""
        half = 1 << max(bits - 1, 0)
        return bool(codes.min(initial=0) >= -half and codes.max(initial=0) < half)

    def kept(self, channels: Array | slice) -> Self:
        """With the zero points of these channels."""
        return self.__class__(self.zero[channels])


@dataclass(frozen=True)
class Looked(WeightGrid):
    """Codes are positions, uint8, in a table of floats, float32 [k]; the first 2^b - 1 are those of b bits."""

    table: Array

    def levels(self, rows: Array) -> Array:
        """The table at these positions."""
        return np.asarray(self.table[rows])

    def fits(self, codes: Array, bits: int) -> bool:
        """The first 2^b - 1 of the table."""
        return int(codes.max(initial=0)) < (1 << bits) - 1 if bits else not codes.any()

    def holds(self, rows: Array) -> bool:
        """Whether no position is behind the end."""
        return int(rows.max(initial=0)) < len(self.table)

    def lookup(self, codes: Array, *, shared: bool) -> Lookup:  # noqa: ARG002
        """The values themselves."""
        return Lookup(codes, self.table, "level")


@dataclass(frozen=True)
class Shared(WeightGrid):
    """All codes come from a table, int8 [k], rising; the bits are those of a position in it."""

    table: Array

    def fits(self, codes: Array, bits: int) -> bool:
        """Whether their ranks fit (see `ranks`)."""
        return ranks_fit(codes, self.table, bits)

    def holds(self, rows: Array) -> bool:
        """Whether all of them are in the table."""
        return bool(np.isin(rows, self.table).all())

    def lookup(self, codes: Array, *, shared: bool) -> Lookup | None:
        """Ranks in the table of codes."""
        return Lookup(rank_codes(codes, self.table), ranks(self.table)[0], "value") if shared else None

    def stored(self, codes: Array) -> Array:
        """Ranks."""
        return rank_codes(codes, self.table)


GRIDS: tuple[type[WeightGrid], ...] = (Uniform, Affine, Looked, Shared)
