"""What the rows of one layer are rounded towards, and in which metric; whatever their levels are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from onnx_cbq.model import Array
from onnx_cbq.quantize.compensate import (
    Box,
    Metric,
    Rounding,
    best_aim,
    best_factor,
    cluster_sums,
    compensate,
    descend,
    make_metric,
    squared_error,
)
from onnx_cbq.quantize.damping import choose_dampings
from onnx_cbq.quantize.moments import Moments, part_slices
from onnx_cbq.quantize.settings import RoundingConfig
from onnx_cbq.records import FREE, Lanes, Layer, WeightRules


@dataclass(frozen=True)
class Problem:
    """What the rows of one layer are rounded towards.

    Attributes:
        aim: a, float32 [groups, rows, n]; all channels are groups x rows.
        metrics: one per part of the n weights.
        rules, lanes: what the target demands of codes and scales.
        positive: whether no code may be below 0, as no weight is.
    """

    aim: Array
    metrics: tuple[Metric, ...]
    rules: WeightRules = FREE
    lanes: Lanes | None = None
    positive: bool = False

    @property
    def raised_damping(self) -> float | None:
        """The largest damping that a part needed to be factorised, as a share of its mean diagonal; None for none."""
        return max((metric.damping for metric in self.metrics if metric.raised), default=None)

    @cached_property
    def parts(self) -> list[tuple[slice, Metric]]:
        """The weights of each part, and its metric."""
        return list(zip(part_slices(self.aim.shape[2]), self.metrics, strict=True))

    def rows(self, chosen: slice | Array) -> Problem:
        """Some rows of every group."""
        return replace(self, aim=self.aim[:, chosen])

    def column_weights(self) -> Array:
        """What the error of each weight counts without compensation: the diagonal of H, [g, n]."""
        return np.concatenate([_diagonal(metric, metric.matrix) for metric in self.metrics], axis=1)

    def compensated_weights(self) -> Array:
        """What the error of each weight counts once the others make up for it: L_jj^2, [g, n]."""
        return np.concatenate(
            [np.square(_diagonal(metric, metric.factor), dtype=np.float64) for metric in self.metrics], axis=1
        )

    def compensate(self, rounding: Rounding, box: Box | None = None) -> tuple[Array, Array]:
        """Levels [g, r, n] and the error of each row [g, r]; see `compensate.compensate`."""
        levels, error = np.empty_like(self.aim), np.zeros(self.aim.shape[:2])
        for s, metric in self.parts:
            levels[:, :, s], part = compensate(self.aim[:, :, s], metric, rounding, _part(box, s))
            error += part
        return levels, error

    def descend(self, levels: Array, rounding: Rounding, sweeps: int, box: Box | None = None) -> Array:
        """Better levels; see `compensate.descend`."""
        found = [descend(self.aim[:, :, s], levels[:, :, s], m, rounding, sweeps, _part(box, s)) for s, m in self.parts]
        return np.concatenate(found, axis=2)

    def refitted(self, levels: Array, scale: Array) -> tuple[Array, Array]:
        """The scales of least error for the codes as they are, within the rules, and what the error falls by, [g, r].

        With q' = f q and r = a - q the error is r H r^T - 2 (f - 1) q H r^T + (f - 1)^2 q H q^T, least where
        f - 1 = q H r^T / q H q^T.
        """
        if self.rules.power_of_two:
            return scale, np.zeros(scale.shape)
        parts = [best_factor(self.aim[:, :, s], levels[:, :, s], m) for s, m in self.parts]
        above, below = np.sum(parts, axis=0)
        num, den = (np.full_like(part, part.sum()) if self.rules.per_tensor else part for part in (above, below))
        more = np.where((den > 0) & (num > -den), num / np.maximum(den, np.finfo(float).tiny), 0.0)
        return np.asarray(scale * (1 + more), np.float32), 2 * more * above - np.square(more) * below

    def cluster_sums(self, positions: Array, weights: Array, count: int) -> tuple[Array, Array]:
        """The quadratic in values that weights share, by `positions` [g, r, n]; see `compensate.cluster_sums`."""
        parts = [cluster_sums(self.aim[:, :, s], positions[:, :, s], m, weights, count) for s, m in self.parts]
        return np.sum([matrix for matrix, _ in parts], axis=0), np.sum([target for _, target in parts], axis=0)

    def error(self, levels: Array) -> Array:
        """The squared error of each row in the metric, [g, r]."""
        return np.asarray(sum(squared_error(self.aim[:, :, s], levels[:, :, s], m) for s, m in self.parts))

    def deviations(self, values: Array) -> Array:
        """The root of the mean squared error of each channel's output with these weights, both [channels, ..]."""
        return np.sqrt(np.maximum(self.error(values.reshape(self.aim.shape)).reshape(-1), 0))


def make_problem(rows: Array, moments: Moments, config: RoundingConfig, layer: Layer | None = None) -> Problem:
    """The problem for weights [channels, n], seen through the moments of the layer's inputs.

    `layer` is whose they are; without it nothing is demanded of codes and scales.
    """
    groups = len(moments.second[0])
    grouped = rows.reshape(groups, -1, rows.shape[1])
    chosen = choose_dampings(grouped, moments, config)
    metrics = tuple(make_metric(h, chosen.rounding, sort=config.order == "falling") for h in moments.second)
    rules, lanes, positive = (layer.rules, layer.lanes, layer.positive) if layer else (FREE, None, False)
    if moments.cross is moments.second and not moments.missing:
        return Problem(grouped.astype(np.float32), metrics, rules, lanes, positive)
    lost = moments.missing or (0.0,) * len(metrics)
    parts = zip(part_slices(rows.shape[1]), moments.second, moments.cross, lost, metrics, strict=True)
    aim = [
        best_aim(grouped[:, :, s], h, grouped[:, :, s] @ c + m, max(chosen.aim, metric.damping if metric.raised else 0))
        for s, h, c, m, metric in parts
    ]
    whole = np.concatenate(aim, axis=2).astype(np.float32)
    return Problem(np.maximum(whole, 0) if positive else whole, metrics, rules, lanes, positive)


def _part(box: Box | None, chosen: slice) -> Box | None:
    return None if box is None else (box[0][:, :, chosen], box[1][:, :, chosen])


def _diagonal(metric: Metric, matrix: Array) -> Array:
    """The diagonal of a matrix in the metric's order, in the order of the weights, [g, n]."""
    values = np.empty(metric.order.shape, np.float32)
    np.put_along_axis(values, metric.order, np.einsum("gnn->gn", matrix), 1)
    return values
