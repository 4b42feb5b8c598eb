"""Fit the grids of a layer's channels to a metric: every likely scale on both grids is rounded in full, the best stays.

Rows are independent, so the candidates of a row are simply more rows for the solver.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnx_cbq.model import Array
from onnx_cbq.quantize.compensate import Box
from onnx_cbq.quantize.grid import Channels, Grid, has_grid, quantize_rows, row_blocks, search_scale
from onnx_cbq.quantize.problem import Problem
from onnx_cbq.quantize.settings import RoundingConfig
from onnx_cbq.records import WeightRules
from onnx_cbq.system.workers import in_threads

# Candidate scales as shares of the one that is best without compensation; with it, clipping further often pays.
_SHARES = {1: (0.6, 0.75, 0.9, 1.0, 1.1), 2: (0.7, 0.8, 0.9, 1.0, 1.1), 3: (0.8, 0.9, 1.0, 1.1), 4: (0.85, 0.95, 1.05)}
_NO_CHOICE = (1.0,)
_POWERS = (0.5, 1.0, 2.0)
# From this width on one level more or less makes no difference, and only the mid-tread grid is tried.
_ONE_GRID_BITS = 6
# Rows by which choices are ruled out, and the fewest weights of rows that agree enough on the best ones: of all of them
# the three that did best leave 0.2 % more error at 576 weights, 4 % at 72.
_SAMPLE, _LONG = 32, 256
# A kind of grid, True for mid-rise, and the number of a share of the scale.
Choice = tuple[bool, int]
# Rows that the solver works on at once.
_CHUNK_BYTES = 128 << 20


@dataclass(frozen=True)
class Fitted:
    """Quantized channels, and the error of each in the metric, float64 [channels]."""

    channels: Channels
    error: Array


def fit(problem: Problem, bits: Array, config: RoundingConfig) -> Fitted:
    """Round every channel to its bits [channels]. Cost: some 10 to 20 n multiplications per weight.

    The errors never exceed those of rounding to nearest with the scale that is best for that. A row of zeros that
    would get 1 bit, where there is no zero, gets 0 bits.
    """
    groups, rows, size = problem.aim.shape
    grouped = bits.reshape(groups, rows)
    most = rows if problem.rules.per_tensor else max(_CHUNK_BYTES // (4 * groups * size * 2 * len(_SHARES[2])), 1)
    chunks = [slice(start, start + most) for start in range(0, rows, most)]
    fitted = [_fit(problem.rows(chunk), grouped[:, chunk], config) for chunk in chunks]
    codes, scale, error = (np.concatenate(part, axis=1) for part in zip(*fitted, strict=True))
    codes = codes.reshape(groups * rows, size)
    # A row of zeros takes no bits where one bit has no zero.
    bits = np.where((bits == 1) & ~codes.any(axis=1), 0, bits).astype(np.int8)
    return Fitted(Channels(codes, scale.reshape(-1), bits), error.reshape(-1))


def _fit(problem: Problem, bits: Array, config: RoundingConfig) -> tuple[Array, Array, Array]:
    """Codes int8 [g, r, n], scales [g, r] and errors [g, r] for bits [g, r]."""
    (groups, rows, size), tried = problem.aim.shape, _choices(problem, bits)
    alike = np.ptp(bits) == 0 and not problem.rules.per_tensor
    if alike and rows > _SAMPLE and size >= _LONG and len(tried) > config.candidates:
        tried = _best_choices(problem, bits, tried, config.candidates)
    levels, errors, scale, mid_rise = _compensated(problem, bits, tried)
    each = errors.reshape(groups, len(tried), rows)
    if problem.rules.per_tensor:
        each = np.broadcast_to(each.sum(axis=(0, 2), keepdims=True), each.shape)
    chosen = each.argmin(axis=1) * rows + np.arange(rows)
    scale, mid_rise, error = (np.take_along_axis(part, chosen, 1) for part in (scale, mid_rise, errors))
    levels = np.take_along_axis(levels, chosen[:, :, None], 1)
    levels, scale, mid_rise, error = _or_nearest(problem, bits, (levels, scale, mid_rise, error))
    for _ in range(config.refits):
        new_scale, gain = problem.refitted(levels, scale)
        moved, new_error = levels * (new_scale / scale)[:, :, None], error - gain
        if config.sweeps:
            grid = Grid.of(new_scale, bits, mid_rise)
            moved = problem.descend(moved, grid.nearest, config.sweeps, _box(problem, grid, moved))
            new_error = problem.error(moved)
        better = _better(problem, new_error, error)
        levels = np.where(better[:, :, None], moved, levels)
        scale, error = np.where(better, new_scale, scale), np.where(better, new_error, error)
    codes = np.rint(levels / scale[:, :, None]).astype(np.int8)
    return codes, scale.astype(np.float32), error


def _compensated(problem: Problem, bits: Array, tried: Sequence[Choice]) -> tuple[Array, Array, Array, Array]:
    """Levels [g, K r, n] of each row by each of K choices, their errors, infinite without a grid, scales and kinds."""
    # [K] of [g, r] -> [g, K r]
    found = zip(*_candidates(problem, bits, tried), strict=True)
    scale, mid_rise, valid = (np.concatenate(part, axis=1) for part in found)
    grid = Grid.of(scale, np.tile(bits, (1, len(tried))), mid_rise)
    many = replace(problem, aim=np.tile(problem.aim, (1, len(tried), 1)))
    levels, errors = many.compensate(grid.nearest, _box(many, grid, many.aim))
    return levels, np.where(valid, errors, np.inf), scale, mid_rise


def _best_choices(problem: Problem, bits: Array, tried: Sequence[Choice], most: int) -> list[Choice]:
    """The choices that leave the least error where every row may have its best of them, judged by some of the rows."""
    some = np.linspace(0, bits.shape[1] - 1, _SAMPLE).astype(np.int64)
    errors = _compensated(problem.rows(some), bits[:, some], tried)[1].reshape(len(bits), len(tried), _SAMPLE)
    kept: list[int] = []
    left = np.full((len(bits), 1, _SAMPLE), np.inf)
    for _ in range(most):
        best = int(np.minimum(left, errors).sum(axis=(0, 2)).argmin())
        kept.append(best)
        left = np.minimum(left, errors[:, best : best + 1])
    return [tried[index] for index in sorted(set(kept))]


def _box(problem: Problem, grid: Grid, levels: Array) -> Box | None:
    """Bounds of codes near `levels` [g, r, n], where some of the rows need any."""
    lanes = problem.lanes
    if lanes is not None and 2 * grid.top.max(initial=0) <= lanes.limit:
        lanes = None
    if lanes is None and not problem.positive:
        return None
    return grid.box(levels, lanes, positive=problem.positive)


def _better(problem: Problem, new: Array, old: Array) -> Array:
    """Where errors [g, r] fell; everywhere or nowhere if all rows share their scale."""
    return np.full(new.shape, new.sum() < old.sum()) if problem.rules.per_tensor else new < old


def _or_nearest(
    problem: Problem, bits: Array, found: tuple[Array, Array, Array, Array]
) -> tuple[Array, Array, Array, Array]:
    """Levels, scale, kind of grid and error of each row, or those of rounding to nearest where it is better."""
    shape = problem.aim.shape
    nearest = quantize_rows(problem.aim.reshape(-1, shape[2]), bits.reshape(-1), problem.rules, problem.lanes)
    levels = nearest.values.reshape(shape)
    error = problem.error(levels)
    odd = (nearest.codes % 2 != 0).all(axis=1).reshape(bits.shape)
    better = _better(problem, error, found[3])
    others = (levels, nearest.scale.reshape(bits.shape), odd, error)
    one, two, three, four = (
        np.where(better[:, :, None] if new.ndim == 3 else better, new, old)
        for new, old in zip(others, found, strict=True)
    )
    return one, two, three, four


def _choices(problem: Problem, bits: Array) -> list[Choice]:
    """The kinds of grid and shares of the scale to try for rows of `bits`, those of the widest choice for all."""
    least = int(bits.min())
    kinds = [
        kind
        for kind in ((False, True) if least < _ONE_GRID_BITS else (False,))
        if has_grid(bits, mid_rise=kind, lanes=problem.lanes).any()
    ]
    if problem.rules.per_tensor and least > 1:
        kinds = kinds[:1]  # one scale means one grid
    count = max(len(_shares(int(width), problem.rules)) for width in np.unique(bits))
    return [(kind, number) for kind in kinds for number in range(count)]


def _candidates(problem: Problem, bits: Array, tried: Sequence[Choice]) -> Iterator[tuple[Array, Array, Array]]:
    """Scales, kind of grid and whether there is such a grid, each [g, r], for each choice."""
    widths = bits.reshape(-1)
    # A row with fewer shares than others in the layer tries its first ones again.
    shares = {int(width): _shares(int(width), problem.rules) for width in np.unique(widths)}
    best: dict[bool, Array] = {}
    for mid_rise, number in tried:
        allowed = has_grid(widths, mid_rise=mid_rise, lanes=problem.lanes)
        if mid_rise not in best:
            scale = best[mid_rise] = np.ones(len(widths), np.float32)
            for width in np.unique(widths[(widths > 0) & allowed]):
                chosen = np.flatnonzero(widths == width)
                scale[chosen] = _searched(problem, chosen, int(width), mid_rise=mid_rise)
        share = np.array([shares[int(width)][number % len(shares[int(width)])] for width in widths], np.float32)
        yield (best[mid_rise] * share).reshape(bits.shape), np.full(bits.shape, mid_rise), allowed.reshape(bits.shape)


def _searched(problem: Problem, chosen: Array, bits: int, *, mid_rise: bool) -> Array:
    """The best scales of some channels, by their numbers, on one grid without compensation."""
    _, per_group, size = problem.aim.shape
    aim, weights = problem.aim.reshape(-1, size), problem.column_weights()

    def search(rows: Array) -> Array:
        counted = weights[rows // per_group]
        return search_scale(aim[rows], counted, bits, mid_rise=mid_rise, rules=problem.rules, lanes=problem.lanes)[1]

    blocks = [slice(None)] if problem.rules.per_tensor else row_blocks((len(chosen), size))
    return np.concatenate(list(in_threads(lambda block: search(chosen[block]), blocks)))


def _shares(width: int, rules: WeightRules) -> tuple[float, ...]:
    return _POWERS if rules.power_of_two else _SHARES.get(width, _NO_CHOICE)
