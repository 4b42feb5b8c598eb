"""Activations on grids whose scales are learned: values are the grid's, slopes those of learned step sizes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from onnx import ModelProto

from onnx_cbq import CalibrationSet
from onnx_cbq.evidence.workload import Workload, aimed_at, prepare
from onnx_cbq.gradient.backward import attach, build_backward
from onnx_cbq.gradient.rules import RULES
from onnx_cbq.learned.grids import learned_scales, on_grids
from onnx_cbq.learned.student import as_inputs
from onnx_cbq.model import Array
from onnx_cbq.records import ActivationGrid
from onnx_cbq.runtime import Session
from onnx_cbq.targets import find_target
from tests.graphs import make_model, node

GRIDS = [ActivationGrid(0.25, 0, 2), ActivationGrid(0.25, 3, 3), ActivationGrid(0.3, -2, 3, signed=True)]


def net() -> ModelProto:
    """Two products with a Tanh between them, which is what gets a grid."""
    random = np.random.default_rng(2)
    weights = {"w": random.normal(size=(6, 5)), "v": random.normal(size=(5, 3))}
    nodes = [node("MatMul", "x w", "h"), node("Tanh", "h", "t"), node("MatMul", "t v", "y")]
    return make_model(
        nodes, {"x": ["N", 6]}, ["y"], {name: value.astype(np.float32) for name, value in weights.items()}
    )


def workload() -> Workload:
    random = np.random.default_rng(4)
    data = CalibrationSet.from_arrays(random.normal(size=(30, 6)).astype(np.float32), np.arange(30) % 3)
    return aimed_at(prepare(net(), data), find_target("cpu"), 3)


def levels(values: Array, grid: ActivationGrid) -> tuple[Array, Array]:
    """By definition: the values on a grid, and their slopes by its scale."""
    low, high = grid.bottom - grid.zero_point, grid.top - grid.zero_point
    units = values / grid.scale
    codes = np.clip(np.rint(units), low, high)
    return codes * grid.scale, np.where(units <= low, low, np.where(units >= high, high, codes - units))


@pytest.mark.parametrize("grid", GRIDS)
def test_values_and_slopes_are_those_of_the_definition(grid: ActivationGrid) -> None:
    """Within a grid's range, and beyond both of its ends."""
    work, tensor = workload(), "t"
    gridded = on_grids(work.model, {tensor: grid}, work)
    ((constant, one),) = gridded.scales.items()
    assert one.tensors == (tensor,)
    shapes = work.example.shapes(gridded.model)
    backward = build_backward(gridded.model, shapes, "y", [constant], rules={**RULES, **gridded.rules})
    outputs = ["y", gridded.stand_ins[tensor], "t", backward.gradients[constant]]
    session = Session(as_inputs(attach(gridded.model, backward, "y", shapes, outputs), [constant]))
    random = np.random.default_rng(6)
    feeds = {"x": random.normal(size=(40, 6)).astype(np.float32), backward.seed: np.ones((40, 3), np.float32)}
    found = session.run({**feeds, constant: one.value})
    values, slopes = levels(found["t"], grid)
    assert len(np.unique(values)) > 3
    np.testing.assert_allclose(found[gridded.stand_ins[tensor]], values, atol=1e-6)
    expected = (slopes * work.model.weight("v").sum(axis=1)).sum()
    # Sums of 200 numbers around 1 in float32.
    np.testing.assert_allclose(found[backward.gradients[constant]], expected, rtol=1e-4, atol=1e-4)


def test_scales_that_are_no_free_numbers_stay() -> None:
    """Those of 8 bits make no difference, and powers of two are none any more."""
    work, coarse = workload(), ActivationGrid(0.5, 0, 2)
    assert [one.tensors for one in learned_scales(work, {"a": coarse, "b": replace(coarse, bits=8)})] == [("a",)]
    target = replace(work.target, activation=replace(work.target.activation, power_of_two=True))
    assert learned_scales(replace(work, target=target), {"a": coarse}) == []


def test_grids_that_have_to_be_alike_have_one_scale() -> None:
    """And what shares a group, but not its grid, has its own."""
    work, coarse = workload(), ActivationGrid(0.5, 0, 2)
    placement = replace(work.placement, alike=(frozenset("abc"),))
    grids = {"a": coarse, "b": coarse, "c": replace(coarse, scale=0.7), "d": coarse}
    found = learned_scales(replace(work, placement=placement), grids)
    assert [one.tensors for one in found] == [("a", "b"), ("c",), ("d",)]
    moved = replace(found[0], log_scale=np.asarray(np.log(3), np.float32))
    assert moved.grids().keys() == {"a", "b"}
    assert moved.grids()["a"].scale == pytest.approx(1.5)
