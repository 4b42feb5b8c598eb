"""How far the moments of a layer's inputs are to be trusted: the damping that is best on samples held back.

With n weights per channel and not many more rows, H of the rows at hand says little of H of others: weights that make
up for each other on these rows do not on those. Damping, lambda added to the diagonal of H, is ridge regression. Of the
shares lambda = d mean(diag H) that are tried, each of two is the one with the least error

    E (w x + s - q x~ - s~)^2  =  q H q^T - 2 (w C + M) q^T + const,     H, C and M of the samples held back,

where q was made of the moments of the other samples (Stone, 1974, cross-validatory choice):

- of the aim: q is a = (w (C + lambda) + M) (H + lambda)^-1 itself, which repairs what the layers in front have done;
- of rounding: q is a, rounded to a few bits column by column with compensation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_cbq.model import Array
from onnx_cbq.quantize.compensate import Metric, best_aim, compensate, in_order
from onnx_cbq.quantize.grid import Grid, search_scale
from onnx_cbq.quantize.moments import Moments, part_slices
from onnx_cbq.quantize.settings import RoundingConfig

# Dampings that are tried, as multiples of the least; at the last an aim is w itself, to five digits.
_OF_AIM = (1, 8, 64, 512, 4096, 1 << 24)
_OF_ROUNDING = (1, 4, 16, 64, 256)
# What is rounded to choose by: so many channels of a group and groups, to so many bits.
_CHANNELS, _GROUPS, _BITS = 32, 16, 3
# Dampings of metrics of so many numbers are tried side by side: a column of few is rounded in no time.
_SIDE_BY_SIDE = 1 << 22


@dataclass(frozen=True)
class Dampings:
    """Damping of the aim and of rounding towards it, as shares of the mean diagonal of H."""

    aim: float
    rounding: float


def choose_dampings(rows: Array, moments: Moments, config: RoundingConfig) -> Dampings:
    """The best on the samples held back for weights [groups, rows, n]; the least where none were.

    Cost: n^3 / 3 multiplications for each of the three or four that are tried, of the weights of the first part; twice
    that where there is anything to repair.
    """
    held, least = moments.held, config.damping
    if held is None:
        return Dampings(least, least)
    groups, channels = (_some(count, most) for count, most in zip(rows.shape, (_GROUPS, _CHANNELS), strict=False))
    w = rows[groups][:, channels][:, :, part_slices(rows.shape[2])[0]]

    def others(whole: Array, part: Array) -> Array:
        return np.asarray((whole - held.share * part) / (1 - held.share))

    second = others(moments.second[0][groups], held.second[groups])
    wanted = w @ others(moments.cross[0][groups], held.cross[groups])
    against = held.second[groups], w @ held.cross[groups]
    if held.missing is not None:
        lost = held.missing[groups][:, channels]
        wanted, against = (
            wanted + others(moments.missing[0][groups][:, channels], lost),
            (against[0], against[1] + lost),
        )
    aim, of_aim = w, least
    if moments.cross is not moments.second or moments.missing:
        of_aim = least * _lowest(
            _OF_AIM, lambda tried: [_error(best_aim(w, second, wanted, least * m), *against) for m in tried]
        )
        aim = best_aim(w, second, wanted, of_aim)
    ordered = in_order(second, sort=config.order == "falling")
    aim = aim.astype(np.float32)
    scale = _scale(aim)
    together = max(_SIDE_BY_SIDE // second.size, 1)

    def errors_of_rounding(tried: Sequence[int]) -> list[float]:
        parts = [tried[i : i + together] for i in range(0, len(tried), together)]
        rounded = [_rounded(aim, scale, [ordered.damped(least * m) for m in part]) for part in parts]
        return [_error(values, *against) for part in rounded for values in part]

    return Dampings(of_aim, least * _lowest(_OF_ROUNDING, errors_of_rounding))


def _lowest(multiples: Sequence[int], errors_of: Callable[[Sequence[int]], Sequence[float]]) -> int:
    """The multiple of least error, by descent from the middle one: errors are taken to have one minimum."""
    errors: dict[int, float] = {}
    middle = len(multiples) // 2
    beside = [middle, middle - 1]
    while beside:
        errors |= dict(zip(beside, errors_of([multiples[place] for place in beside]), strict=True))
        best = min(errors, key=errors.__getitem__)
        beside = [place for place in (best - 1, best + 1) if 0 <= place < len(multiples) and place not in errors]
    return multiples[best]


def _rounded(aim: Array, scale: Array, metrics: Sequence[Metric]) -> list[Array]:
    """The rows `aim` [g, r, n] with compensation in each metric, as if each had groups of its own."""
    count = len(metrics)
    order, matrix, factor = (
        np.concatenate([getattr(one, name) for one in metrics]) for name in ("order", "matrix", "factor")
    )
    joined = Metric(order, matrix, factor, max(one.damping for one in metrics))
    scales = np.concatenate([scale] * count)
    grid = Grid.of(scales, np.full(scales.shape, _BITS), np.zeros(scales.shape, bool))
    return np.split(compensate(np.concatenate([aim] * count), joined, grid.nearest)[0], count)


def _scale(aim: Array) -> Array:
    """Scales of `_BITS` bits for the rows [g, r, n]."""
    flat = aim.reshape(-1, aim.shape[2])
    return search_scale(flat, None, _BITS, mid_rise=False)[1].reshape(aim.shape[:2])


def _error(values: Array, second: Array, target: Array) -> float:
    """q H q^T - 2 t q^T, summed, for the target t = w C + M."""
    return float(np.einsum("grn,grn->", values @ second - 2 * target, values))


def _some(count: int, most: int) -> Array:
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))
