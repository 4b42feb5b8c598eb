from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from onnx_cbq.errors import ModelError
from onnx_cbq.graph.load import load
from onnx_cbq.graph.randomness import check_repeatable
from onnx_cbq.graph.shapes import Example
from onnx_cbq.model import Array
from tests.graphs import make_model, node

RATIO, TRAINING = np.array(0.5, np.float32), np.ones((), bool)


def check(nodes: list[onnx.NodeProto], **constants: Array) -> None:
    model = load(make_model(nodes, {"x": ["N", 64]}, ["y"], constants))
    check_repeatable(model, Example.made_up(model))


@pytest.mark.parametrize(
    ("nodes", "suspect"),
    [
        (
            [node("Dropout", "x ratio training", "d"), node("Neg", "d")],
            r"node 'Dropout_d' \(Dropout\) is in training mode",
        ),
        ([node("RandomNormalLike", "x", "r"), node("Add", "x r")], r"\(RandomNormalLike\) draws random numbers"),
        ([node("Sigmoid", "x", "p"), node("Bernoulli", "p")], r"\(Bernoulli\) draws random numbers"),
        (
            [node("Multinomial", "x", "m", sample_size=8), node("Cast", "m", to=onnx.TensorProto.FLOAT)],
            r"\(Multinomial\) draws random numbers",
        ),
    ],
)
def test_random_answers_are_refused_with_the_node_that_draws(nodes: list[onnx.NodeProto], suspect: str) -> None:
    """onnxruntime takes a Dropout in training mode out, quantized kernels do not: the blame fell on those."""
    constants = {"ratio": RATIO, "training": TRAINING} if nodes[0].op_type == "Dropout" else {}
    with pytest.raises(ModelError, match=f"the model gives random answers.*{suspect}; export it for inference"):
        check(nodes, **constants)


def test_a_node_in_a_branch_is_found() -> None:
    branch = helper.make_graph(
        [node("RandomNormalLike", "x", "r")], "then", [], [helper.make_empty_tensor_value_info("r")]
    )
    nodes = [helper.make_node("If", ["condition"], ["y"], "choice", then_branch=branch, else_branch=branch)]
    with pytest.raises(ModelError, match=r"node 'RandomNormalLike_r' \(RandomNormalLike\)"):
        check(nodes, condition=TRAINING)


def test_dropout_at_inference_and_unused_random_numbers_are_fine() -> None:
    check([node("Dropout", "x ratio", "d"), node("Neg", "d")], ratio=RATIO)
    check(
        [node("RandomNormalLike", "x", "r"), node("Mul", "r zero", "n"), node("Add", "x n")],
        zero=np.array(0, np.float32),
    )
