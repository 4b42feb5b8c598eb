"""Branches of If, Loop and Scan read the graph around them: rewrites must neither rename nor remove what they read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnx_cbq
from onnx_cbq.graph.layers import find_layers
from onnx_cbq.graph.load import load
from onnx_cbq.graph.normalise import normalise
from onnx_cbq.graph.shapes import Example
from onnx_cbq.model import Model
from onnx_cbq.model.captures import branches, inner_names, is_sealed, seal, unseal
from onnx_cbq.runtime import Session
from tests.graphs import make_model, node

RANDOM = np.random.default_rng(3)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def branch(name: str, nodes: list[onnx.NodeProto], output: str, constants: dict[str, np.ndarray]) -> onnx.GraphProto:
    info = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    tensors = [numpy_helper.from_array(value, title) for title, value in constants.items()]
    return helper.make_graph(nodes, name, [], [info], tensors)


def nested() -> onnx.NodeProto:
    """An If whose first branch has an If that reads `r` and `factor` two levels further out."""
    inner = node("If", "positive", "i", then_branch=branch("a", [node("Mul", "r factor", "p")], "p", {}))
    inner.attribute.append(helper.make_attribute("else_branch", branch("b", [node("Neg", "r", "q")], "q", {})))
    one = branch("then", [node("Greater", "mean zero", "positive"), inner, node("Abs", "i", "o")], "o", {})
    other = branch("else", [node("Add", "r own", "o2")], "o2", {"own": np.array(1, np.float32)})
    return node("If", "condition", "s", then_branch=one, else_branch=other)


def branching() -> onnx.ModelProto:
    """A net with a Relu that only branches read, beside the layers; its If depends on the samples."""
    nodes = [
        node("Conv", "x w", "c", pads=[1] * 4),
        node("Relu", "c", "r"),
        node("ReduceMean", "x", "mean", keepdims=0),
        node("Greater", "mean zero", "condition"),
        nested(),
        node("GlobalAveragePool", "s", "g"),
        node("Flatten", "g", "f"),
        node("Gemm", "f v b"),
    ]
    constants = {"w": normal(16, 3, 3, 3), "v": normal(16, 3), "b": normal(3)}
    constants |= {"factor": np.array(0.5, np.float32), "zero": np.array(0, np.float32)}
    return make_model(nodes, {"x": ["N", 3, 6, 6]}, ["y"], constants)


def test_a_sealed_node_reads_what_its_branches_read_and_unsealing_gives_it_back() -> None:
    original = nested()
    sealed = seal(original)
    assert is_sealed(sealed)
    assert sealed.input[0] == "condition"
    assert sorted(sealed.input[1:]) == ["factor", "mean", "r", "zero"]
    assert {"positive", "own", "o2", "q"} <= inner_names(sealed)
    assert {graph.name for graph in branches(sealed)} == {"then", "else"}
    proto = make_model([sealed], {}, ["s"])
    assert list(unseal(proto).graph.node) == [original]
    assert is_sealed(proto.graph.node[0])  # the argument is not written to


def test_a_branch_follows_when_what_it_reads_is_renamed() -> None:
    proto = make_model([seal(nested())], {}, ["s"])
    read = proto.graph.node[0].input
    read[list(read).index("r")] = "r_dq"
    inner = next(n for g in branches(unseal(proto).graph.node[0]) for n in g.node if n.op_type == "If")
    read = {name for graph in branches(inner) for n in graph.node for name in n.input}
    assert read == {"r_dq", "factor"}


def test_names_inside_hide_those_outside() -> None:
    """`own` is an initializer of the branch: a tensor of that name outside is another one."""
    sealed = seal(nested())
    assert "own" not in sealed.input


def test_plain_nodes_are_not_touched() -> None:
    plain = node("Relu", "x")
    assert seal(plain) is plain
    proto = make_model([plain], {"x": [1]}, ["y"])
    assert unseal(proto) is proto


def test_passes_keep_the_outputs_of_a_net_with_branches() -> None:
    model = load(branching())
    example = Example.made_up(model)
    normalised = normalise(model, example)
    assert normalised.notes == ()
    before, after = (Session(m).run(example.feeds)["y"] for m in (model, normalised.model))
    np.testing.assert_allclose(before, after, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("storage", ["int8", "packed"])
def test_a_net_with_branches_is_quantized(storage: str) -> None:
    proto = branching()
    x = normal(24, 3, 6, 6)
    samples = onnx_cbq.CalibrationSet.from_arrays({"x": x}, np.arange(24) % 3)
    config = onnx_cbq.QuantizeConfig(method="uniform", bits=8, storage=storage, rounding="nearest")
    result = onnx_cbq.quantize(proto, samples, config)
    onnx.checker.check_model(result.model.to_proto(), full_check=True)
    floats, found = (Session(m).run({"x": x})["y"] for m in (load(proto), result.model))
    assert np.abs(floats - found).max() < 0.1 * np.abs(floats).max()


def test_layers_in_branches_stay_float_and_are_listed() -> None:
    one = branch("then", [node("Gemm", "x u", "o")], "o", {"u": normal(4, 4)})
    nodes = [
        node("ReduceMean", "x", "m", keepdims=0),
        node("Greater", "m zero", "condition"),
        node("If", "condition", "h", then_branch=one, else_branch=branch("e", [node("Neg", "x", "o2")], "o2", {})),
        node("Gemm", "h v"),
    ]
    proto = make_model(nodes, {"x": ["N", 4]}, ["y"], {"zero": np.array(0, np.float32), "v": normal(4, 2)})
    model = Model.from_proto(proto)
    found = find_layers(model, Example({"x": normal(3, 4)}).shapes(model))
    assert [layer.weight for layer in found] == ["v"]
    assert [(entry.operator, entry.weights) for entry in found.left_float] == [("If", 16)]


@pytest.mark.parametrize("taken", [True, False])
def test_the_branch_that_a_constant_chooses_is_taken(taken: bool) -> None:
    """Its layers would stay float in an If; names in it may be those of tensors around it."""
    u = normal(4, 4)
    inner = node("If", "later", "o", then_branch=branch("a", [node("Gemm", "x q", "h")], "h", {"q": u}),
                 else_branch=branch("b", [node("Neg", "x", "y")], "y", {}))  # fmt: skip
    nodes = [
        node("ReduceMean", "x", "m", keepdims=0),
        node("Greater", "m zero", "later"),
        node("Not", "no", "yes"),
        node("If", "yes", "h",
             then_branch=branch("t", [node("MatMul", "x u", "y2"), inner, node("Add", "y2 o", "y")], "y", {"u": u}),
             else_branch=branch("e", [node("Identity", "x", "z")], "z", {})),
        node("Gemm", "h v"),
    ]  # fmt: skip
    constants = {"zero": np.array(0, np.float32), "v": normal(4, 2), "no": np.array(not taken)}
    model = load(make_model(nodes, {"x": ["N", 4]}, ["y"], constants))
    example = Example({"x": normal(3, 4)})
    found = normalise(model, example)
    assert found.notes == ()
    assert [node.op_type for node in found.model.nodes].count("If") == taken
    layers = find_layers(found.model, example.shapes(found.model))
    assert len(layers) == 1 + taken
    before, after = (Session(m, "off").run(example.feeds)["y"] for m in (model, found.model))
    np.testing.assert_allclose(before, after, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("storage", ["int8", "packed"])
@pytest.mark.parametrize("steps", [1, 2])
def test_what_is_moved_in_front_of_a_branch_is_moved_as_integers(storage: str, steps: int, tmp_path: Path) -> None:
    """onnxruntime puts a QuantizeLinear behind a Reshape of what was dequantized, and aborts if a branch reads it."""
    shapes = [np.array([0, 16, 36]), np.array([0, 16, 6, 6])][2 - steps :]
    moved = [
        node("Reshape", f"{'r' if i == 0 else f'm{i}'} shape{i}", "m" if i == steps - 1 else f"m{i + 1}")
        for i in range(steps)
    ]
    nodes = [
        node("Conv", "x w", "r", pads=[1] * 4),
        *moved,
        node("ReduceMean", "x", "mean", keepdims=0),
        node("Greater", "mean zero", "condition"),
        node(
            "If",
            "condition",
            "s",
            then_branch=branch("then", [node("Abs", "m", "o")], "o", {}),
            else_branch=branch("else", [node("Neg", "m", "o2")], "o2", {}),
        ),
        node("GlobalAveragePool", "s", "g"),
        node("Flatten", "g", "f"),
        node("Gemm", "f v b"),
    ]
    constants = {"w": normal(16, 3, 3, 3), "v": normal(16, 3), "b": normal(3), "zero": np.array(0, np.float32)}
    constants |= {f"shape{i}": shape for i, shape in enumerate(shapes)}
    model = make_model(nodes, {"x": ["N", 3, 6, 6]}, ["y"], constants)
    samples = onnx_cbq.CalibrationSet.from_arrays(normal(24, 3, 6, 6), np.arange(24) % 3)
    config = onnx_cbq.QuantizeConfig(bits=8, method="uniform", rounding="nearest", storage=storage)
    onnx_cbq.quantize(model, samples, config).save(tmp_path / "q.onnx")
