"""The contract of every gradient rule: it agrees with central finite differences in float64.

Two oracles that share no code with the rules: onnx's reference evaluator runs the forward model for the differences
and the backward graph in float64; onnxruntime runs the same backward graph in float32.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from onnx_cbq.gradient.backward import attach, build_backward
from onnx_cbq.gradient.expand import expand
from onnx_cbq.gradient.rules import RULES
from onnx_cbq.graph.load import load
from onnx_cbq.graph.shapes import Example
from onnx_cbq.model import Array
from onnx_cbq.runtime import Session
from tests.gradient.cases import BATCH, CASES, SETTINGS, Case, case_model
from tests.gradient.reference import evaluator
from tests.graphs import make_model, node

# Central differences with step h err by h^2 f''' / 6 plus rounding 1e-16 |f| / h: about 1e-9 at h = 1e-5. What is
# left is that the rules' own constants (window counts, resize weights) are rounded to float32, 6e-8 each.
STEP = 1e-5
DIFFERENCE_TOLERANCE = 1e-6
# float32 rounds to 6e-8; sums of up to a hundred products of numbers around 1 stay below 1e-5 of the largest.
FLOAT32_TOLERANCE = 2e-5
ZERO = np.array(0.0, np.float32)

# What the issue of the field asks for: each of these has to be differentiable, by a rule or by its definition.
REQUIRED = set(
    """Conv ConvTranspose Gemm MatMul Relu LeakyRelu PRelu Clip Elu Selu Sigmoid HardSigmoid HardSwish Mish
Softplus Tanh Erf Gelu Exp Log Sqrt Pow Abs Neg Reciprocal Add Sub Mul Div Min Max Where Softmax LogSoftmax
BatchNormalization LayerNormalization InstanceNormalization GroupNormalization MaxPool AveragePool LpPool
GlobalAveragePool GlobalMaxPool ReduceMean ReduceSum ReduceMax Reshape Flatten Squeeze Unsqueeze Transpose Concat Split
Slice Gather Pad Expand Tile Identity Cast DepthToSpace SpaceToDepth Resize Einsum""".split()  # noqa: SIM905
)


def test_every_rule_and_every_required_operator_has_a_case() -> None:
    """A rule without a case would never be checked against anything."""
    covered = {case.operator for case in CASES}
    assert set(RULES) - covered == set()
    assert REQUIRED - covered == set()


@pytest.mark.parametrize("case", [*CASES, *SETTINGS], ids=lambda case: case.id)
def test_gradient_agrees_with_finite_differences(case: Case) -> None:
    """Guards every rule against a wrong sign, axis, pad, or a broadcast that is not summed back."""
    random = np.random.default_rng(len(case.id))
    values = {f"x{i}": random.uniform(case.low, case.high, s).astype(np.float32) for i, s in enumerate(case.inputs)}
    graph_inputs = [name for name, value in values.items() if value.shape[:1] == (BATCH,)]
    model = load(case_model(case, {name: values[name] for name in values if name not in graph_inputs}))
    feeds = {name: values[name] for name in graph_inputs}
    example = Example(feeds)
    expanded = expand(model, example)
    assert expanded.notes == ()
    shapes = example.shapes(expanded.model)
    backward = build_backward(expanded.model, shapes, "y", list(values))
    outputs = [backward.gradients[name] for name in values]
    gradient_model = attach(expanded.model, backward, "y", shapes, outputs)
    seed = random.uniform(-1.0, 1.0, shapes["y"]).astype(np.float32)

    expected = finite_differences(as_double(case_model(case, {})), values, seed)
    double = evaluator(as_double(gradient_model.to_proto()))
    exact = double.run(outputs, {n: v.astype(np.float64) for n, v in (feeds | {backward.seed: seed}).items()})
    single = Session(gradient_model).run(feeds | {backward.seed: seed}, outputs)
    for name, output, gradient in zip(values, outputs, exact, strict=True):
        scale = np.abs(expected[name]).max()
        assert scale > 0
        assert gradient.shape == values[name].shape
        np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=DIFFERENCE_TOLERANCE * scale)
        np.testing.assert_allclose(single[output], expected[name], rtol=0, atol=FLOAT32_TOLERANCE * scale)


@pytest.mark.parametrize(("cut", "root"), [("Clip", "Log"), ("Clip", "Sqrt"), ("Relu", "Sqrt"), ("Relu", "Pow")])
def test_nothing_passes_where_a_gradient_is_cut(cut: str, root: str) -> None:
    """The slopes of roots and Log are infinite at 0, where Clip and Relu end: 0 times that is no number."""
    constants = {"low": ZERO} if cut == "Clip" else {}
    half = {"half": np.array(0.5, np.float32)} if root == "Pow" else {}
    nodes = [node(cut, " ".join(["x", *constants]), "c"), node(root, " ".join(["c", *half]), "y")]
    model = load(make_model(nodes, {"x": ["N", 3]}, ["y"], {**constants, **half}))
    feeds = {"x": np.array([[-1.0, 0.0, 4.0]], np.float32)}
    shapes = Example(feeds).shapes(model)
    backward = build_backward(model, shapes, "y", ["x"])
    whole = attach(model, backward, "y", shapes, [backward.gradients["x"]])
    found = Session(whole).run({**feeds, backward.seed: np.ones((1, 3), np.float32)})
    np.testing.assert_array_equal(found[backward.gradients["x"]], [[0.0, 0.0, 0.25]])


def as_double(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model computing in float64: inputs, constants, cast targets and fill values."""
    double = onnx.ModelProto()
    double.CopyFrom(proto)
    scales = {name for n in double.graph.node if n.op_type == "Resize" for name in n.input[1:3]}
    for info in double.graph.input:
        if info.type.tensor_type.elem_type == TensorProto.FLOAT:
            info.type.tensor_type.elem_type = TensorProto.DOUBLE
    for tensor in double.graph.initializer:
        if tensor.name not in scales:
            widen(tensor)
    for attribute in (attribute for n in double.graph.node for attribute in n.attribute):
        if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.DOUBLE
        if attribute.type == onnx.AttributeProto.TENSOR:
            widen(attribute.t)
    return double


def widen(tensor: TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT:
        value = onnx.numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))


def finite_differences(forward: onnx.ModelProto, values: dict[str, Array], seed: Array) -> dict[str, Array]:
    """d sum(seed y) / dx by central differences, one element at a time.

    Samples know nothing of each other, so an element of each is moved at once; all see a constant move.
    """
    oracle = evaluator(forward)
    exact = {name: value.astype(np.float64) for name, value in values.items()}

    def phi(value: Array, index: tuple[int | slice, ...], step: float) -> Array:
        start = value[index].copy()
        value[index] = start + step
        found = next(iter(oracle.run(["y"], exact))) * seed
        value[index] = start
        return np.asarray(found.reshape(len(found), -1).sum(axis=1))

    gradients = {}
    for name, value in exact.items():
        gradient = np.zeros_like(value)
        each = value.shape[:1] == (BATCH,) and len(seed) == BATCH
        for place in np.ndindex(value.shape[1:] if each else value.shape):
            index = (slice(None), *place) if each else place
            moved = (phi(value, index, STEP) - phi(value, index, -STEP)) / (2 * STEP)
            gradient[index] = moved if each else moved.sum()
        gradients[name] = gradient
    return gradients
