"""A model whose layers stand for themselves: each reads an input of its own, or something is added to what it makes."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from onnx_cbq.graph.load import load
from onnx_cbq.runtime import Session
from onnx_cbq.verification.cutting import cut, input_of, offset_of, with_offsets
from tests.graphs import make_model, node


def test_each_layer_reads_its_own() -> None:
    random = np.random.default_rng(0)
    w, v = (random.standard_normal((5, 5)).astype(np.float32) for _ in range(2))
    nodes = [node("MatMul", "x w", "h"), node("Relu", "h", "r"), node("MatMul", "v r", "k"), node("Add", "k h")]
    model = load(make_model(nodes, {"x": [5, 5]}, ["y"], {"w": w, "v": v}))
    parts = cut(model, {"h": (0, TensorProto.FLOAT), "k": (1, TensorProto.FLOAT)}, ["h", "k"])
    assert {spec.name for spec in parts.inputs} == {input_of("h"), input_of("k")}
    a, b = (random.standard_normal((5, 5)).astype(np.float32) for _ in range(2))
    found = Session(parts, "off").run({input_of("h"): a, input_of("k"): b})
    np.testing.assert_allclose(found["h"], a @ w, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["k"], v @ b, rtol=1e-5, atol=1e-6)
    # The model itself is as it was.
    assert [spec.name for spec in model.inputs] == ["x"]


def test_what_is_added_goes_on_through_the_model() -> None:
    """Behind a tensor that others read, and behind one that is an output itself; nothing is a number of no axes."""
    random = np.random.default_rng(1)
    w, v = (random.standard_normal((5, 5)).astype(np.float32) for _ in range(2))
    nodes = [node("MatMul", "x w", "h"), node("Relu", "h", "r"), node("MatMul", "r v")]
    model = load(make_model(nodes, {"x": [5, 5]}, ["y"], {"w": w, "v": v}))
    x, a = (random.standard_normal((5, 5)).astype(np.float32) for _ in range(2))
    session = Session(with_offsets(model, dict.fromkeys(("h", "y"), TensorProto.FLOAT), ["y"]))
    nothing = np.zeros((), np.float32)
    for h, y in ((a, nothing), (nothing, a), (nothing, nothing)):
        found = session.run({"x": x, offset_of("h"): h, offset_of("y"): y})["y"]
        np.testing.assert_allclose(found, np.maximum(x @ w + h, 0) @ v + y, rtol=1e-5, atol=1e-5)
