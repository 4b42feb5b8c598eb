"""Batch normalization of what a layer gives, which begins as no change at all.

torch's own takes long where channels are innermost and fill no vectors (19 channels: 5 times as long as 16), since its
kernels go through the channels of one position at a time. Several positions side by side are rows of a matrix,

    [samples, channels, ...] with channels innermost  ->  [rows, k channels],

whose columns are summed, scaled and shifted by full vectors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from onnx_cbq.model import Array

_EPSILON = 1e-5
_MOMENTUM = 0.1
# Channels that fill vectors; how wide rows are at least, if so many positions can be had.
_FULL, _WIDE = 16, 1024


class Normalization(nn.Module):
    """Batch normalization of a layer's outputs [samples, channels, ...], which begins as no change at all.

    y = scale (z - mean) / sqrt(variance + eps) + shift, with mean and variance of the batch while training, and of the
    last batches otherwise.

    In bfloat16, slope and shift are rounded to it where channels fill no vectors.

    Cost: 6 passes over the outputs, and 5 for the gradient.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, mean: Tensor, variance: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.clone())
        self.register_buffer("variance", variance.clone())
        self.scale = nn.Parameter((variance + _EPSILON).sqrt())
        self.shift = nn.Parameter(mean.clone())
        self.damping: Tensor | float = 1.0

    def forward(self, z: Tensor) -> Tensor:
        """Normalize; keeps the statistics of the batch while training."""
        scale, shift = (scaled_gradient(value, self.damping) for value in (self.scale, self.shift))
        if not (self.training and _is_narrow(z)):
            return functional.batch_norm(z, self.mean, self.variance, scale, shift, self.training, _MOMENTUM, _EPSILON)
        found: tuple[Tensor, Tensor, Tensor] = _Rows.apply(z, scale, shift)  # type: ignore[no-untyped-call]
        y, mean, variance = found
        count = z.numel() // z.shape[1]
        self.mean.lerp_(mean, _MOMENTUM)
        self.variance.lerp_(variance * (count / (count - 1)), _MOMENTUM)
        return y

    def folded(self, rows: Array, bias: Array) -> tuple[Array, Array]:
        """A weight [channels, inputs] and a bias [channels] that give the same without it."""
        mean, variance, scale, shift = (
            value.detach().cpu().numpy().astype(np.float64)
            for value in (self.mean, self.variance, self.scale, self.shift)
        )
        factor = scale / np.sqrt(variance + _EPSILON)
        folded = rows * factor[:, None], (bias - mean) * factor + shift
        return folded[0].astype(np.float32), folded[1].astype(np.float32)


def scaled_gradient(value: Tensor, factor: Tensor | float) -> Tensor:
    """`value`, with a gradient that is multiplied by `factor`."""
    still = value.detach()
    return still + (value - still) * factor


def _is_narrow(z: Tensor) -> bool:
    """Whether channels are innermost and fill no vectors; torch refuses one value for each.

    Code that is made for the net has loops of its own.
    """
    if torch.compiler.is_compiling():
        return False
    several = z.numel() > z.shape[1]
    return z.device.type == "cpu" and several and z.shape[1] % _FULL != 0 and z.movedim(1, -1).is_contiguous()


class _Rows(torch.autograd.Function):
    """What is normalized by its own mean and (biased) variance, and these, which have no gradient."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = _rows(z)
        rounded = _mean(rows, scale).to(z.dtype)
        centred = rows - _tiled(rounded, rows)
        # What rounding to bfloat16 left of the mean.
        rest = _mean(centred, scale)
        variance = (_mean(centred.square(), scale) - rest.square()).clamp_min(0)
        inverse = (variance + _EPSILON).rsqrt()
        slope = scale * inverse
        y = torch.addcmul(_tiled(shift - slope * rest, rows), centred, _tiled(slope, rows))
        mean = rounded.float() + rest
        ctx.save_for_backward(centred, rest, inverse, scale)
        ctx.mark_non_differentiable(mean, variance)
        return _unrows(y, z.shape), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """With x = (z - mean) inverse: dz = scale inverse (dy - mean(dy) - x mean(dy x))."""
        centred, rest, inverse, scale = ctx.saved_tensors
        rows = _rows(gradients[0])
        count = centred.numel() // len(scale)
        mean = _mean(rows, scale)
        product = (_mean(rows * centred, scale) - mean * rest) * inverse
        slope = scale * inverse
        back = -slope * inverse * product
        dz = torch.addcmul(_tiled(-slope * mean - back * rest, rows), rows, _tiled(slope, rows))
        dz.addcmul_(centred, _tiled(back, rows))
        return _unrows(dz, gradients[0].shape), product * count, mean * count


def _rows(value: Tensor) -> Tensor:
    """[samples, channels, ...] as [rows, k channels]; a copy only where channels are not innermost."""
    channels = value.shape[1]
    positions = value.numel() // channels
    side_by_side = 1
    while side_by_side * channels < _WIDE and positions % (2 * side_by_side) == 0:
        side_by_side *= 2
    return value.movedim(1, -1).reshape(positions // side_by_side, side_by_side * channels)


def _unrows(rows: Tensor, shape: torch.Size) -> Tensor:
    return rows.view(shape[0], *shape[2:], shape[1]).movedim(-1, 1)


def _mean(rows: Tensor, channels: Tensor) -> Tensor:
    """[channels], in float32; columns are added up in float32 and rounded once."""
    return rows.sum(dim=0).float().view(-1, len(channels)).sum(dim=0) / (rows.numel() // len(channels))


def _tiled(value: Tensor, rows: Tensor) -> Tensor:
    """[channels] as a row."""
    return value.to(rows.dtype).repeat(rows.shape[1] // len(value))
