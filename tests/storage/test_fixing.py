"""Sizes that a file leaves open are fixed, and nothing else changes."""

from __future__ import annotations

import numpy as np
import onnx
from onnx.shape_inference import infer_shapes

from onnx_cbq.graph.load import load
from onnx_cbq.graph.shapes import Example
from onnx_cbq.runtime import Session
from onnx_cbq.storage.fixing import fix_sizes
from tests.graphs import make_model, node


def sizes(values: list[onnx.ValueInfoProto]) -> list[list[int]]:
    return [[size.dim_value for size in value.type.tensor_type.shape.dim] for value in values]


def test_every_size_is_that_of_one_sample() -> None:
    nodes = [
        node("Conv", "x w", "a"),
        node("GlobalAveragePool", "a", "p"),
        node("Flatten", "p", "f"),
        node("Exp", "f", "y"),
    ]
    model = load(make_model(nodes, {"x": ["N", 3, "H", "W"]}, ["y"], {"w": np.ones((4, 3, 3, 3), np.float32)}))
    x = np.random.default_rng(0).standard_normal((5, 3, 8, 6)).astype(np.float32)
    fixed = fix_sizes(model, Example({"x": x}))
    assert sizes(list(fixed.skeleton.graph.input)) == [[1, 3, 8, 6]]
    assert sizes(list(fixed.skeleton.graph.output)) == [[1, 4]]
    inferred = infer_shapes(fixed.to_proto(), strict_mode=True)
    assert all(all(shape) for shape in sizes(list(inferred.graph.value_info)))
    np.testing.assert_array_equal(Session(fixed).run({"x": x[:1]})["y"], Session(model).run({"x": x[:1]})["y"])
    assert sizes(list(model.skeleton.graph.input)) == [[0, 3, 0, 0]]


def test_a_batch_that_the_model_insists_on_stays() -> None:
    model = load(make_model([node("Exp", "x", "y")], {"x": [4, 3]}, ["y"]))
    fixed = fix_sizes(model, Example({"x": np.ones((4, 3), np.float32)}))
    assert sizes([*fixed.skeleton.graph.input, *fixed.skeleton.graph.output]) == [[4, 3], [4, 3]]
