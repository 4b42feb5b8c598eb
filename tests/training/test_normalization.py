"""Batch normalization against float64 by the formula, with autograd's gradient: whichever way it is computed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from onnx_cbq.training.normalization import Normalization

# Channels that fill vectors or not, positions that go side by side or not, and tensors with nothing but channels.
SHAPES = ((8, 19, 6, 4), (5, 3, 7, 3), (4, 16, 5, 5), (9, 20), (6, 7, 11), (3, 300, 2, 2))
LAYOUTS = (torch.channels_last, torch.contiguous_format)


def values(shape: tuple[int, ...], seed: int, layout: torch.memory_format, dtype: torch.dtype) -> Tensor:
    """Channels of different means and deviations, the last one the same everywhere."""
    found = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    steps = torch.linspace(-2, 3, shape[1]).view(-1, *[1] * (len(shape) - 2))
    found = found * (1 + steps.abs()) + steps
    found[:, -1] = 1.5
    return found.to(dtype).contiguous(memory_format=layout if len(shape) == 4 else torch.contiguous_format)


def make(channels: int) -> Normalization:
    """With scales of both signs."""
    norm = Normalization(torch.zeros(channels), torch.ones(channels))
    with torch.no_grad():
        norm.scale.copy_(torch.linspace(-1.5, 2, channels))
        norm.shift.copy_(torch.linspace(1, -1, channels))
    return norm


def exact(norm: Normalization, z: Tensor, gradient: Tensor) -> list[Tensor]:
    """What is given, and gradients by the input, scale and shift, in float64."""
    leaves = [value.detach().double().requires_grad_() for value in (z, norm.scale, norm.shift)]
    wide, scale, shift = leaves
    rows = wide.movedim(1, -1)
    axes = list(range(rows.dim() - 1))
    centred = rows - rows.mean(dim=axes)
    y = (scale * centred / (centred.square().mean(dim=axes) + 1e-5).sqrt() + shift).movedim(-1, 1)
    return [y.detach(), *torch.autograd.grad(y, leaves, gradient.double())]


@pytest.mark.parametrize("layout", LAYOUTS, ids=["channels last", "channels first"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_normalizes_and_differentiates_as_the_formula_does(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    z = values(shape, 0, layout, torch.float32).requires_grad_()
    gradient = values(shape, 1, layout, torch.float32)
    norm = make(shape[1])
    y = norm(z)
    narrow = shape[1] % 16 != 0 and (layout is torch.channels_last or len(shape) == 2)
    assert ("_Rows" in str(y.grad_fn)) == (narrow and len(shape) != 3), "the way that is measured to be fast is taken"
    found = [y, *torch.autograd.grad(y, [z, norm.scale, norm.shift], gradient)]
    for one, expected in zip(found, exact(norm, z, gradient), strict=True):
        # Of a channel that stays the same, rounding is divided by sqrt(eps).
        torch.testing.assert_close(one.double(), expected, rtol=1e-4, atol=2e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_keeps_the_statistics_that_torch_keeps(shape: tuple[int, ...]) -> None:
    """Of the variance the one without bias, as it is used once training is over."""
    z = values(shape, 2, torch.channels_last, torch.float32)
    norm, mean, variance = make(shape[1]), torch.zeros(shape[1]), torch.ones(shape[1])
    for factor in (1.0, 3.0):
        norm(factor * z)
        functional.batch_norm(factor * z, mean, variance, training=True)
    torch.testing.assert_close(norm.mean, mean)
    torch.testing.assert_close(norm.variance, variance)


def test_bfloat16_loses_no_mean_that_is_far_larger_than_the_deviation() -> None:
    """Guards against a mean that is rounded where it is subtracted: near 100 values of bfloat16 are 1/2 apart.

    The gradient depends on the values, so that all of its terms count.
    """
    shape = (16, 19, 8, 8)
    z = (100.25 + torch.randn(shape, generator=torch.Generator().manual_seed(3))).to(torch.bfloat16)
    z = z.contiguous(memory_format=torch.channels_last).requires_grad_()
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    gradient = (noise + (z.detach().float() - 100) + 1).to(torch.bfloat16)
    norm = make(shape[1])
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(z)
    assert "_Rows" in str(y.grad_fn)
    mean = z.detach().double().mean(dim=(0, 2, 3))
    torch.testing.assert_close(norm.mean.double(), 0.1 * mean, rtol=1e-4, atol=0)
    found = [y, *torch.autograd.grad(y, [z, norm.scale, norm.shift], gradient)]
    assert found[0].dtype == found[1].dtype == torch.bfloat16
    # A few roundings to 8 bits, each of a term that is no larger than the largest value.
    for one, expected in zip(found, exact(norm, z, gradient), strict=True):
        torch.testing.assert_close(one.double(), expected, rtol=0, atol=2**-7 * float(expected.abs().max()))


def test_a_net_in_use_takes_the_statistics_that_were_kept() -> None:
    norm = make(19).eval()
    z = values((4, 19, 3, 3), 5, torch.channels_last, torch.float32)
    expected = norm.scale.view(-1, 1, 1) * z / (1 + 1e-5) ** 0.5 + norm.shift.view(-1, 1, 1)
    torch.testing.assert_close(norm(z), expected)
