"""The models of the steps beside one model per subnet, made here from the original by setting weights to 0."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from onnx_cbq.model import Array
from onnx_cbq.stepping.assignment import step_macs
from onnx_cbq.stepping.emit import StepModel, emit_steps
from onnx_cbq.stepping.masks import Nested, subnet_model
from onnx_cbq.stepping.units import Units
from tests.stepping.nets import counted_macs, joined_net, padded_net, random_nested, units_of

STEPS = 4
# Sums in another order.
TOLERANCE = 2e-6
NETS: dict[str, Callable[[], onnx.ModelProto]] = {"padded": padded_net, "joined": joined_net}


def monolith(proto: onnx.ModelProto, units: Units, nested: Nested, subnet: int) -> onnx.ModelProto:
    """A whole model of one subnet: weights from units that it may not read are 0, the head has the subnet's bias."""
    a = nested.assignment
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    products = {p.layer.weight: p for p in (*units.hidden, units.head)}
    for tensor in copy.graph.initializer:
        value = numpy_helper.to_array(tensor).copy()
        if tensor.name in products:
            product = products[tensor.name]
            inputs = a[units.of[product.use.activation]]
            rows = value.T if product.layer.operator == "Gemm" and product.layer.weight_axis == 1 else value
            for o in range(len(rows)):
                own = subnet if product is units.head else a[units.of[product.use.output][o]]
                if product.layer.groups == 1:
                    rows[o][inputs > own] = 0
        elif tensor.name == units.head.use.bias and nested.biases is not None:
            value = nested.biases[subnet - 1]
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return copy


def run_all(steps: tuple[StepModel, ...], feeds: dict[str, Array]) -> list[dict[str, Array]]:
    """What each step gives; it sees nothing but its inputs."""
    values, found = dict(feeds), []
    for step in steps:
        content = step.model.to_proto()
        onnx.checker.check_model(content, full_check=True)
        session = onnxruntime.InferenceSession(content.SerializeToString())
        assert {i.name for i in session.get_inputs()} == set(step.inputs)
        made = session.run(None, {name: values[name] for name in step.inputs})
        found.append(dict(zip([o.name for o in session.get_outputs()], made, strict=True)))
        values |= found[-1]
    return found


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("seed", range(3))
def test_steps_give_what_each_subnet_gives_as_one_model(name: str, seed: int) -> None:
    proto = NETS[name]()
    units, example = units_of(proto)
    nested = random_nested(units, STEPS, seed)
    for feeds in example.runs(units.model):
        found = run_all(emit_steps(units, nested), dict(feeds))
        for k in range(1, STEPS + 1):
            whole = onnxruntime.InferenceSession(monolith(proto, units, nested, k).SerializeToString())
            expected = whole.run(None, dict(feeds))[0]
            np.testing.assert_allclose(found[k - 1]["y"], expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


@pytest.mark.parametrize(("name", "dynamic"), [("residual", True), ("depthwise", True), ("residual", False)])
def test_steps_of_exported_nets_give_what_their_subnets_give(
    exported: Callable[..., onnx.ModelProto], name: str, *, dynamic: bool
) -> None:
    """Beside `subnet_model`, which the command checks its own steps with."""
    units, example = units_of(exported(name, dynamo=False, dynamic_batch=dynamic))
    nested = random_nested(units, STEPS, 0)
    found = run_all(emit_steps(units, nested), dict(example.feeds))
    for k in range(1, STEPS + 1):
        whole = onnxruntime.InferenceSession(subnet_model(units, nested, k).to_proto().SerializeToString())
        expected = whole.run(None, dict(example.feeds))[0]
        logits = found[k - 1][units.logits.output]
        np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


@pytest.mark.parametrize("name", NETS)
def test_nothing_is_computed_twice(name: str) -> None:
    """Multiplications counted in the files; together those of the largest subnet, in which each pair stands once."""
    units, example = units_of(NETS[name]())
    nested = random_nested(units, STEPS, 1)
    values: dict[str, Array] = dict(example.feeds)
    counted = []
    for step, made in zip(steps := emit_steps(units, nested), run_all(steps, values), strict=True):
        content = step.model.to_proto()
        counted.append(counted_macs(content, {name: values[name] for name in step.inputs}))
        values |= made
    np.testing.assert_array_equal(counted, step_macs(units, nested.assignment, STEPS))


def test_every_weight_that_is_used_stands_in_one_file() -> None:
    """By their values, which are all different."""
    units, _ = units_of(padded_net())
    nested = random_nested(units, STEPS, 2)
    stored = [
        numpy_helper.to_array(tensor).reshape(-1)
        for step in emit_steps(units, nested)
        for tensor in step.model.to_proto().graph.initializer
        if tensor.name.startswith("w")
    ]
    values = np.concatenate(stored)
    assert len(np.unique(values)) == len(values)
    allowed = sum(int((monolith_weights != 0).sum()) for monolith_weights in _weights_of_largest(units, nested))
    assert len(values) == allowed


def _weights_of_largest(units: Units, nested: Nested) -> list[Array]:
    """Weights of the largest subnet, without the rows of units that are in none."""
    model, found = subnet_model(units, nested, STEPS), []
    for product in (*units.hidden, units.head):
        value = model.weight(product.layer.weight)
        if product is not units.head:
            value = product.layer.rows(value)[nested.assignment[units.of[product.use.output]] <= STEPS]
        found.append(value)
    return found


def test_a_step_without_units_only_has_another_bias() -> None:
    units, example = units_of(padded_net())
    assignment = np.where(np.arange(units.count) % 2 == 0, 1, 3)
    for product in units.hidden:
        assert (assignment[units.of[product.use.output]] == 1).any()
    random = random_nested(units, 3, 0)
    nested = Nested(assignment, random.constants, random.biases, 3)
    steps = emit_steps(units, nested)
    assert steps[1].inputs == ("z@1",)
    found = run_all(steps, dict(example.feeds))
    assert nested.biases is not None
    np.testing.assert_allclose(
        found[1]["z"] - found[0]["z"], np.tile(nested.biases[1] - nested.biases[0], (3, 1)), atol=1e-5
    )


def test_carried_tensors_are_those_that_later_steps_read() -> None:
    units, _ = units_of(padded_net())
    steps = emit_steps(units, random_nested(units, STEPS, 0))
    made: set[str] = {"x"}
    read = {name for step in steps for name in step.inputs}
    for step in steps:
        assert set(step.inputs) <= made
        assert step.outputs[:2] == ("y", "z")
        assert set(step.outputs[2:]) <= read
        made |= set(step.outputs[2:])
    assert steps[-1].outputs == ("y", "z")
