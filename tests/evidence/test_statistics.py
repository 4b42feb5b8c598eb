"""Histograms over the samples of a draw."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_cbq.calibration import CalibrationSet
from onnx_cbq.calibration.draw import Draw
from onnx_cbq.errors import ModelError
from onnx_cbq.evidence.statistics import collect_moments
from onnx_cbq.evidence.tables import run_of
from onnx_cbq.evidence.tensors import collect_histograms, collect_ranges
from onnx_cbq.evidence.workload import prepare
from onnx_cbq.graph.load import load
from onnx_cbq.model import Array
from onnx_cbq.quantize.activations import Histogram
from onnx_cbq.quantize.settings import RoundingConfig
from tests.graphs import make_model, node

X = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)
DRAWN = Draw((np.array([3, 1, 19]), np.array([7, 8, 2, 11])))


def histogram(values: Array) -> Histogram:
    return Histogram.empty().add(values)


@pytest.mark.parametrize("batch", ["N", 1, 3], ids=str)
@pytest.mark.parametrize("size", [1, 3, 100])
def test_every_drawn_sample_is_counted_in_every_tensor(size: int, batch: int | str) -> None:
    """Inputs and inner tensors, at any batch size. A fixed batch repeats samples to fill up: no new extremes come."""
    proto = make_model([node("Relu", "x", "a"), node("Exp", "a")], {"x": [batch, 4]}, ["y"])
    model = load(proto)
    samples = CalibrationSet.from_arrays(X, np.arange(20) % 2).for_model(model.inputs)
    steps: list[tuple[str, int, int]] = []
    found = collect_histograms(model, ["x", "a"], samples, DRAWN, size, lambda *step: steps.append(step))
    seen = X[DRAWN.indices]
    for name, values in (("x", seen), ("a", np.maximum(seen, 0))):
        expected = histogram(values)
        assert (found[name].low, found[name].high) == (expected.low, expected.high)
        if batch != 3:
            np.testing.assert_array_equal(found[name].counts, expected.counts)
    assert steps[-1] == ("activations", 7, 7)


@pytest.mark.parametrize(("axis", "size"), [(1, 2), (2, 100)])
def test_ranges_are_the_largest_magnitudes_of_each_channel(axis: int, size: int) -> None:
    x = np.random.default_rng(1).standard_normal((20, 3, 5)).astype(np.float32)
    model = load(make_model([node("Neg", "x", "a"), node("Exp", "a")], {"x": ["N", 3, 5]}, ["y"]))
    samples = CalibrationSet.from_arrays(x, np.arange(20) % 2).for_model(model.inputs)
    found = collect_ranges(model, {"x": 1, "a": axis}, samples, DRAWN.indices, size)
    seen = np.abs(x[DRAWN.indices])
    np.testing.assert_array_equal(found["x"], seen.max(axis=(0, 2)))
    np.testing.assert_array_equal(found["a"], seen.max(axis=(0, 3 - axis)))


def test_inputs_alone_can_be_measured() -> None:
    """A model of a single layer has no inner tensor to ask for."""
    model = load(make_model([node("Relu", "x")], {"x": ["N", 4]}, ["y"]))
    samples = CalibrationSet.from_arrays(X, np.arange(20) % 2).for_model(model.inputs)
    found = collect_histograms(model, ["x"], samples, DRAWN, 2)
    np.testing.assert_array_equal(found["x"].counts, histogram(X[DRAWN.indices]).counts)


def test_a_tensor_that_overflows_is_named() -> None:
    """Once a traceback out of the histogram; only some samples overflow, so no check of the model alone finds it."""
    model = load(
        make_model([node("Mul", "x x", "a"), node("Mul", "a a", "b"), node("Relu", "b")], {"x": ["N", 4]}, ["y"])
    )
    x = X.copy()
    x[7, 2] = 1e12
    samples = CalibrationSet.from_arrays(x, np.arange(20) % 2).for_model(model.inputs)
    with pytest.raises(ModelError, match="tensor 'b' holds NaN or infinity on the calibration samples"):
        collect_histograms(model, ["x", "a", "b"], samples, DRAWN, 2)
    assert collect_histograms(model, ["x", "a"], samples, DRAWN, 2)["a"].high == np.float32(1e24)


@pytest.mark.parametrize(
    ("largest", "message"),
    [(1e39, "holds NaN or infinity"), (1e25, "tensor 'a', the input of layer 'w', holds values too large")],
)
def test_an_input_whose_square_overflows_is_named(largest: float, message: str) -> None:
    weights = {"w": np.ones((4, 2), np.float32), "f": np.array(largest / 1e20, np.float32)}
    proto = make_model([node("Mul", "x f", "a"), node("MatMul", "a w")], {"x": ["N", 4]}, ["y"], weights)
    x = X.copy()
    x[7, 2] = 1e20
    work = prepare(proto, CalibrationSet.from_arrays(x, np.arange(20) % 2))
    run = run_of(work, DRAWN, RoundingConfig(), np.ones(2))
    with pytest.raises(ModelError, match=message):
        collect_moments(work.model, None, work.layers.layers, run)
