from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnx_cbq.errors import ModelError
from onnx_cbq.graph.load import load
from onnx_cbq.graph.logits import Logits, find_logits
from onnx_cbq.graph.shapes import Example
from onnx_cbq.records.answers import Kind
from tests.graphs import make_model, node


def logits_of(proto: onnx.ModelProto, name: str | None = None) -> Logits:
    model = load(proto)
    return find_logits(model, Example.made_up(model).shapes(model), name)


def test_the_only_output_of_the_right_shape_is_taken() -> None:
    nodes = [node("Relu", "x", "features"), node("ReduceSum", "x axes", "a", keepdims=0), node("Neg", "a", "scores")]
    proto = make_model(nodes, {"x": ["N", 5, 7]}, ["features", "scores"], {"axes": np.array([2])})
    assert logits_of(proto) == Logits("scores", "scores", Kind(5))


def test_two_candidates_need_a_name() -> None:
    proto = make_model([node("Neg", "x", "a"), node("Abs", "x", "b")], {"x": ["N", 5]}, ["a", "b"])
    with pytest.raises(ModelError, match=r"several outputs of shape .* name the class scores with --logits"):
        logits_of(proto)
    assert logits_of(proto, "b").output == "b"


def test_no_candidate_and_unknown_names_are_explained() -> None:
    proto = make_model([node("ReduceSum", "x", "y")], {"x": ["N", 5]}, ["y"])
    with pytest.raises(ModelError, match="no output of shape"):
        logits_of(proto)
    with pytest.raises(ModelError, match="no such output; its outputs: y"):
        logits_of(proto, "z")
    with pytest.raises(ModelError, match="expected shape"):
        logits_of(proto, "y")


def test_trailing_axes_of_size_one_do_not_matter() -> None:
    """Fully convolutional classifiers end in (N, M, 1, 1)."""
    proto = make_model([node("GlobalAveragePool", "x")], {"x": ["N", 6, 4, 4]}, ["y"])
    assert logits_of(proto).classes == 6


@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax"])
def test_a_final_softmax_is_stepped_over(operator: str) -> None:
    """Phi is the logit: behind a softmax every logit would get a gradient, and saturated samples none."""
    proto = make_model([node("Neg", "x", "z"), node(operator, "z", axis=-1)], {"x": ["N", 5]}, ["y"])
    assert logits_of(proto) == Logits("y", "z", Kind(5), squashed=operator)
