"""Quantizers of the training: they start at the codes given, and have the gradients that their docstring states."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from onnx_cbq.model import Array
from onnx_cbq.quantize.grid import quantize_rows
from onnx_cbq.records import ActivationGrid, Layer, LayerWeights, Use, WeightRules
from onnx_cbq.training.grids import LatentWeight, LearnedGrid, fixed_grid

CPU = torch.device("cpu")
BITS = np.arange(9, dtype=np.int8)


def make_layer(axis: int = 0) -> tuple[Layer, Array, LayerWeights]:
    """A layer with a channel of every width, its float weight, and codes that are not all the nearest."""
    shape = (9, 4, 3) if axis == 0 else (4, 9, 3)
    use = Use("y", "x", 1, None, 1, 0, (1, 9))
    layer = Layer("layer", "Gemm", "w", shape, axis, 1, (use,), 1)
    random = np.random.default_rng(0)
    weight = random.normal(0, 1, shape).astype(np.float32)
    other = weight + random.normal(0, 0.2, shape).astype(np.float32)
    rows = quantize_rows(layer.rows(other), BITS)
    return layer, weight, LayerWeights(layer.unrows(rows.codes), rows.scale, rows.bits)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_weight_starts_as_it_was_rounded(axis: int) -> None:
    """Else the error compensation that made the codes would be lost before the first step."""
    layer, weight, start = make_layer(axis)
    grid = LatentWeight(layer, weight, start, CPU)
    found = grid.integers()
    np.testing.assert_array_equal(found.codes, start.codes)
    np.testing.assert_array_equal(found.scale, start.scale)
    expected = layer.unrows(layer.rows(start.codes) * start.scale[:, None])
    np.testing.assert_allclose(grid().detach().numpy(), expected, rtol=3e-7)


def test_a_latent_weight_is_the_float_weight_where_that_rounds_to_its_code() -> None:
    """So that gradients can move a code that was a close decision, and not one that was none."""
    layer, weight, _ = make_layer()
    nearest = quantize_rows(layer.rows(weight), BITS)
    grid = LatentWeight(layer, weight, LayerWeights(layer.unrows(nearest.codes), nearest.scale, nearest.bits), CPU)
    inside = np.abs(weight - layer.unrows(nearest.values)) < 0.29 * nearest.scale[:, None, None]
    assert inside.sum() > 30
    np.testing.assert_array_equal(grid.latent.detach().numpy()[inside], weight[inside])


def test_codes_stay_on_the_grid_of_their_width_wherever_training_takes_them() -> None:
    layer, weight, start = make_layer()
    grid = LatentWeight(layer, weight, start, CPU)
    with torch.no_grad():
        grid.latent.add_(torch.tensor(np.random.default_rng(1).normal(0, 2, weight.shape).astype(np.float32)))
        grid.log_scale.add_(0.3)
    found = grid.integers()
    for bits, before, after in zip(BITS.tolist(), layer.rows(start.codes), layer.rows(found.codes), strict=True):
        mid_rise = 0 < bits < 8 and bool((before % 2 != 0).all())
        top = (1 << bits) - 1 if mid_rise else (1 << max(bits - 1, 0)) - 1
        assert np.abs(after.astype(int)).max() <= top
        assert not mid_rise or (after % 2 != 0).all()
    np.testing.assert_allclose(found.scale, start.scale * np.exp(0.3), rtol=1e-6)


def bounded_layer(axis: int = 0, rules: WeightRules | None = None) -> tuple[Layer, Array, LayerWeights]:
    """A layer whose weights are of one size, so that most pairs of one sign meet the limit of 16-bit lanes."""
    shape = (6, 20) if axis == 0 else (20, 6)
    use = Use("y", "x", 1, None, 1, 0, (1, 6))
    layer = Layer("layer", "Gemm", "w", shape, axis, 1, (use,), 1, rules or WeightRules(top=255))
    random = np.random.default_rng(0)
    weight = (random.choice([-1, 1], shape) * random.uniform(0.9, 1, shape)).astype(np.float32)
    rows = quantize_rows(layer.rows(weight), np.full(6, 8), layer.rules, layer.lanes)
    return layer, weight, LayerWeights(layer.unrows(rows.codes), rows.scale, rows.bits)


@pytest.mark.parametrize("axis", [0, 1])
def test_codes_fit_16_bit_lanes_wherever_training_takes_them(axis: int) -> None:
    """By the sums of neighbours, counted here; a grid that does not know of lanes would go beyond."""
    layer, weight, start = bounded_layer(axis)
    grid = LatentWeight(layer, weight, start, CPU)
    np.testing.assert_array_equal(grid.integers().codes, start.codes)
    with torch.no_grad():
        grid.log_scale.sub_(0.5)
        grid.latent.add_(torch.tensor(np.random.default_rng(1).normal(0, 0.3, weight.shape).astype(np.float32)))
    rows = layer.rows(grid.integers().codes).astype(int).reshape(6, -1, 2)
    largest = np.maximum(rows.clip(min=0).sum(-1), -rows.clip(max=0).sum(-1))
    assert largest.max() == 128
    values = grid().detach().numpy()
    np.testing.assert_allclose(layer.rows(values), rows.reshape(6, -1) * grid.scale.numpy()[:, None], rtol=3e-7)


def test_gradients_stop_where_a_lane_is_full() -> None:
    layer, weight, start = bounded_layer()
    grid = LatentWeight(layer, weight, start, CPU)
    with torch.no_grad():
        grid.log_scale.sub_(0.5)
    grid().sum().backward()
    assert grid.latent.grad is not None
    passed = layer.rows(grid.latent.grad.numpy() != 0)
    signs = layer.rows(weight).reshape(6, -1, 2) > 0
    full = np.repeat(signs[..., 0] == signs[..., 1], 2, axis=-1)
    assert passed[~full].all()
    assert not passed[full].any()


def test_one_scale_of_a_layer_stays_one() -> None:
    layer, weight, start = bounded_layer(rules=WeightRules(per_tensor=True))
    grid = LatentWeight(layer, weight, start, CPU)
    (factor,) = grid.others
    assert factor.numel() == 1
    with torch.no_grad():
        factor.add_(0.1)
    assert len(np.unique(grid.integers().scale)) == 1


def test_a_power_of_two_is_not_learned() -> None:
    layer, weight, start = bounded_layer(rules=WeightRules(per_tensor=True, power_of_two=True))
    grid = LatentWeight(layer, weight, start, CPU)
    assert not grid.others
    assert (np.frexp(grid.integers().scale)[0] == 0.5).all()


def test_gradients_of_a_weight_pass_within_the_grid_and_stop_beyond() -> None:
    """Against the formulas, computed here from codes and units."""
    layer, weight, start = make_layer()
    grid = LatentWeight(layer, weight, start, CPU)
    with torch.no_grad():
        grid.latent.mul_(1.5)
    slope = torch.tensor(np.random.default_rng(2).normal(0, 1, weight.shape).astype(np.float32))
    (grid() * slope).sum().backward()
    codes = grid.integers().codes.astype(np.float64)
    scale = start.scale.astype(np.float64)[:, None, None]
    units = grid.latent.detach().numpy() / scale
    top = grid.top.numpy()
    inside = np.abs(units) < top
    assert grid.latent.grad is not None
    assert grid.log_scale.grad is not None
    np.testing.assert_allclose(grid.latent.grad.numpy(), np.where(inside, slope.numpy(), 0), rtol=1e-5, atol=1e-6)
    per_scale = (slope.numpy() * np.where(inside, codes - units, codes) * scale).sum(axis=(1, 2))
    np.testing.assert_allclose(grid.log_scale.grad.numpy().reshape(-1), per_scale, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("zero_point", [0, 3])
def test_activations_lie_on_their_grid(zero_point: int) -> None:
    """As QuantizeLinear and DequantizeLinear put them there."""
    grid = ActivationGrid(0.25, zero_point, 4)
    values = torch.tensor(np.random.default_rng(3).normal(0, 2, 500).astype(np.float32))
    codes = np.clip(np.rint(values.numpy() / 0.25) + zero_point, 0, 15)
    expected = (codes - zero_point) * 0.25
    np.testing.assert_array_equal(fixed_grid(grid)(values).numpy(), expected)
    np.testing.assert_array_equal(LearnedGrid(grid, CPU)(values).detach().numpy(), expected)
    assert LearnedGrid(grid, CPU).grid() == grid


def test_gradients_of_an_activation_follow_the_formulas() -> None:
    grid = ActivationGrid(0.25, 3, 4)
    values = torch.tensor(np.random.default_rng(4).normal(0, 2, 500).astype(np.float32), requires_grad=True)
    slope = np.random.default_rng(5).normal(0, 1, 500).astype(np.float32)
    learned = LearnedGrid(grid, CPU)
    (learned(values) * torch.tensor(slope)).sum().backward()
    units = values.detach().numpy().astype(np.float64) / 0.25
    inside = (units > -3.5) & (units < 12.5)
    codes = np.clip(np.rint(units), -3, 12)
    assert values.grad is not None
    assert learned.log_scale.grad is not None
    np.testing.assert_array_equal(values.grad.numpy(), np.where(inside, slope, 0))
    expected = 0.25 * (slope * np.where(inside, codes - units, codes)).sum()
    np.testing.assert_allclose(float(learned.log_scale.grad), expected, rtol=1e-4)
