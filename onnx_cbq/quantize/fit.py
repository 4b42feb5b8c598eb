"""Fit the grids of a layer's channels to a metric: every likely scale on both grids is rounded in full, the best stays.

Rows are independent, so the candidates of a row are simply more rows for the solver.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from onnx_cbq.model import Array
from onnx_cbq.quantize.compensate import Box
from onnx_cbq.quantize.grid import Channels, Grid, has_grid, quantize_rows, search_scale
from onnx_cbq.quantize.problem import Problem
from onnx_cbq.quantize.settings import RoundingConfig
from onnx_cbq.records import WeightRules

# Candidate scales as shares of the one that is best without compensation; with it, clipping further often pays.
_SHARES = {1: (0.6, 0.75, 0.9, 1.0, 1.1), 2: (0.7, 0.8, 0.9, 1.0, 1.1), 3: (0.8, 0.9, 1.0, 1.1), 4: (0.85, 0.95, 1.05)}
_NO_CHOICE = (1.0,)
_POWERS = (0.5, 1.0, 2.0)
# From this width on one level more or less makes no difference, and only the mid-tread grid is tried.
_ONE_GRID_BITS = 6
# Rows that the solver works on at once.
_CHUNK_BYTES = 128 << 20


@dataclass(frozen=True)
class Fitted:
    """Quantized channels, and the error of each in the metric, float64 [channels]."""

    channels: Channels
    error: Array


def fit(problem: Problem, bits: Array, config: RoundingConfig) -> Fitted:
    """Round every channel to its bits [channels]. Cost: some 10 to 40 n multiplications per weight.

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
    candidates = _candidates(problem, bits)
    count, (groups, rows) = len(candidates), bits.shape
    # [K] of [g, r] -> [g, K r]
    scale, mid_rise, valid = (np.concatenate(part, axis=1) for part in zip(*candidates, strict=True))
    grid = Grid.of(scale, np.tile(bits, (1, count)), mid_rise)
    many = replace(problem, aim=np.tile(problem.aim, (1, count, 1)))
    levels, errors = many.compensate(grid.nearest, _box(many, grid, many.aim))
    each = np.where(valid, errors, np.inf).reshape(groups, count, rows)
    if problem.rules.per_tensor:
        each = np.broadcast_to(each.sum(axis=(0, 2), keepdims=True), each.shape)
    chosen = each.argmin(axis=1) * rows + np.arange(rows)
    scale, mid_rise, error = (np.take_along_axis(part, chosen, 1) for part in (scale, mid_rise, errors))
    levels = np.take_along_axis(levels, chosen[:, :, None], 1)
    levels, scale, mid_rise, error = _or_nearest(problem, bits, (levels, scale, mid_rise, error))
    for _ in range(config.refits):
        new_scale = problem.refitted(levels, scale)
        grid, start = Grid.of(new_scale, bits, mid_rise), levels * (new_scale / scale)[:, :, None]
        moved = problem.descend(start, grid.nearest, config.sweeps, _box(problem, grid, start))
        new_error = problem.error(moved)
        better = _better(problem, new_error, error)
        levels = np.where(better[:, :, None], moved, levels)
        scale, error = np.where(better, new_scale, scale), np.where(better, new_error, error)
    codes = np.rint(levels / scale[:, :, None]).astype(np.int8)
    return codes, scale.astype(np.float32), error


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


def _candidates(problem: Problem, bits: Array) -> list[tuple[Array, Array, Array]]:
    """Scales, kind of grid and whether there is such a grid, each [g, r], to try for the rows."""
    groups, rows, size = problem.aim.shape
    aim, rules, lanes = problem.aim.reshape(-1, size), problem.rules, problem.lanes
    weights = problem.column_weights().repeat(rows, axis=0)
    widths = bits.reshape(-1)
    kinds = (False, True) if int(widths.min()) < _ONE_GRID_BITS else (False,)
    if rules.per_tensor and int(widths.min()) > 1:
        kinds = kinds[:1]  # one scale means one grid
    choices = [_shares(int(width), rules) for width in widths]
    # A row with fewer choices than others in the layer tries its first ones again.
    shares = np.array([np.resize(choice, max(map(len, choices))) for choice in choices], np.float32).T
    found = []
    for mid_rise in kinds:
        scale = np.ones(len(aim), np.float32)
        allowed = has_grid(widths, mid_rise=mid_rise, lanes=lanes)
        for width in np.unique(widths[(widths > 0) & allowed]):
            chosen = widths == width
            searched = search_scale(
                aim[chosen], weights[chosen], int(width), mid_rise=mid_rise, rules=rules, lanes=lanes
            )
            scale[chosen] = searched[1]
        valid = allowed.reshape(bits.shape)
        kind = np.full(bits.shape, mid_rise)
        found += [((scale * share).reshape(groups, rows), kind, valid) for share in shares]
    return found


def _shares(width: int, rules: WeightRules) -> tuple[float, ...]:
    return _POWERS if rules.power_of_two else _SHARES.get(width, _NO_CHOICE)
