"""Where channels lie in a tensor, whatever was reshaped and transposed since they were made.

Every axis is a product of factors, the first the most significant, as in row-major order. A factor is a digit of the
number of a channel, in mixed radix, or anything else: heads and what is within are two digits of one channel, and an
axis that batch and heads share has a factor of each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from onnx_cbq.model import Array

# Digits in the order of their significance; where one is split, (0,) becomes (0, 0) and (0, 1).
Digit = tuple[int, ...]


class Factor(NamedTuple):
    """A part of an axis: so many numbers, a digit of the channels or None."""

    size: int
    digit: Digit | None = None


Axis = tuple[Factor, ...]


@dataclass(frozen=True)
class Layout:
    """The factors of every axis; those of one number are left out."""

    axes: tuple[Axis, ...]

    @staticmethod
    def of(shape: Sequence[int], axis: int) -> Layout:
        """Channels along one axis."""
        return Layout(tuple(_axis(Factor(size, (0,) if i == axis else None)) for i, size in enumerate(shape)))

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of every axis."""
        return tuple(math.prod(factor.size for factor in axis) for axis in self.axes)

    def is_free(self, axis: int) -> bool:
        """Whether no digit lies along an axis."""
        return all(factor.digit is None for factor in self.axes[axis])

    @property
    def holders(self) -> list[int]:
        """The axes along which digits lie."""
        return [axis for axis in range(len(self.axes)) if not self.is_free(axis)]

    @property
    def plain(self) -> int | None:
        """The axis along which the channels lie one after the other, and nothing else; None if there is none."""
        if len(self.holders) != 1:
            return None
        digits = [factor.digit for factor in self.axes[self.holders[0]]]
        known = [digit for digit in digits if digit is not None]
        return self.holders[0] if len(known) == len(digits) and known == sorted(known) else None

    def replaced(self, axis: int, size: int) -> Layout:
        """With a free axis of another size."""
        return Layout((*self.axes[:axis], _axis(Factor(size)), *self.axes[axis + 1 :]))

    def without(self, axes: Iterable[int]) -> Layout:
        """Without some axes."""
        gone = set(axes)
        return Layout(tuple(axis for i, axis in enumerate(self.axes) if i not in gone))

    def transposed(self, order: Sequence[int]) -> Layout:
        """Axis i is the former axis order[i]."""
        return Layout(tuple(self.axes[old] for old in order))

    def reshaped(self, shape: Sequence[int]) -> Layout | None:
        """The same numbers as another shape; None where it cuts through a factor, or there are none."""
        left = [factor for axis in self.axes for factor in axis]
        if 0 in (*shape, *self.shape):
            return None
        axes = list[Axis]()
        for size in shape:
            axis, wanted = list[Factor](), size
            while wanted > 1:
                if not left:
                    return None
                first = left.pop(0)
                if wanted % first.size:
                    # The axis ends within the factor.
                    if first.size % wanted:
                        return None
                    first, rest = _split(first, wanted)
                    left.insert(0, rest)
                axis.append(first)
                wanted //= first.size
            axes.append(tuple(axis))
        return None if left else Layout(tuple(axes))


def spread(axis: Axis, values: Array) -> Array:
    """Numbers of channels [channels] as they lie along an axis, repeated where other factors stand: [size of axis]."""
    digits = sorted(factor.digit for factor in axis if factor.digit is not None)
    sizes = {factor.digit: factor.size for factor in axis}
    placed = values.reshape([sizes[digit] for digit in digits])
    placed = placed.transpose([digits.index(factor.digit) for factor in axis if factor.digit is not None])
    shape = [factor.size if factor.digit is not None else 1 for factor in axis]
    return np.broadcast_to(placed.reshape(shape), [factor.size for factor in axis]).reshape(-1)


def _axis(factor: Factor) -> Axis:
    return () if factor.size == 1 else (factor,)


def _split(factor: Factor, first: int) -> tuple[Factor, Factor]:
    size, digit = factor
    if digit is None:
        return Factor(first), Factor(size // first)
    return Factor(first, (*digit, 0)), Factor(size // first, (*digit, 1))
