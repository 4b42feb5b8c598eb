from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from onnx_cbq.errors import ModelError
from onnx_cbq.graph.load import load
from onnx_cbq.graph.logits import Logits, find_logits
from onnx_cbq.graph.shapes import Example
from onnx_cbq.records.answers import Kind, Reading
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
    with pytest.raises(ModelError, match="no such output; expected one of its outputs: y"):
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


@pytest.mark.parametrize(
    ("tail", "squashed"),
    [
        ([node("Identity", "z")], ""),
        ([node("Cast", "z", to=TensorProto.DOUBLE)], ""),
        ([node("Sigmoid", "z", "p"), node("Identity", "p")], "Sigmoid"),
        ([node("Reshape", "z square", "r"), node("Squeeze", "r middle", "s"), node("Softmax", "s")], "Softmax"),
        ([node("Transpose", "z", "t"), node("Transpose", "t")], ""),
        ([node("Unsqueeze", "z middle", "u"), node("Softmax", "u", "p", axis=2), node("Flatten", "p")], "Softmax"),
    ],
)
def test_what_only_moves_or_squashes_is_stepped_over(tail: list[onnx.NodeProto], squashed: str) -> None:
    """Keras, skl2onnx and Paddle put such nodes behind the logits."""
    constants = {"square": np.array([-1, 1, 5]), "middle": np.array([1])}
    used = {name for n in tail for name in n.input}
    proto = make_model(
        [node("Neg", "x", "z"), *tail], {"x": ["N", 5]}, ["y"], {n: v for n, v in constants.items() if n in used}
    )
    found = logits_of(proto)
    assert (found.output, found.tensor, found.classes, found.squashed) == ("y", "z", 5, squashed)


@pytest.mark.parametrize(
    ("tail", "tensor"),
    [
        ([node("Mul", "z z")], "y"),
        ([node("Softmax", "z", axis=0)], "y"),
        ([node("Softmax", "z", "p"), node("Softmax", "p")], "p"),
        ([node("ArgMax", "z", "a", axis=1, keepdims=1), node("Cast", "a", "b", to=1), node("Expand", "b s")], "y"),
        ([node("Greater", "z s", "a"), node("Cast", "a", to=1)], "y"),
    ],
)
def test_what_changes_the_scores_is_not(tail: list[onnx.NodeProto], tensor: str) -> None:
    constants = {"s": np.array(0.5, np.float32)} if tail[0].op_type == "Greater" else {"s": np.array([1, 5])}
    used = any("s" in n.input for n in tail)
    proto = make_model([node("Neg", "x", "z"), *tail], {"x": ["N", 5]}, ["y"], constants if used else {})
    assert logits_of(proto).tensor == tensor


def test_a_softmax_before_opset_13_is_over_all_axes_from_its_own_on() -> None:
    """At (N, 5, 1, 1) its default axis 1 is the classes; at (N, 1, 5) axis 1 covers them too."""
    shapes: tuple[list[int | str], ...] = (["N", 5, 1, 1], ["N", 1, 5])
    for shape in shapes:
        proto = make_model([node("Neg", "x", "z"), node("Softmax", "z")], {"x": shape}, ["y"], opset=12)
        model = load(proto)
        assert find_logits(model, Example.made_up(model).shapes(model)).tensor == "z"


def test_logits_and_their_softmax_as_two_outputs_are_one_choice() -> None:
    proto = make_model([node("Neg", "x", "z"), node("Softmax", "z")], {"x": ["N", 5]}, ["z", "y"])
    assert logits_of(proto).output == "z"
    assert logits_of(proto, "y") == Logits("y", "z", Kind(5), squashed="Softmax")


def test_an_inner_tensor_is_no_output() -> None:
    """It would be read from the float model, and be missing in the finished file after all the work."""
    proto = make_model([node("Neg", "x", "z"), node("Abs", "z")], {"x": ["N", 5]}, ["y"])
    with pytest.raises(ModelError, match=r"--logits 'z': a tensor inside the model .*; expected one of its outputs: y"):
        logits_of(proto, "z")


@pytest.mark.parametrize(
    ("shape", "labels", "reading", "kind"),
    [
        ((3, 5), (), Reading(0, 1), Kind(5)),
        ((3, 1, 5), (), Reading(0, 2), Kind(5)),
        ((3,), (), Reading(0, None), Kind(2)),
        ((3, 1), (1,), Reading(0, None), Kind(2)),
        ((3, 7, 5), (7,), Reading(0, 2), Kind(5)),
        ((3, 5, 7, 6), (7, 6), Reading(0, 1), Kind(5)),
        ((3, 1, 7, 6), (7, 6), Reading(0, None), Kind(2)),
        ((3, 7, 6), (1, 7, 6), Reading(0, None), Kind(2)),
        ((3, 5), (5,), Reading(0, 1), Kind(5, independent=True, several=True)),
    ],
)
def test_the_labels_say_how_scores_are_read(
    shape: tuple[int, ...], labels: tuple[int, ...], reading: Reading, kind: Kind
) -> None:
    proto = make_model([node("Neg", "x")], {"x": ["N", *shape[1:]]}, ["y"])
    model = load(proto)
    found = find_logits(model, Example.made_up(model).shapes(model), labels=labels)
    assert (found.reading, found.kind) == (reading, kind)


@pytest.mark.parametrize(("shape", "labels"), [((3, 5, 7), ()), ((3, 5), (4,)), ((3, 5, 7), (6,))])
def test_labels_of_another_shape_are_explained(shape: tuple[int, ...], labels: tuple[int, ...]) -> None:
    model = load(make_model([node("Neg", "x")], {"x": ["N", *shape[1:]]}, ["y"]))
    with pytest.raises(ModelError, match="no output of shape"):
        find_logits(model, Example.made_up(model).shapes(model), labels=labels)


@pytest.mark.parametrize("shifted", [False, True])
def test_a_softmax_that_is_written_out_is_one(shifted: bool) -> None:
    """tf2onnx and hand-written exports have it as exp(x - max) / sum."""
    shift = [node("ReduceMax", "z axis", "m"), node("Sub", "z m", "d")] if shifted else [node("Identity", "z", "d")]
    tail = [node("Exp", "d", "e"), node("ReduceSum", "e axis", "s"), node("Div", "e s")]
    constants = {"axis": np.array([1])}
    proto = make_model([node("Neg", "x", "z"), *shift, *tail], {"x": ["N", 5]}, ["y"], constants)
    found = logits_of(proto)
    assert (found.tensor, found.squashed, found.kind) == ("z", "Softmax", Kind(5))
    other = [node("Exp", "d", "e"), node("ReduceSum", "x axis", "s"), node("Div", "e s")]
    assert (
        logits_of(make_model([node("Neg", "x", "z"), *shift, *other], {"x": ["N", 5]}, ["y"], constants)).tensor == "y"
    )


def test_two_shares_of_one_number_are_two_classes() -> None:
    """skl2onnx writes 1 - p and p side by side: the logit is in front of the sigmoid that makes p."""
    nodes = [node("Neg", "x", "z"), node("Sigmoid", "z", "p"), node("Sub", "one p", "q"), node("Concat", "q p", axis=1)]
    found = logits_of(make_model(nodes, {"x": ["N", 1]}, ["y"], {"one": np.ones(1, np.float32)}))
    assert (found.tensor, found.phi.classes, found.reading.classes, found.kind) == ("z", None, 1, Kind(2))
    nodes[2] = node("Sub", "two p", "q")
    assert logits_of(make_model(nodes, {"x": ["N", 1]}, ["y"], {"two": np.full(1, 2, np.float32)})).tensor == "y"
