"""What the page says of layers: histograms, what lies beyond a grid, noise, and needs, against plain numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest

from onnx_cbq import QuantizeConfig
from onnx_cbq.calibration import CalibrationSet
from onnx_cbq.evidence import class_scores, width_tables
from onnx_cbq.jobs.details import BINS, TOP_CLASSES, LayerDetail, describe
from onnx_cbq.model import Array
from onnx_cbq.records import ActivationGrid
from onnx_cbq.stages.scene import Scene
from onnx_cbq.stages.solution import Solution
from tests.conftest import DIGITS_CARD, DIGITS_MODEL
from tests.graphs import make_model, node
from tests.scenes import gather, solved

CONFIG = QuantizeConfig(bits=3, rounding="nearest", equalize=False)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return gather(DIGITS_MODEL, DIGITS_CARD, CONFIG)[0]


@pytest.fixture(scope="module")
def solution(scene: Scene) -> Solution:
    return solved(scene, CONFIG)


@pytest.fixture(scope="module")
def details(scene: Scene, solution: Solution) -> dict[str, LayerDetail]:
    return {detail.name: detail for detail in describe(scene, solution)}


def test_weights_are_those_before_and_after(scene: Scene, solution: Solution, details: dict[str, LayerDetail]) -> None:
    assert list(details) == [layer.name for layer in scene.work.layers]
    for layer in scene.work.layers:
        found = details[layer.name]
        plain = scene.work.model.weight(layer.weight)
        rounded = solution.rounded.weights[layer.name].values(layer)
        assert (found.weights, found.macs, found.operator) == (plain.size, layer.macs, layer.operator)
        for bars, values in ((found.before, plain), (found.after, rounded)):
            assert -bars.low == bars.high == max(np.abs(plain).max(), np.abs(rounded).max())
            edges = np.linspace(bars.low, bars.high, BINS + 1)
            assert sum(bars.counts) == values.size
            inner = np.searchsorted(edges, values.reshape(-1), side="right") - 1
            expected = np.bincount(np.clip(inner, 0, BINS - 1), minlength=BINS)
            # Values at an edge may fall to either side.
            assert np.abs(np.array(bars.counts) - expected).sum() <= 0.01 * values.size


def test_large_weights_are_sampled(scene: Scene, solution: Solution, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnx_cbq.jobs.details._WEIGHTS", 1_000)
    for found, layer in zip(describe(scene, solution), scene.work.layers, strict=True):
        count = sum(found.before.counts)
        assert count == sum(found.after.counts)
        assert count == layer.size if layer.size <= 1_000 else 500 <= count <= 1_000
        assert found.weights == layer.size


def test_a_layer_of_zeros_has_bars_too() -> None:
    nodes = [node("Gemm", "x w1 b", "h", transB=1), node("Relu", "h", "r"), node("MatMul", "r w2")]
    weights = {"w1": np.zeros((6, 4), np.float32), "b": np.ones(6, np.float32)}
    weights["w2"] = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    x = np.random.default_rng(1).standard_normal((30, 4)).astype(np.float32)
    data = CalibrationSet.from_arrays(x, np.arange(30) % 3)
    config = replace(CONFIG, method="uniform")
    scene, _ = gather(make_model(nodes, {"x": ["N", 4]}, ["y"], weights), data, config)
    first, _ = describe(scene, solved(scene, config))
    assert (first.before.low, first.before.high) == (-1.0, 1.0)
    assert sum(first.before.counts) == 24


def activations(tensor: str, scene: Scene) -> Array:
    """The values of a tensor on the samples drawn, by plain onnxruntime."""
    model = scene.work.model.to_proto()
    names = [one.name for one in model.graph.input]
    if tensor not in names and tensor not in [one.name for one in model.graph.output]:
        model.graph.output.add(name=tensor)
    samples = scene.work.samples
    feeds = samples.read(scene.drawn.indices)
    if tensor in names:
        return np.asarray(feeds[tensor])
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return np.asarray(session.run([tensor], dict(feeds))[0])


def test_inputs_are_what_the_samples_show(scene: Scene, details: dict[str, LayerDetail]) -> None:
    seen = 0
    for found in details.values():
        for one in found.inputs:
            grid, values = scene.grids[one.tensor], activations(one.tensor, scene).astype(np.float64)
            assert (one.low, one.high, one.bits) == (*map(float, grid.ends), grid.bits)
            assert sum(one.seen.counts) == values.size
            assert one.seen.low <= values.min()
            assert one.seen.high >= values.max() - 1e-6
            half = grid.scale / 2
            beyond = (values < one.low - half) | (values > one.high + half)
            # The histogram knows a value to one part in some thousands.
            assert one.outside == pytest.approx(100 * beyond.mean(), abs=0.02)
            centres = np.linspace(one.seen.low, one.seen.high, 2 * BINS + 1)[1::2]
            mean = float(np.average(centres, weights=one.seen.counts))
            assert mean == pytest.approx(values.mean(), abs=(one.seen.high - one.seen.low) / BINS)
            seen += 1
    assert seen == len(details)


def test_what_a_narrow_grid_cuts_off_is_counted(scene: Scene, solution: Solution) -> None:
    tensor = "/2/Relu_output_0"
    values = activations(tensor, scene)
    grid = scene.grids[tensor]
    narrow = ActivationGrid(grid.scale / 4, grid.zero_point, grid.bits)
    found = describe(replace(scene, grids={**scene.grids, tensor: narrow}), solution)
    (one,) = (one for layer in found for one in layer.inputs if one.tensor == tensor)
    share = 100 * float((values > narrow.ends[1] + narrow.scale / 2).mean())
    assert share > 1
    assert one.outside == pytest.approx(share, abs=0.1)


def test_float_activations_have_no_grids() -> None:
    config = replace(CONFIG, activation_bits=0, method="uniform")
    scene, _ = gather(DIGITS_MODEL, DIGITS_CARD, config)
    for found in describe(scene, solved(scene, config)):
        assert found.inputs == ()
        assert (found.gamma, found.needed, found.classes) == ((), (), ())
        assert found.snr is None


def test_noise_is_that_of_the_outputs(scene: Scene, solution: Solution, details: dict[str, LayerDetail]) -> None:
    """Of the last layer, by hand: what it makes of its inputs, and of what rounding changes; a bias takes up means."""
    table, bits = scene.evidence.of(width_tables)["12"], solution.plan.bits["12"]
    weight = scene.work.model.weight("12.weight").astype(np.float64)
    x = activations("/11/Flatten_output_0", scene).astype(np.float64)
    power, noise = (float((x @ rows.T).var(axis=0).sum()) for rows in (weight, table.rows(bits) - weight))
    # The tables damp the moments of inputs, which adds to the error what inputs of other samples might.
    assert details["12"].snr == pytest.approx(10 * np.log10(power / noise), abs=1.5)


def test_needs_are_those_of_the_scores(scene: Scene, details: dict[str, LayerDetail]) -> None:
    scores = scene.evidence.of(class_scores).by_layer
    for name, found in details.items():
        beta = scores[name].beta
        np.testing.assert_allclose(found.gamma, scores[name].gamma, atol=5e-4)
        np.testing.assert_allclose(found.classes, beta.sum(axis=1), atol=5e-4)
        assert len(found.needed) == beta.shape[1] == len(found.gamma)
        for needed, column in zip(found.needed, beta.T, strict=True):
            assert len(needed) == min(TOP_CLASSES, int((column > 0).sum()))
            least = min((column[m] for m in needed), default=1.0)
            assert all(column[m] <= least for m in range(len(column)) if m not in needed)
            assert list(column[list(needed)]) == sorted(column[list(needed)], reverse=True)


def test_the_json_counts_channels_and_averages_their_bits(details: dict[str, LayerDetail]) -> None:
    bits = np.array([8, 1, 0, 2], np.int8)
    found = details["12"].to_json(bits)
    assert (found["channels"], found["average_bits"]) == (4, 2.75)
