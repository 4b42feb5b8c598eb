"""Latent weights on the grids of their channels, and the gradients that pass through rounding.

A latent weight v is rounded to a code q of the grid of its channel, v ~ s q. For gradients rounding is the identity
within the grid's range and constant beyond it (straight-through; Bengio et al., arXiv 1308.3432), and with u = v / s

    d(s q) / dv = 1 within, 0 beyond        d(s q) / d log s = s (q - u) within, s q beyond

(learned step sizes; Esser et al., ICLR 2020, arXiv 1902.08153).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnx_cbq.model import Array
from onnx_cbq.quantize.grid import Grid, is_mid_rise
from onnx_cbq.records import Layer, LayerWeights

# How far a latent weight may start from its level towards the float weight, in spacings. At half a spacing the next
# cell begins: all weights that compensation moved would start at its edge, and cross it together at the first noise.
IN_CELL = 0.3


@dataclass(frozen=True)
class Latent:
    """A layer's weights as they are learned; rows as in `Layer.rows`.

    Attributes:
        layer, bits: whose they are, and the width of each channel, int8 [channels].
        grid: the grids of the channels, each field float32 [channels].
        rows: latent weights, float32 [channels, n].
        log_scale: logarithm of what the scales are multiplied by, float32 [channels].
    """

    layer: Layer
    bits: Array
    grid: Grid
    rows: Array
    log_scale: Array

    @staticmethod
    def of(layer: Layer, weight: Array, start: LayerWeights) -> Latent:
        """In the cells of the codes to start from, as near to the float weights as these allow."""
        codes = layer.rows(start.codes)
        grid = Grid.of(start.scale.astype(np.float32), start.bits, is_mid_rise(codes, start.bits))
        level = codes * start.scale[:, None]
        reach = IN_CELL * (grid.stride * grid.scale)[:, None]
        rows = np.clip(layer.rows(weight), level - reach, level + reach).astype(np.float32)
        return Latent(layer, start.bits, grid, rows, np.zeros(len(rows), np.float32))

    @property
    def spacing(self) -> float:
        """The mean distance of neighbouring levels, which rates of latent weights are relative to."""
        used = self.bits > 0
        return float((self.grid.scale * self.grid.stride)[used].mean()) if used.any() else 1.0

    @property
    def scale(self) -> Array:
        """Float32 [channels]."""
        return np.asarray(self.grid.scale * np.exp(self.log_scale))

    def codes(self) -> Array:
        """Whole numbers on the grids, float32 [channels, n]. Cost: about ten passes over the weights."""
        units, grid = self._units(), self.grid
        stride, offset = grid.stride[:, None], grid.offset[:, None]
        codes = np.rint((units - offset) / stride) * stride + offset
        return np.asarray(np.clip(codes, *self._bounds(codes)), np.float32)

    def weight(self) -> Array:
        """The quantized weight, float32 in its own shape."""
        return self.layer.unrows(self.codes() * self.scale[:, None])

    def gradients(self, by_weight: Array) -> tuple[Array, Array]:
        """The gradients of `rows` and of `log_scale` from that of the quantized weight."""
        gradient, codes, units = self.layer.rows(by_weight), self.codes(), self._units()
        within = np.abs(units) <= self.grid.top[:, None]
        moved = np.where(within, codes - units, codes)
        return np.where(within, gradient, 0), np.asarray(self.scale * np.einsum("cn,cn->c", gradient, moved))

    def integers(self) -> LayerWeights:
        """Codes and scales as they are now."""
        return LayerWeights(self.layer.unrows(self.codes().astype(np.int8)), self.scale, self.bits)

    def _units(self) -> Array:
        """Latent weights in units of the scale."""
        return self.rows / self.scale[:, None]

    def _bounds(self, codes: Array) -> tuple[Array, Array]:
        top = np.broadcast_to(self.grid.top[:, None], codes.shape)
        if self.layer.lanes is None and not self.layer.positive:
            return -top, top
        scaled = Grid(np.ones_like(self.grid.scale), self.grid.top, self.grid.stride, self.grid.offset)
        return scaled.box(np.clip(codes, -top, top), self.layer.lanes, positive=self.layer.positive)
