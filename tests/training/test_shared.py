"""Shared values: weights start as they were rounded, stay with their value, and are written as they were trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from onnx_cbq.jobs.settings import QuantizeConfig
from onnx_cbq.quantize.codebook import LARGEST
from onnx_cbq.quantize.grid import Channels
from onnx_cbq.records import Layer, LayerWeights, Shared, Use
from onnx_cbq.training.run import run_training
from onnx_cbq.training.shared import SharedWeight, Values
from tests.training.digits import QUICK, make_solution, make_task

CPU = torch.device("cpu")
TABLE = np.array([-90, -20, 0, 30, 127], np.int8)


def make_weight(axis: int = 0) -> tuple[Layer, LayerWeights, Values, SharedWeight]:
    shape = (4, 10) if axis == 0 else (10, 4)
    layer = Layer("layer", "Gemm", "w", shape, axis, 1, (Use("y", "x", 1, None, 1, 0, (1, 4)),), 1)
    rows = TABLE[np.random.default_rng(0).integers(0, 5, (4, 10))]
    found = Channels(rows, np.full(4, 0.01, np.float32), np.full(4, 3, np.int8), Shared(TABLE))
    start = LayerWeights(layer.unrows(found.codes), found.scale, found.bits, Shared(TABLE))
    values = Values(TABLE * np.float32(0.01), CPU)
    return layer, start, values, SharedWeight(layer, start, values, CPU)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_weight_starts_as_it_was_rounded(axis: int) -> None:
    layer, start, _, weight = make_weight(axis)
    expected = layer.unrows(layer.rows(start.codes) * start.scale[:, None])
    np.testing.assert_allclose(weight().detach().numpy(), expected, rtol=1e-6)
    found = weight.integers()
    np.testing.assert_array_equal(found.codes, start.codes)
    np.testing.assert_allclose(found.scale, start.scale, rtol=1e-6)
    np.testing.assert_array_equal(found.bits, start.bits)
    assert isinstance(found.grid, Shared)
    np.testing.assert_array_equal(found.grid.table, TABLE)


def test_a_value_has_the_gradients_of_all_weights_that_take_it() -> None:
    """Section 3.3 of the paper, summed here over each cluster."""
    _, start, values, weight = make_weight()
    slope = np.random.default_rng(1).normal(0, 1, (4, 10)).astype(np.float32)
    (weight() * torch.tensor(slope)).sum().backward()
    assert values.values.grad is not None
    expected = [slope[start.codes == code].sum() for code in TABLE]
    np.testing.assert_allclose(values.values.grad.numpy(), expected, rtol=1e-5)


def test_values_are_written_as_the_whole_numbers_that_they_were_trained_as() -> None:
    layer, _, values, weight = make_weight()
    with torch.no_grad():
        values.values.add_(torch.tensor([0.013, -0.007, 0.002, 0.0449, 0.06]))
    found = weight.integers()
    written = layer.unrows(layer.rows(found.codes) * found.scale[:, None])
    np.testing.assert_allclose(weight().detach().numpy(), written, rtol=1e-5)
    assert np.abs(found.codes).max() == LARGEST


def test_values_that_meet_become_one() -> None:
    """A table with the same number twice would be refused when it is looked up."""
    _, _, values, weight = make_weight()
    with torch.no_grad():
        values.values[1] = values.values[2]
    found = weight.integers()
    assert isinstance(found.grid, Shared)
    assert found.grid.table.tolist() == sorted(set(found.grid.table.tolist()))
    assert len(found.grid.table) == 4
    np.testing.assert_array_equal(np.unique(found.codes), found.grid.table)


@pytest.mark.parametrize("scope", ["layer", "net"])
def test_training_lowers_the_loss_and_leaves_each_weight_with_its_value(scope: str) -> None:
    """Values of the whole net stay the same in all layers."""
    config = QuantizeConfig(
        bits=2,
        samples=100,
        codebook="kmeans",
        codebook_scope=scope,
        storage="packed",
        activation_bits=4,
        rounding="nearest",
    )
    task, start = make_task(*make_solution(config))
    found, course = run_training(task, start, QUICK)
    assert course.best.loss < 0.95 * course.start.loss
    tables = set()
    for name, before in start.rounded.weights.items():
        after = found.rounded.weights[name]
        assert isinstance(before.grid, Shared)
        assert isinstance(after.grid, Shared)
        tables.add(after.grid.table.tobytes() + after.scale[:1].tobytes())
        np.testing.assert_array_equal(
            np.searchsorted(before.grid.table, before.codes), np.searchsorted(after.grid.table, after.codes)
        )
    assert len(tables) == (1 if scope == "net" else len(start.rounded.weights))
