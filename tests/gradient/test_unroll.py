"""Recurrent nodes written out step by step: the same numbers, and gradients of the sums of gates."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from onnx_cbq.errors import UnsupportedOperatorError
from onnx_cbq.gradient.backward import attach, build_backward
from onnx_cbq.gradient.expand import expand, scored_at
from onnx_cbq.gradient.unroll import inputs_of, sums_of, unroll
from onnx_cbq.graph.layers import find_layers
from onnx_cbq.graph.load import load
from onnx_cbq.graph.normalise import normalise
from onnx_cbq.graph.shapes import Example
from onnx_cbq.model import Array
from onnx_cbq.runtime import Session
from tests.gradient.reference import evaluator
from tests.gradient.test_rules import as_double
from tests.graphs import make_model, node
from tests.storage.test_weights_only import RECURRENT, feeds, numbers, recurrent

# Central differences in float64 err by about 1e-9; the gradient is in float32, 6e-8 for each of some hundred sums.
STEP = 1e-5
TOLERANCE = 1e-5


@pytest.mark.parametrize("proto", RECURRENT.values(), ids=RECURRENT)
def test_what_is_written_out_gives_the_same(proto: onnx.ModelProto) -> None:
    """A gate taken for another, a direction that is not turned, samples that have ended and go on."""
    model, example = load(proto), Example(feeds(proto))
    written = unroll(model, example)
    assert not any(one.op_type in ("LSTM", "GRU", "RNN") for one in written.nodes)
    expected, found = (Session(one, "off").run(example.feeds) for one in (model, written))
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=2e-6 * max(1, np.abs(value).max()))


@pytest.mark.parametrize("proto", RECURRENT.values(), ids=RECURRENT)
def test_gradients_through_time_agree_with_finite_differences(proto: onnx.ModelProto) -> None:
    """With respect to what the node reads, and to the inputs of its gates, which is what rows are scored by."""
    model, samples = load(proto), feeds(proto)
    example = Example(samples)
    expanded = expand(model, example)
    assert expanded.notes == ()
    shapes = example.shapes(expanded.model)
    targets = ["x", inputs_of("states")]
    backward = build_backward(expanded.model, shapes, "y", targets)
    names = [backward.gradients[target] for target in targets]
    whole = attach(expanded.model, backward, "y", shapes, ["y", *names])
    seed = np.random.default_rng(5).standard_normal(shapes["y"]).astype(np.float32)
    found = Session(whole).run({**samples, backward.seed: seed})
    # What is added to x W' + b is added to the sums: an input of its own says how y answers.
    skeleton = expanded.model.to_proto()
    place = next(i for i, one in enumerate(skeleton.graph.node) if one.output[0] == inputs_of("states"))
    skeleton.graph.node[place].output[0] = "before"
    skeleton.graph.node.insert(place + 1, helper.make_node("Add", ["before", "probe"], [inputs_of("states")]))
    skeleton.graph.input.append(helper.make_tensor_value_info("probe", onnx.TensorProto.FLOAT, None))
    run, random = evaluator(as_double(skeleton)), np.random.default_rng(6)
    values = {**samples, "probe": np.zeros(shapes[inputs_of("states")], np.float32)}
    exact = {name: value.astype(np.float64) if value.dtype == np.float32 else value for name, value in values.items()}
    pairs: list[tuple[str, Array]] = [("x", found[names[0]]), ("probe", found[names[1]])]
    for given, gradient in pairs:
        direction = random.standard_normal(gradient.shape)
        moved = [{**exact, given: exact[given] + sign * STEP * direction} for sign in (1, -1)]
        ends = [float((next(iter(run.run(["y"], values))) * seed).sum()) for values in moved]
        slope = (ends[0] - ends[1]) / (2 * STEP)
        size = np.abs(gradient).max() * np.sqrt(gradient.size)
        assert abs(slope - (gradient * direction).sum()) < TOLERANCE * size


def test_sums_are_what_gates_take() -> None:
    """Their values are scored; those of the input alone would miss what the states add."""
    proto = recurrent("LSTM", "b", direction="bidirectional")
    model, samples = load(proto), feeds(proto)
    written = unroll(model, Example(samples))
    found = Session(written.with_graph(outputs=[sums_of("states"), "states"]), "off").run(samples)
    w, r, b = (model.weight(name) for name in ("lstm.w", "lstm.r", "b"))
    x, states = samples["x"].transpose(1, 0, 2), found["states"]
    for d, earlier in ((0, np.r_[np.zeros_like(states[:1, 0]), states[:-1, 0]]), (1, None)):
        before = earlier if earlier is not None else np.r_[states[1:, 1], np.zeros_like(states[:1, 1])]
        sums: Array = x @ w[d].T + before @ r[d].T + b[d, : len(w[d])] + b[d, len(w[d]) :]
        part = found[sums_of("states")][:, :, d * len(w[d]) : (d + 1) * len(w[d])]
        np.testing.assert_allclose(part, sums, rtol=0, atol=5e-6)


def test_what_cannot_be_written_out_has_no_scores() -> None:
    """A layer without gradients must not look like one that nothing depends on: it would get 0 bits."""
    proto = recurrent("RNN", "b", activations=["ScaledTanh"])
    example = Example(feeds(proto))
    model = normalise(load(proto), example).model
    layers = find_layers(model, example.shapes(model))
    layer = layers.by_name["lstm.w"]
    with pytest.raises(UnsupportedOperatorError, match="no gradient rule"):
        scored_at(layer, layer.uses[0], expand(model, example).model)


def test_many_steps_are_not_written_out() -> None:
    """A node for each of thousands of steps takes minutes to load."""
    constants = {"w": numbers(1, 1, 2, 3), "r": numbers(2, 1, 2, 2)}
    proto = make_model([node("RNN", "x w r", "y", hidden_size=2)], {"x": [300, "N", 3]}, ["y"], constants)
    model = load(proto)
    assert unroll(model, Example({"x": numbers(3, 300, 2, 3)})).nodes[0].op_type == "RNN"
