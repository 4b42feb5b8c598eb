"""The contract of every operator: onnxruntime's outputs, and the gradients of the backward graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, assume, given, reject, settings
from hypothesis import strategies as st
from onnx import helper
from onnx.defs import onnx_opset_version

from onnx_cbq.errors import ModelError
from onnx_cbq.gradient.backward import attach, build_backward
from onnx_cbq.gradient.expand import expand
from onnx_cbq.gradient.rules import NO_GRADIENT, RULES
from onnx_cbq.graph.load import load
from onnx_cbq.graph.shapes import Example
from onnx_cbq.model import Array, Model
from onnx_cbq.runtime import Session
from onnx_cbq.torch_graph import TorchGraph
from onnx_cbq.torch_graph.operators import OPERATORS
from tests.gradient.cases import BATCH, CASES, Case, case_model, floats
from tests.graphs import make_model, node
from tests.torch_graph.cases import MORE_CASES

# The goal set for this module. float32 rounds to 6e-8; a sum of some hundred products stays below.
TOLERANCE = 1e-5
# Both sides round, in another order: twice the tolerance that the rules themselves have against exact differences.
GRADIENT_TOLERANCE = 4e-5
CPU = torch.device("cpu")


def compare(value: torch.Tensor, expected: Array, tolerance: float = TOLERANCE) -> None:
    found = value.detach().cpu().numpy()
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    scale = float(np.abs(expected.astype(np.float64)).max(initial=0.0)) or 1.0
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


def drawn(case: Case) -> tuple[Model, dict[str, Array]]:
    """The case's model, and its inputs; what does not follow the batch is a constant of the model."""
    random = np.random.default_rng(len(case.id))
    values = {f"x{i}": random.uniform(case.low, case.high, s).astype(np.float32) for i, s in enumerate(case.inputs)}
    feeds = {name: value for name, value in values.items() if len(value) == BATCH}
    proto = case_model(case, {name: value for name, value in values.items() if name not in feeds})
    return load(proto), feeds


def outputs_agree(proto: onnx.ModelProto, feeds: dict[str, Array]) -> None:
    model = load(proto)
    found = TorchGraph(model, device=CPU)({name: torch.tensor(value) for name, value in feeds.items()})
    for name, expected in Session(model).run(feeds).items():
        compare(found[name], expected)


def test_every_operator_of_the_backward_graph_is_in_the_table() -> None:
    """A model that can be scored can be trained; an operator without a case would never be checked."""
    assert (RULES.keys() | NO_GRADIENT) - OPERATORS.keys() == set()
    in_graphs = {"And", "Or", "Xor", "Not", "NonZero", "ConstantOfShape", "Range", "OneHot"}
    elsewhere = {"LSTM", "GRU", "RNN"}  # of `test_recurrent`
    assert OPERATORS.keys() - {case.operator for case in (*CASES, *MORE_CASES)} == in_graphs | elsewhere


@pytest.mark.parametrize("case", [*CASES, *MORE_CASES], ids=lambda case: case.id)
def test_outputs_are_those_of_onnxruntime(case: Case) -> None:
    """Guards every attribute and operand against being misread."""
    if case.opset > onnx_opset_version():
        pytest.skip(f"this onnx knows operator sets up to {onnx_opset_version()}")
    model, feeds = drawn(case)
    try:
        expected = Session(model).run(feeds)["y"]
    except ModelError as error:
        pytest.fail(f"onnxruntime cannot be the oracle: {error}")
    found = TorchGraph(model, device=CPU)({name: torch.tensor(value) for name, value in feeds.items()})
    compare(found["y"], expected)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_gradients_are_those_of_the_backward_graph(case: Case) -> None:
    """Guards against a resolved constant or a detached tensor that cuts autograd off, and against other slopes."""
    model, feeds = drawn(case)
    example = Example(feeds)
    expanded = expand(model, example).model
    shapes = example.shapes(expanded)
    names = [f"x{i}" for i in range(len(case.inputs))]
    backward = build_backward(expanded, shapes, "y", names)
    seed = np.random.default_rng(1).uniform(-1.0, 1.0, shapes["y"]).astype(np.float32)
    outputs = [backward.gradients[name] for name in names]
    expected = Session(attach(expanded, backward, "y", shapes, outputs)).run(feeds | {backward.seed: seed}, outputs)

    module = TorchGraph(model, device=CPU)
    inputs = {name: torch.tensor(value, requires_grad=True) for name, value in feeds.items()}
    module(inputs)["y"].backward(torch.tensor(seed))
    for name, output in zip(names, outputs, strict=True):
        gradient = (inputs | module.weights)[name].grad
        assert gradient is not None
        compare(gradient, expected[output], GRADIENT_TOLERANCE)


def test_logic_and_positions_are_those_of_onnxruntime() -> None:
    x = np.array([[1, -2, 0], [0, 3, -1]], np.float32)
    proto = make_model(
        [
            node("Greater", "x zero", "positive"),
            node("Less", "x zero", "negative"),
            *(node(op, "positive negative", op) for op in ("And", "Or", "Xor")),
            node("Not", "positive", "Not"),
            node("NonZero", "x", "NonZero"),
            node("Cast", "x", "whole", to=7),
            node("OneHot", "whole depth values", "OneHot", axis=1),
        ],
        {"x": ["N", 3]},
        ["And", "Or", "Xor", "Not", "NonZero", "OneHot"],
        {"zero": np.array(0, np.float32), "depth": np.array([3]), "values": np.array([-1, 2], np.float32)},
    )
    outputs_agree(proto, {"x": x})


def test_special_values_are_treated_as_onnxruntime_treats_them() -> None:
    """Infinities, NaN, halves to round, numbers to cut to integers, exponents that overflow."""
    x = np.array([[np.inf, -np.inf, np.nan, 0], [0.5, 1.5, -2.5, -0.0], [-1.7, 90, -90, 2.9]], np.float32)
    finite = ["Round", "Sign", "Floor", "Softplus", "Elu", "Selu", "Sigmoid", "Mish", "HardSwish", "Erf", "Gelu"]
    proto = make_model(
        [
            node("IsInf", "x", "both"),
            node("IsInf", "x", "positive", detect_negative=0),
            node("IsInf", "x", "negative", detect_positive=0),
            node("IsNaN", "x", "nan"),
            node("Slice", "x one three", "finite"),
            *(node(operator, "finite", operator) for operator in finite),
            node("Cast", "finite", "whole", to=7),
            node("Cast", "finite", "truth", to=9),
            node("Div", "whole two", "halves"),
        ],
        {"x": [3, 4]},
        ["both", "positive", "negative", "nan", *finite, "whole", "truth", "halves"],
        {"one": np.array([1]), "three": np.array([3]), "two": np.array(-2)},
        opset=20,
    )
    outputs_agree(proto, {"x": x})


def test_shape_arithmetic_follows_the_sizes_of_each_run() -> None:
    """Sizes that are computed must not be frozen when the module is made: another batch, another width."""
    fill = helper.make_tensor("value", 1, [1], [2.5])
    proto = make_model(
        [
            node("Shape", "x", "s"),
            node("Gather", "s first", "n"),
            node("Concat", "n rest", "target", axis=0),
            node("Reshape", "x target", "r"),
            node("Shape", "x", "width", start=1),
            node("Add", "width one", "wider"),
            node("Concat", "n wider", "wide", axis=0),
            node("ConstantOfShape", "wide", "filled", value=fill),
            node("Squeeze", "width", "limit"),
            node("Range", "zero limit step", "counts"),
            node("Slice", "x zeros width last", "sliced"),
            node("Gather", "x counts", "gathered", axis=1),
            node("Cast", "counts", "z", to=1),
            node("Div", "counts two", "halves"),
        ],
        {"x": ["N", "W"]},
        ["r", "filled", "counts", "sliced", "gathered", "z", "halves"],
        {
            "first": np.array([0]),
            "rest": np.array([-1, 2]),
            "one": np.array([1]),
            "zero": np.array(0),
            "step": np.array(1),
            "zeros": np.array([0]),
            "last": np.array([1]),
            "two": np.array(-2),
        },
    )
    model = load(proto)
    module = TorchGraph(model, device=CPU)
    for shape in ((2, 4), (5, 6)):
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        for name, expected in Session(model).run({"x": x}).items():
            compare(module(torch.tensor(x))[name], expected)


AXIS = st.tuples(
    st.integers(1, 4), st.integers(1, 3), st.integers(1, 2), st.integers(0, 3), st.integers(0, 3), st.integers(5, 11)
)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.filter_too_much])
@given(
    st.sampled_from(["Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"]),
    st.lists(AXIS, min_size=1, max_size=2),
    st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]),
    st.booleans(),
    st.booleans(),
)
def test_windows_of_any_settings_lie_where_onnxruntime_puts_them(
    operator: str, axes: list[tuple[int, ...]], auto_pad: str, ceil: bool, include_pad: bool
) -> None:
    kernel, strides, dilations, before, after, sizes = (list(values) for values in zip(*axes, strict=True))
    pooling = operator.endswith("Pool")
    if pooling:  # onnxruntime takes no pad as large as the window
        before, after = ([min(p, k - 1) for p, k in zip(pads, kernel, strict=True)] for pads in (before, after))
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "dilations": dilations}
    if auto_pad.startswith("SAME") and operator != "ConvTranspose":
        attributes["dilations"] = [1] * len(axes)
    attributes |= {"pads": before + after} if auto_pad == "NOTSET" else {"auto_pad": auto_pad}
    attributes |= {"ceil_mode": int(ceil)} if pooling else {}
    attributes |= {"count_include_pad": int(include_pad)} if operator == "AveragePool" else {}
    constants = {} if pooling else {"w": floats(2, 2, *kernel), "b": floats(2)}
    inputs = " ".join(["x", *constants])
    shape = [2, 2, *sizes]
    model = load(make_model([node(operator, inputs, **attributes)], {"x": shape}, ["y"], constants, opset=19))
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    try:
        expected = Session(model).run({"x": x})["y"]
    except ModelError:
        reject()  # settings that leave no window
    assume(expected.size)
    compare(TorchGraph(model, device=CPU)(torch.tensor(x))["y"], expected)
