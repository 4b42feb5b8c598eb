"""How far the moments of a layer's inputs are to be trusted: the damping that is best on samples held back.

With n weights per channel and not many more rows, H of the rows at hand says little of H of others: weights that make
up for each other on these rows do not on those. Damping, lambda added to the diagonal of H, is ridge regression. Of the
shares lambda = d mean(diag H) that are tried, each of two is the one with the least error

    E (w x - q x~)^2  =  q H q^T - 2 w C q^T + const,        H and C of the samples held back,

where q was made of the moments of the other samples (Stone, 1974, cross-validatory choice):

- of the aim: q is a = w (C + lambda) (H + lambda)^-1 itself, which repairs what the layers in front have done;
- of rounding: q is a, rounded to a few bits column by column with compensation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_cbq.model import Array
from onnx_cbq.quantize.compensate import Ordered, best_aim, compensate, in_order
from onnx_cbq.quantize.grid import Grid, search_scale
from onnx_cbq.quantize.moments import Moments, part_slices
from onnx_cbq.quantize.settings import RoundingConfig

# Dampings that are tried, as multiples of the least.
_MULTIPLES = (1, 4, 16, 64, 256)
# What is rounded to choose by: so many channels of a group and groups, to so many bits.
_CHANNELS, _GROUPS, _BITS = 32, 16, 3
# Metrics that are held at once.
_METRIC_BYTES = 64 << 20


@dataclass(frozen=True)
class Dampings:
    """Damping of the aim and of rounding towards it, as shares of the mean diagonal of H."""

    aim: float
    rounding: float


def choose_dampings(rows: Array, moments: Moments, config: RoundingConfig) -> Dampings:
    """The best on the samples held back for weights [groups, rows, n]; the least where none were.

    Cost: 2 n^3 / 3 multiplications for each that is tried, of the weights of the first part.
    """
    held, least = moments.held, config.damping
    if held is None:
        return Dampings(least, least)
    groups, channels = (_some(count, most) for count, most in zip(rows.shape, (_GROUPS, _CHANNELS), strict=False))
    w = rows[groups][:, channels][:, :, part_slices(rows.shape[2])[0]]
    second, cross = (
        (whole[0][groups] - held.share * part[groups]) / (1 - held.share)
        for whole, part in ((moments.second, held.second), (moments.cross, held.cross))
    )
    against = held.second[groups], w @ held.cross[groups]
    tried = [least * multiple for multiple in _MULTIPLES]
    aim, d_aim = w, least
    if moments.cross is not moments.second:
        errors = [_error(best_aim(w, second, cross, damping), *against) for damping in tried]
        d_aim = tried[int(np.argmin(errors))]
        aim = best_aim(w, second, cross, d_aim)
    errors = [_error(levels, *against) for levels in _rounded(aim, second, tried, config)]
    return Dampings(d_aim, tried[int(np.argmin(errors))])


def _rounded(aim: Array, second: Array, tried: Sequence[float], config: RoundingConfig) -> Iterator[Array]:
    """Levels for the aim [g, r, n] by each damping."""
    groups, rows, size = aim.shape
    flat = np.asarray(aim.reshape(-1, size), np.float32)
    scale = search_scale(flat, None, _BITS, mid_rise=False)[1].reshape(groups, rows)
    ordered = in_order(second, sort=config.order == "falling")
    at_once = max(_METRIC_BYTES // second.nbytes, 1)
    for start in range(0, len(tried), at_once):
        some = tried[start : start + at_once]
        many = (len(some), 1, 1)
        repeated = Ordered(np.tile(ordered.order, many[:2]), np.tile(ordered.second, many))
        metric = repeated.damped(np.repeat(some, groups))
        shape = (len(some) * groups, rows)
        grid = Grid.of(np.tile(scale, many[:2]), np.full(shape, _BITS), np.zeros(shape, bool))
        levels, _ = compensate(np.tile(aim, many), metric, grid.nearest)
        yield from levels.reshape(len(some), *aim.shape)


def _error(values: Array, second: Array, target: Array) -> float:
    """q H q^T - 2 w C q^T, summed."""
    return float(np.einsum("grn,grn->", values @ second - 2 * target, values))


def _some(count: int, most: int) -> Array:
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))
