from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_cbq import runtime
from onnx_cbq.errors import ModelError
from onnx_cbq.graph.load import load
from onnx_cbq.model import Model
from onnx_cbq.runtime import Optimization, Session, fused_operators, median_latency
from tests.graphs import make_model, node

ADD = make_model([node("Add", "x x")], {"x": ["N", 3]}, ["y"])


def test_what_onnxruntime_says_becomes_one_line() -> None:
    """A user sees the first line of an error, not a page of C++ frames."""
    session = Session(Model.from_proto(ADD))
    with pytest.raises(ModelError, match="onnxruntime cannot run the model") as caught:
        session.run({"x": np.zeros((2, 4), np.float32)})
    assert "\n" not in str(caught.value)
    broken = make_model([node("Nonsense", "x")], {"x": [1]}, ["y"])
    with pytest.raises(ModelError, match="onnxruntime cannot load the model") as caught:
        Session(Model.from_proto(broken))
    assert "\n" not in str(caught.value)


def test_intermediate_tensors_can_be_outputs() -> None:
    proto = make_model([node("Add", "x x", "z"), node("Neg", "z")], {"x": ["N", 3]}, ["y"])
    model = Model.from_proto(proto).with_graph(outputs=["z", "y"])
    values = Session(model).run({"x": np.ones((1, 3), np.float32)})
    assert (values["z"] == 2).all()
    assert (values["y"] == -2).all()


def test_fused_operators_are_those_of_the_optimized_graph(tmp_path: Path) -> None:
    """The tests that count integer kernels rely on it: two opposite transposes must be gone."""
    proto = make_model(
        [node("Transpose", "x", "t", perm=[1, 0]), node("Transpose", "t", "u", perm=[1, 0]), node("Neg", "u")],
        {"x": [2, 3]},
        ["y"],
    )
    onnx.save(proto, tmp_path / "model.onnx")
    assert fused_operators(tmp_path / "model.onnx") == {"Neg": 1}


def test_latency_is_measured_for_each_session() -> None:
    latencies = median_latency([Session(Model.from_proto(ADD))] * 2, {"x": np.zeros((1, 3), np.float32)}, seconds=0.02)
    assert len(latencies) == 2
    assert all(0 < latency < 0.02 for latency in latencies)


def test_float_weights_between_quantized_activations_stay_as_they_are() -> None:
    """onnxruntime would round them to a grid of its own. A sum in another order may put a value on another level."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((4, 3, 3, 3)).astype(np.float32) * np.array([1, 9, 0.1, 0.01]).reshape(4, 1, 1, 1)
    grid = {"s": np.array(0.05, np.float32), "z": np.array(128, np.uint8), "w": weight.astype(np.float32)}
    nodes = [
        node("QuantizeLinear", "x s z", "a"),
        node("DequantizeLinear", "a s z", "b"),
        node("Conv", "b w", "c"),
        node("QuantizeLinear", "c s z", "d"),
        node("DequantizeLinear", "d s z"),
    ]
    model = Model.from_proto(make_model(nodes, {"x": ["N", 3, 8, 8]}, ["y"], grid))
    feeds = {"x": random.standard_normal((2, 3, 8, 8)).astype(np.float32)}
    fused, plain = (Session(model, level).run(feeds)["y"] for level in ("all", "off"))
    assert np.mean(fused != plain) < 0.01


@pytest.mark.parametrize("optimization", ["off", "all"])
@pytest.mark.parametrize("kind", ["in a file", "in memory", "in both"])
def test_large_models_give_what_small_ones_give(
    optimization: Optimization, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime is told that weights lie in a file, maybe one of zeros: a zero that is believed shows.

    In a sum that could be computed beforehand, or in a shape.
    """
    random = np.random.default_rng(1)
    constants = {
        name: random.standard_normal(shape).astype(np.float32)
        for name, shape in {"w": (24, 48), "v": (24, 48), "u": (48, 36)}.items()
    }
    constants |= {"sum": np.array([1.5], np.float32), "shape": np.array([0, 4, 3, 3])}
    nodes = [
        node("Add", "w v", "both"),
        node("MatMul", "x both", "a"),
        node("Gemm", "a u", "b"),
        node("Reshape", "b shape", "c"),
        node("Add", "c sum"),
    ]
    path = tmp_path / "model.onnx"
    onnx.save_model(
        make_model(nodes, {"x": ["N", 24]}, ["y"], constants),
        path,
        save_as_external_data=True,
        location="data",
        size_threshold=0,
    )
    feeds = {"x": random.standard_normal((3, 24)).astype(np.float32)}
    x = feeds["x"].astype(np.float64)
    expected = (x @ (constants["w"] + constants["v"]) @ constants["u"]).reshape(3, 4, 3, 3) + 1.5
    monkeypatch.setattr(runtime, "LARGE", 0)
    monkeypatch.setattr(runtime, "HUGE", 1024)
    model = load(path)
    if kind != "in a file":
        moved = {name: np.array(value) for name, value in model.weights.items() if kind == "in memory" or name == "w"}
        model = model.with_constants(moved)
    session = Session(model, optimization)
    for _ in range(2):
        np.testing.assert_allclose(session.run(feeds)["y"], expected, rtol=1e-4, atol=1e-4)
