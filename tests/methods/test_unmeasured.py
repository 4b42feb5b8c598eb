"""Models on whose samples no plan can be told from another: it is said, and widths follow the weights."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest

from onnx_cbq import CalibrationSet, QuantizeConfig, quantize
from onnx_cbq.evidence.workload import prepare
from onnx_cbq.jobs.result import Result
from onnx_cbq.methods.channels import FreeChannels
from onnx_cbq.methods.rate_distortion import SearchReport
from onnx_cbq.methods.unmeasured import plan_by_weights
from onnx_cbq.model import Array, Model
from onnx_cbq.quantize.weights import distortions, quantize_layer
from tests.graphs import make_model, node

CLASSES, LABELS = 4, np.arange(80) % 4
NODES = [
    node("Gemm", "x w1 b1", "a", transB=1),
    node("Relu", "a", "b"),
    node("Gemm", "b w2 b2", "c", transB=1),
    node("Relu", "c", "d"),
    node("Gemm", "d w3 b3", transB=1),
]
SAID = "nothing could be measured: "


def net(kind: str) -> onnx.ModelProto:
    """Three layers: with a head of zeros, saturated, or with a layer that is dead for all samples."""
    random = np.random.default_rng(0)
    shapes = {"w1": (16, 6), "b1": (16,), "w2": (12, 16), "b2": (12,), "w3": (CLASSES, 12), "b3": (CLASSES,)}
    values = {name: random.standard_normal(shape) for name, shape in shapes.items()}
    # Scores around 0, so that answers differ.
    values["w3"] -= values["w3"].mean(axis=1, keepdims=True)
    if kind == "zeros":
        values["w3"] *= 0
    elif kind == "saturated":
        values["b3"] += np.array([1e6, 0, 0, 0])
    elif kind == "sharp":
        values["w3"] *= 1e6
    elif kind == "dead":
        values["b1"] -= 1e6
    constants: dict[str, Array] = {name: value.astype(np.float32) for name, value in values.items()}
    return make_model(NODES, {"x": ["N", 6]}, ["y"], constants)


def quantized(kind: str, **settings: object) -> Result:
    x = np.random.default_rng(1).standard_normal((80, 6)) + LABELS[:, None]
    data = CalibrationSet.from_arrays(x.astype(np.float32), LABELS)
    return quantize(net(kind), data, QuantizeConfig(activation_bits=0, **settings))  # type: ignore[arg-type]


def notes_of(result: Result) -> list[str]:
    return [note for note in result.notes if note.startswith(SAID)]


@pytest.mark.parametrize("method", ["rate-distortion", "cbq"])
@pytest.mark.parametrize("kind", ["zeros", "saturated", "dead"])
def test_a_plan_takes_its_bits_where_every_plan_measures_alike(kind: str, method: str) -> None:
    """It was a file of 0 bits, or bits for whatever came first, without a word."""
    result = quantized(kind, bits=4.0, method=method)
    assert 3.9 < result.average_bits <= 4
    (note,) = notes_of(result)
    assert "the class scores are the same for every sample; widths follow the squared error of the weights" in note
    # No channel of a layer that holds weights is left without: neither was told from the others.
    assert all(bits.min() >= 2 for name, bits in result.plan.bits.items() if (kind, name) != ("zeros", "w3"))
    if kind == "zeros":
        assert not result.plan.bits["w3"].any()


def test_the_report_names_the_weights() -> None:
    report = quantized("zeros", bits=3.0).method
    assert isinstance(report, SearchReport)
    assert report.criterion == "weights"
    assert report.layers == {}, "nothing is known of layers either"


def test_what_can_be_measured_is_measured() -> None:
    """A net whose scores differ from sample to sample is none of these, and neither is one that is sure of each."""
    for kind in ("usual", "sharp"):
        result = quantized(kind, bits=3.0)
        assert notes_of(result) == []
        assert 2.9 < result.average_bits <= 3


def test_gradients_that_vanish_choose_no_plan() -> None:
    """Behind scores that are sure of each sample the second order is 0, which would be a plan of 0 bits."""
    report = quantized("sharp", bits=3.0).method
    assert isinstance(report, SearchReport)
    assert not any(name.startswith("sensitivity") for name in report.measured)


def test_a_limit_that_says_nothing_leaves_the_usual_bits() -> None:
    for kind in ("zeros", "dead"):
        result = quantized(kind, max_drop=1.0)
        assert 3.9 < result.average_bits <= 4
        assert any(
            note.startswith("--max-drop 1 could not be measured: the float model gives") for note in result.notes
        )


def test_an_archive_of_a_head_of_zeros_is_written() -> None:
    """Rows of zeros had a spacing of 0, and codes that are no numbers."""
    for kind in ("zeros", "saturated"):
        result = quantized(kind, bits=3.0, storage="archive")
        assert all((bits.max() > 0) != ((kind, name) == ("zeros", "w3")) for name, bits in result.plan.bits.items())


def test_widths_by_weights_are_the_best_of_all() -> None:
    """By trying every plan of a small layer."""
    x = np.random.default_rng(1).standard_normal((80, 6))
    work = prepare(net("usual"), CalibrationSet.from_arrays(x.astype(np.float32), LABELS))
    layer = work.layers.layers[2]
    weight = work.model.weight(layer.weight)
    losses = distortions(layer, weight)
    for bits in (0, 3, 8):
        found = quantize_layer(layer, weight, np.full(CLASSES, bits))
        values = found.codes.astype(np.float64) * found.scale[:, None]
        expected = ((values - layer.rows(weight)) ** 2).sum(axis=1) / (weight.astype(np.float64) ** 2).sum()
        np.testing.assert_allclose(losses[:, bits], expected, rtol=1e-4, atol=1e-9)
    kept = {other.name: 4 for other in work.layers if other is not layer}
    plan = plan_by_weights(Model(work.model.skeleton, work.model.weights), FreeChannels(work.layers, kept, 3.6))
    chosen = plan.bits[layer.name]
    every = [p for p in itertools.product(range(9), repeat=CLASSES) if sum(p) <= chosen.sum()]
    best = min(every, key=lambda p: float(losses[np.arange(CLASSES), list(p)].sum()))
    assert losses[np.arange(CLASSES), chosen].sum() == pytest.approx(losses[np.arange(CLASSES), list(best)].sum())
