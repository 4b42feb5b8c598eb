"""Weights that a coder stores: any code may be taken, and what it takes in bits is part of the loss.

The length of a code is that of `quantize.entropy.code_lengths`, by the codes that its channel has. Between two codes
it is interpolated, so that with u = latent / scale

    bits(u) = (1 - t) bits(k) + t bits(k + 1)        k = floor(u), t = u - k

has a slope for the latent weight and the scale. The loss adds price * (mean of bits). At high rate an error falls with
2^(-2 bits), so the price starts at its slope there, 2 ln 2 * loss; it then rises and falls with what the coder really
spends. With an excess of e, as a share of what is aimed at,

    price = level exp(100 e)        level <- level exp(4 e), at least a tenth of the first

The first answers at once, to less than a percent. The level follows slowly: alone it would fall as long as less is
spent, far below where it has to be again once more is, and too late for codes to change while rates are low.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from onnx_cbq.model import Array
from onnx_cbq.quantize.digits import DIGITS, few_digits
from onnx_cbq.quantize.entropy import LARGEST, code_lengths, widths
from onnx_cbq.quantize.grid import Grid
from onnx_cbq.records import Layer, LayerWeights
from onnx_cbq.training.grids import LatentWeight
from onnx_cbq.training.records import Rate

# Updates between two looks at what the coder spends.
REFRESH = 20
# How fast the level of the price follows: by so many times the share that is spent too much, at every look.
_GAIN = 4.0
_MOST_CHANGE = 0.3
# The level stays above this share of the first.
_LOWEST = 0.1
# What the price is above its level, as a logarithm: so many times that share, and no more than this.
_STEEPNESS = 100.0
_STEEPEST = 2.0
# What the price aims at lies below what is allowed by this share: a state that spends more is not kept.
_MARGIN = 0.004


class CodedGrid(LatentWeight):
    """Latent weights whose codes may be any; a channel of zeros stays one."""

    lengths: Tensor

    def __init__(self, layer: Layer, weight: Array, start: LayerWeights, device: torch.device) -> None:
        super().__init__(layer, weight, start, device)
        self.register_buffer("lengths", torch.zeros(layer.channels, 2 * LARGEST + 1, device=device))
        self.refresh()

    def integers(self) -> LayerWeights:
        """Codes and scales as they are now, and the widths that these codes need."""
        found = super().integers()
        return LayerWeights(found.codes, found.scale, widths(self._layer.rows(found.codes)))

    def refresh(self) -> LayerWeights:
        """Take the lengths from the codes as they are now, which are returned."""
        found = self.integers()
        self.lengths.copy_(torch.from_numpy(code_lengths(self._layer.rows(found.codes))))
        return found

    def bits(self) -> Tensor:
        """Bits of all weights by the lengths, interpolated. Cost: some ten passes over the weights."""
        axis = self._layer.weight_axis
        units = self._rounded(self._scale())[0].movedim(axis, 0).flatten(1)
        below = units.detach().floor().clamp(-LARGEST, LARGEST - 1)
        index = below.long() + LARGEST
        first, second = self.lengths.gather(1, index), self.lengths.gather(1, index + 1)
        return (first + (units - below) * (second - first)).sum()

    def _scale(self) -> Tensor:
        """As few digits as it is written with; the gradient passes as it is."""
        exact = super()._scale()
        short = few_digits(exact.detach().cpu().numpy(), DIGITS)
        return exact + (torch.from_numpy(short).to(exact) - exact).detach()

    def _grid(self, start: LayerWeights) -> Grid:
        top = np.where(start.bits > 0, LARGEST, 0).astype(np.float32)
        return Grid(start.scale, top, np.ones_like(top), np.zeros_like(top))


class Charge(nn.Module):
    """What bits cost, so that the coder spends no more than it may.

    Args:
        rate: what it may spend.
        grids: of the layers that it codes, in their order.
        device: where the price lives.
    """

    first: Tensor
    level: Tensor
    price: Tensor

    def __init__(self, rate: Rate, grids: Sequence[CodedGrid], device: torch.device) -> None:
        super().__init__()
        self._rate = rate
        self._grids = grids
        self._total = sum(grid.latent.numel() for grid in grids)
        for name in ("first", "level", "price"):
            self.register_buffer(name, torch.zeros((), device=device))

    def start(self, loss: float) -> None:
        """Set the price by the loss before training."""
        for value in (self.first, self.level, self.price):
            value.fill_(2 * math.log(2) * loss)

    def forward(self) -> Tensor:
        """What the bits of a weight cost on average."""
        return self.price * torch.stack([grid.bits() for grid in self._grids]).sum() / self._total

    @torch.no_grad()
    def follow(self) -> None:
        """Refresh the lengths, and let the price follow what is spent. Cost: coding all weights once."""
        spent = self._spent([grid.refresh() for grid in self._grids])
        excess = spent / (self._rate.bits * (1 - _MARGIN)) - 1
        self.level.mul_(math.exp(_bounded(_GAIN * excess, _MOST_CHANGE)))
        self.level.clamp_(min=_LOWEST * self.first)
        self.price.copy_(self.level * math.exp(_bounded(_STEEPNESS * excess, _STEEPEST)))

    def is_met(self) -> bool:
        """Whether the codes as they are now take no more than they may."""
        return self._spent([grid.integers() for grid in self._grids]) <= self._rate.bits

    def _spent(self, found: Sequence[LayerWeights]) -> float:
        return self._rate.spent(found)


def _bounded(value: float, most: float) -> float:
    return min(max(value, -most), most)
