"""Which outputs beside the class scores count, and what a layer that only feeds them gets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from onnx_cbq import CalibrationSet, QuantizeConfig, quantize
from onnx_cbq.errors import ConfigError
from onnx_cbq.evidence import measure_by_tables
from onnx_cbq.evidence.workload import prepare
from onnx_cbq.gradient.further import FurtherOutputs
from onnx_cbq.model import Array
from onnx_cbq.quantize.settings import RoundingConfig
from onnx_cbq.records import Plan
from onnx_cbq.runtime import Session
from onnx_cbq.search.rate_distortion import RateDistortionConfig
from tests.graphs import make_model, node
from tests.scenes import scene_of

RANDOM = np.random.default_rng(1)
SAMPLES, CLASSES = 48, 3
X = RANDOM.standard_normal((SAMPLES, 6)).astype(np.float32)
Y = np.arange(SAMPLES) % CLASSES


def weight(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


CONSTANTS: dict[str, Array] = {
    "w": weight(6, 10),
    "v": weight(10, CLASSES),
    "u": weight(10, 8),
    "t": weight(8, 12),
    "square": np.array([-1, 3, 4]),
    "axes": np.array([1]),
    "count": np.array([2]),
    "zero": np.array(0, np.float32),
}
BODY = [node("MatMul", "x w", "a"), node("Relu", "a", "h"), node("MatMul", "h v", "scores")]
HEAD = [
    node("MatMul", "h u", "b"),
    node("Relu", "b", "c"),
    node("MatMul", "c t", "d"),
    node("Reshape", "d square", "m"),
]
QUICK = QuantizeConfig(
    bits=4,
    equalize=False,
    logits="scores",
    search=RateDistortionConfig(exchanges=2),
    compensation=RoundingConfig(refits=0, sweeps=0, passes=1),
)


def model(nodes: list[onnx.NodeProto], *outputs: str) -> onnx.ModelProto:
    nodes = [*BODY, *HEAD, *nodes]
    used = {name for n in nodes for name in n.input}
    constants = {name: value for name, value in CONSTANTS.items() if name in used}
    return make_model(nodes, {"x": ["N", 6]}, ["scores", *outputs], constants)


def further(nodes: list[onnx.NodeProto], *outputs: str) -> FurtherOutputs:
    return prepare(model(nodes, *outputs), CalibrationSet.from_arrays(X, Y), "scores").further


def test_a_head_counts_with_its_own_output() -> None:
    found = further([], "m")
    assert [(one.output, one.tensor, one.batch_axis) for one in found.counted] == [("m", "m", 0)]


def test_what_is_made_of_the_logits_is_theirs() -> None:
    """It would count twice."""
    nodes = [node("Softmax", "scores", "p"), node("ArgMax", "p", "label", axis=1), node("Identity", "x", "copy")]
    assert further(nodes, "p", "label", "copy") == FurtherOutputs()


def test_features_that_the_logits_are_made_of_count() -> None:
    assert [one.tensor for one in further([], "h").counted] == ["h"]


@pytest.mark.parametrize(
    "nodes",
    [
        [node("ArgMax", "m", "o", axis=1)],
        [node("ArgMax", "m", "i", axis=1), node("Cast", "i", "o", to=TensorProto.FLOAT)],
        [node("Greater", "m zero", "g"), node("Not", "g", "o")],
        [node("TopK", "m count", "top i", axis=1), node("Identity", "i", "o")],
    ],
    ids=["arg-max", "cast-arg-max", "greater", "top-k-indices"],
)
def test_an_output_that_cannot_be_differentiated_is_represented_by_what_is_in_front(
    nodes: list[onnx.NodeProto],
) -> None:
    found = further(nodes, "o")
    assert {one.output for one in found.counted} == {"o"}
    assert not found.unknown


def test_names_to_ignore_are_checked() -> None:
    data = CalibrationSet.from_arrays(X, Y)
    assert prepare(model([], "m"), data, "scores", ("m",)).further == FurtherOutputs((), (), ("m",))
    with pytest.raises(ConfigError, match=r"--ignore-output 'n': is no output of the model; expected one of .*: m"):
        prepare(model([], "m"), data, "scores", ("n",))
    with pytest.raises(ConfigError, match="--ignore-output 'scores': holds the class scores"):
        prepare(model([], "m"), data, "scores", ("scores",))


@pytest.mark.parametrize("change", [{}, {"method": "cbq"}, {"storage": "archive"}], ids=["default", "cbq", "archive"])
def test_a_head_of_its_own_gets_its_share_of_bits(change: dict[str, str]) -> None:
    """Its layers have no part in the class scores, and had no bits for it: one number came out, whatever went in."""
    data, config = CalibrationSet.from_arrays(X, Y), replace(QUICK, **change)  # type: ignore[arg-type]
    counted = quantize(model([], "m"), data, config)
    ignored = quantize(model([], "m"), data, replace(config, ignore_outputs=("m",)))
    distances = []
    for result in (counted, ignored):
        expected = Session(model([], "m").SerializeToString()).run({"x": X})["m"]
        change_of = Session(result.proto.SerializeToString()).run({"x": X})["m"] - expected
        distances.append(np.sqrt((change_of**2).mean() / expected.var(axis=0).mean()))
        assert result.outputs[0].relative == pytest.approx(distances[-1], rel=1e-4)
    assert distances[0] < 0.3
    assert distances[1] > 2 * distances[0]


def test_the_measured_loss_has_the_distance_of_the_head() -> None:
    """Half the mean square of its change over its variance, sample by sample, beside the divergence of the scores."""
    work = prepare(model([], "m"), CalibrationSet.from_arrays(X, Y), "scores")
    measure = scene_of(work, replace(QUICK, activation_bits=0)).evidence.of(measure_by_tables)
    widths = {layer.name: np.full(layer.channels, 8, np.int8) for layer in work.layers}
    coarse = widths | {"t": np.full(12, 2, np.int8)}
    fine, found = measure(Plan(widths)), measure(Plan(coarse))
    np.testing.assert_array_equal(fine.divergences.toarray(), found.divergences.toarray())
    assert found.further.mean() > 10 * fine.further.mean()
    np.testing.assert_allclose(found.losses(np.ones(CLASSES)), found.divergences.sum(axis=1) + found.further, rtol=1e-9)
    assert found.quality == pytest.approx(found.accuracy - found.further.mean())
