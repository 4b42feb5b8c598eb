"""Quantizers that gradients pass through: the grids of weights, a scale per channel, and those of activations.

Both round u = x / s to a code q and give s q. For the gradient, rounding is the identity within the grid's range and
constant beyond it (straight-through; Bengio et al., arXiv 1308.3432), so that

    d(s q) / dx = 1 within, 0 beyond        d(s q) / ds = q - u within, q beyond

which are the gradients of learned step sizes (Esser et al., ICLR 2020, arXiv 1902.08153).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from onnx_cbq.learned.latent import IN_CELL
from onnx_cbq.model import Array
from onnx_cbq.quantize.grid import Grid, is_mid_rise
from onnx_cbq.records import ActivationGrid, Lanes, Layer, LayerWeights


class LatentWeight(nn.Module):
    """A layer's weight as latent weights on grids of fixed widths; gradients move the latent weights and the scales.

    A latent weight starts in the cell of its code, as near to the float weight as the cell allows: the net starts as it
    was rounded, and knows which codes are nearly another. What the target demands holds in every forward pass: codes
    that meet in 16-bit lanes fit them, and scales that are powers of two or of a whole layer stay such.

    Args:
        layer: whose weight it is.
        weight: the float weight, weight_shape.
        start: codes, scales and widths to start from.
        device: where the tensors live.
    """

    top: Tensor
    stride: Tensor
    offset: Tensor
    first_scale: Tensor

    def __init__(self, layer: Layer, weight: Array, start: LayerWeights, device: torch.device) -> None:
        super().__init__()
        self._layer = layer
        self._bits = start.bits
        grid = self._grid(start)
        shape = [-1 if axis == layer.weight_axis else 1 for axis in range(len(layer.weight_shape))]
        fields = {"top": grid.top, "stride": grid.stride, "offset": grid.offset, "first_scale": grid.scale}
        for name, values in fields.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32, device=device).reshape(shape))
        codes = torch.tensor(start.codes, dtype=torch.float32, device=device)
        self.latent = nn.Parameter(self._in_cells(torch.tensor(weight, device=device), codes))
        rules = layer.rules
        factors = torch.zeros(1 if rules.per_tensor else self.first_scale.shape, device=device)
        self.log_scale = nn.Parameter(factors, requires_grad=not rules.power_of_two)
        lanes = layer.lanes
        bounded = lanes is not None and bool(2 * self.top.max() > lanes.limit)
        self._lanes = LaneBounds(layer, lanes, device) if lanes is not None and bounded else None

    @property
    def weights(self) -> tuple[nn.Parameter, float]:
        """What makes the weights, and the mean distance of neighbouring levels, which rates are relative to."""
        used = self.top > 0
        return self.latent, float((self.first_scale * self.stride)[used].mean()) if bool(used.any()) else 1.0

    @property
    def others(self) -> tuple[nn.Parameter, ...]:
        """What else is learned."""
        return (self.log_scale,) if self.log_scale.requires_grad else ()

    def forward(self) -> Tensor:
        """The quantized weight, float32 weight_shape."""
        scale = self._scale()
        inside, codes = self._rounded(scale)
        return (inside + (codes - inside).detach()) * scale

    @torch.no_grad()
    def integers(self) -> LayerWeights:
        """Codes and scales as they are now; the widths are those of the start."""
        scale = self._scale()
        codes = self._rounded(scale)[1]
        return LayerWeights(codes.cpu().numpy().astype(np.int8), scale.cpu().numpy().reshape(-1), self._bits)

    @property
    def scale(self) -> Tensor:
        """The scale of each channel, float32 [channels]; no gradients flow from it."""
        return self._scale().detach().reshape(-1)

    def _grid(self, start: LayerWeights) -> Grid:
        return Grid.of(start.scale, start.bits, is_mid_rise(self._layer.rows(start.codes), start.bits))

    def _scale(self) -> Tensor:
        return self.first_scale * self.log_scale.exp()

    def _rounded(self, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Latent weights in units of the scale, within their bounds, and the codes that they are rounded to."""
        units = self.latent / scale
        codes = self._codes(units.clamp(-self.top, self.top))
        low, high = (-self.top, self.top) if self._lanes is None else self._lanes(codes.detach(), self.top)
        return units.clamp(low, high), codes.clamp(low, high)

    def _codes(self, units: Tensor) -> Tensor:
        codes = ((units - self.offset) / self.stride).round() * self.stride + self.offset
        return codes.clamp(-self.top, self.top)

    def _in_cells(self, weight: Tensor, codes: Tensor) -> Tensor:
        level, reach = codes * self.first_scale, IN_CELL * self.stride * self.first_scale
        return weight.clamp(level - reach, level + reach)


class LaneBounds(nn.Module):
    """Bounds that keep codes which meet in 16-bit lanes from overflowing there, as `Lanes.box` has them.

    Args:
        layer: whose weight it is.
        lanes: those of its rows.
        device: where the tensors live.
    """

    partners: Tensor
    alone: Tensor

    def __init__(self, layer: Layer, lanes: Lanes, device: torch.device) -> None:
        super().__init__()
        self._limit = lanes.limit
        places = layer.rows(np.arange(layer.size).reshape(layer.weight_shape))
        kinds = [layer.unrows(np.where(kind >= 0, places[:, np.maximum(kind, 0)], -1)) for kind in lanes.partners]
        found = torch.tensor(np.stack(kinds), device=device)
        self.register_buffer("partners", found.clamp_min(0))
        self.register_buffer("alone", found < 0)

    def forward(self, codes: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
        """The lowest and the highest code for each of `codes`; where `top` always fits, that alone is the bound."""
        free = (2 * top <= self._limit).expand_as(codes)
        low, high = -top.expand_as(codes), top.expand_as(codes)
        for partner, alone in zip(self.partners, self.alone, strict=True):
            middle, half = (codes - codes.flatten()[partner]) / 2, self._limit / 2
            unbound = free | alone
            low = torch.where(unbound, low, low.maximum((middle - half).ceil()))
            high = torch.where(unbound, high, high.minimum((middle + half).floor()))
        return low, high


class LearnedGrid(nn.Module):
    """An activation on its grid, whose scale is learned; the zero point stays."""

    def __init__(self, grid: ActivationGrid, device: torch.device) -> None:
        super().__init__()
        self._grid = grid
        self.log_scale = nn.Parameter(torch.zeros((), device=device))

    def forward(self, values: Tensor) -> Tensor:
        """The values on the grid, same shape."""
        scale = self._grid.scale * self.log_scale.exp()
        found: Tensor = _Learned.apply(  # type: ignore[no-untyped-call]
            values, scale, self._grid.bottom - self._grid.zero_point, self._grid.top - self._grid.zero_point
        )
        return found

    @property
    def scale(self) -> float:
        """The scale as it is now."""
        return float(self._grid.scale * self.log_scale.detach().exp())

    @torch.no_grad()
    def grid(self) -> ActivationGrid:
        """The grid as it is now."""
        return replace(self._grid, scale=self.scale)


def rounded_bias(bias: Tensor, scale: Tensor) -> Tensor:
    """A bias in whole multiples of its scale, both [channels], if that is above 0; the gradient passes as it is."""
    rounded = torch.where(scale > 0, (bias / scale).round() * scale, bias)
    return bias + (rounded - bias).detach()


def fixed_grid(grid: ActivationGrid) -> Callable[[Tensor], Tensor]:
    """An activation on a grid that stays, so fine that the gradient needs not know of it."""

    def quantize(values: Tensor) -> Tensor:
        found: Tensor = _Fixed.apply(  # type: ignore[no-untyped-call]
            values, grid.scale, grid.bottom - grid.zero_point, grid.top - grid.zero_point
        )
        return found

    return quantize


class _Fixed(torch.autograd.Function):
    """s clamp(round(x / s)); the gradient passes as it is. Four passes forward, none backward."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: float, low: int, high: int) -> Tensor:  # noqa: ARG004
        return (values / scale).round_().clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # noqa: ARG004
        return gradients[0], None, None, None


class _Learned(torch.autograd.Function):
    """The same with the gradients above, for x and s; within is what rounds to a code without being clamped.

    The sum of g (q - u) within and g q beyond is that of g q less that of dx u. Four passes forward, five backward.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
        units = values / scale.to(values.dtype)
        codes = units.clamp(low, high).round_()
        ctx.save_for_backward(units, codes)
        ctx.ends = low, high
        return codes * scale.to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (units, codes), (low, high) = ctx.saved_tensors, ctx.ends
        passed = torch.ops.aten.hardtanh_backward(gradients[0], units, low - 0.5, high + 0.5)
        each = (gradients[0] * codes).addcmul_(passed, units, value=-1)
        # By samples first: within one, sums are made in float32 anyway, and the tensor need not be copied for it.
        slope = each.sum(dim=tuple(range(1, each.dim()))) if each.dim() > 1 else each
        return passed, slope.sum(dtype=torch.float32), None, None
