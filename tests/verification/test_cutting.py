"""A model cut in front of its layers: each reads an input of its own, and depends on no other layer."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from onnx_cbq.graph.load import load
from onnx_cbq.runtime import Session
from onnx_cbq.verification.cutting import cut, input_of
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
