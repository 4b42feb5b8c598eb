"""Every attribute of every operator that is put on integers, beside the float operator.

An operator that only moves numbers is written between QuantizeLinear and DequantizeLinear, on the codes, and one with a
kernel of two grids is fused by onnxruntime. Either may read an attribute as if its numbers were floats
(`extrapolation_value`), or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import defs

from onnx_cbq.graph.integer_rules import ARITHMETIC, MOVEMENT, SATURATION
from onnx_cbq.graph.layers import find_layers
from onnx_cbq.graph.load import load
from onnx_cbq.graph.placement import Placement, moves_integers, place_activations
from onnx_cbq.graph.shapes import Example
from onnx_cbq.model import Array, Model
from onnx_cbq.records import ActivationGrid
from onnx_cbq.runtime import Optimization, Session
from onnx_cbq.storage.qdq import simulate_activations
from tests.graphs import make_model, node


@dataclass(frozen=True)
class Case:
    """An operator with one setting of its attributes; `x` [N, 4, 6, 6] comes first, the constants follow."""

    operator: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    constants: tuple[Array | None, ...] = ()
    outputs: int = 1
    second: bool = False  # whether the operator reads `x` twice
    opset: int = 18
    stays_float: bool = False

    @property
    def id(self) -> str:
        given = "-".join(f"{name}={value}" for name, value in self.attributes.items())
        return f"{self.operator}-{given}-{self.opset}-{len(self.constants)}"


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def reals(*values: float) -> Array:
    return np.array(values, np.float32)


def number(value: float) -> Array:
    return np.array(value, np.float32)


POOL: dict[str, Any] = {"kernel_shape": [3, 3], "strides": [2, 2]}
POOLS: list[dict[str, Any]] = [
    {},
    {"pads": [1, 1, 1, 1]},
    {"pads": [1, 0, 0, 1]},
    {"ceil_mode": 1},
    {"ceil_mode": 1, "pads": [1, 1, 1, 1]},
    {"auto_pad": "SAME_UPPER"},
    {"auto_pad": "SAME_LOWER"},
    {"dilations": [2, 2], "strides": [1, 1]},
]
SCALES = (None, reals(1, 1, 1.5, 2))
GROWN = (None, None, ints(3, 4, 9, 10))
# With these a window reaches beyond the pads that are given.
REACHING = {"dilations", "ceil_mode", "auto_pad"}
INCLUDED = [{**POOL, **more, "count_include_pad": 1} for more in POOLS]
CASES = [
    Case("Reshape", {}, (ints(0, 2, -1),)),
    Case("Reshape", {"allowzero": 1}, (ints(-1, 12, 12),)),
    Case("Flatten"),
    Case("Flatten", {"axis": 2}),
    Case("Flatten", {"axis": -1}),
    Case("Squeeze", {}, (ints(1),)),
    Case("Unsqueeze", {}, (ints(1, -1),)),
    Case("Transpose", {"perm": [0, 2, 3, 1]}),
    Case("Transpose"),
    Case("Slice", {}, (ints(1, -2), ints(9, -9), ints(2, 3), ints(2, -1))),
    *(Case("MaxPool", {**POOL, **more}) for more in POOLS),
    Case("MaxPool", {**POOL, "storage_order": 1}),
    Case("Gather", {"axis": 1}, (ints(3, 0, -1),)),
    Case("Gather", {"axis": -1}, (np.array([[0, 2]], np.int64),)),
    Case("Expand", {}, (ints(1, 1, 1, 1),)),
    Case("Tile", {}, (ints(1, 2, 1, 1),)),
    Case("Split", {"axis": 1}, (ints(1, 3),), outputs=2),
    Case("Split", {"axis": -1, "num_outputs": 2}, outputs=2),
    Case("DepthToSpace", {"blocksize": 2}),
    Case("DepthToSpace", {"blocksize": 2, "mode": "CRD"}),
    Case("SpaceToDepth", {"blocksize": 2}, stays_float=True),
    Case("Pad", {}, (ints(0, 0, 1, 2, 0, 0, 0, 1),)),
    Case("Pad", {}, (ints(0, 0, 1, 2, 0, 0, 0, 1), number(1.5)), stays_float=True),
    Case("Pad", {}, (ints(1, 2, 0, 1), number(0), ints(2, 3))),
    Case("Pad", {}, (ints(0, 0, -1, 0, 0, 0, 0, -2),)),
    Case("Pad", {"mode": "reflect"}, (ints(0, 0, 1, 2, 0, 0, 0, 1),)),
    Case("Pad", {"mode": "edge"}, (ints(0, 0, 1, 2, 0, 0, 0, 1),)),
    Case("Pad", {"mode": "wrap"}, (ints(0, 0, 1, 2, 0, 0, 0, 1),), opset=19),
    *(
        Case("Resize", {"coordinate_transformation_mode": mode, "nearest_mode": rounding}, SCALES)
        for mode in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
        for rounding in ("round_prefer_floor", "floor", "ceil", "round_prefer_ceil")
    ),
    Case("Resize", {"coordinate_transformation_mode": "half_pixel_symmetric"}, SCALES, opset=19),
    Case("Resize", {"axes": [2, 3]}, (None, reals(1.5, 0.5)), opset=18),
    Case("Resize", {"keep_aspect_ratio_policy": "not_larger", "axes": [2, 3]}, (None, None, ints(9, 10))),
    Case("Resize", {"exclude_outside": 1, "mode": "cubic"}, SCALES, stays_float=True),
    Case("Resize", {"cubic_coeff_a": -0.5, "mode": "cubic"}, SCALES, stays_float=True),
    Case("Resize", {"mode": "linear"}, SCALES, stays_float=True),
    Case("Resize", {"mode": "linear", "antialias": 1}, (None, reals(1, 1, 0.5, 0.5)), stays_float=True),
    Case(
        "Resize",
        {"coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 0.0},
        (reals(0, 0, -0.3, 0, 1, 1, 1.3, 1), None, ints(3, 4, 9, 10)),
        stays_float=True,
    ),
    Case("Add", second=True),
    Case("Mul", second=True),
    Case("Concat", {"axis": 1}, second=True),
    Case("Concat", {"axis": -1}, second=True),
    *(Case("AveragePool", {**POOL, **more}, opset=19, stays_float="dilations" in more) for more in POOLS),
    *(Case("AveragePool", a, opset=19, stays_float=a.keys() & REACHING != set()) for a in INCLUDED),
    Case("GlobalAveragePool"),
    Case("LeakyRelu"),
    Case("LeakyRelu", {"alpha": 0.5}),
    Case("LeakyRelu", {"alpha": -0.4}),
    Case("Sigmoid"),
    Case("Relu"),
    Case("Clip", {}, (number(0), number(0.7))),
    Case("Clip", {}, (reals(0), reals(0.7))),
    Case("Clip", {}, (number(-0.3),)),
    Case("Clip", {}, (None, number(0.7))),
    Case("Clip", {}, (number(0.2), number(0.7))),
]


def test_every_attribute_of_every_operator_on_integers_has_a_case() -> None:
    """One that nobody tried may mean something else on codes."""
    given: dict[str, set[str]] = {}
    for case in CASES:
        given.setdefault(case.operator, set()).update(case.attributes)
    for operator in (*MOVEMENT, *ARITHMETIC, *SATURATION):
        known = set(defs.get_schema(operator, 21, "").attributes)
        assert known - given.get(operator, set()) == set(), operator


def model_of(case: Case) -> Model:
    constants = {f"c{i}": value for i, value in enumerate(case.constants) if value is not None}
    names = ["x", *(["x2"] if case.second else [])]
    names += ["_" if value is None else f"c{i}" for i, value in enumerate(case.constants)]
    outputs = [f"y{i}" for i in range(case.outputs)]
    shape: list[int | str] = ["N", 1 if case.operator == "Squeeze" else 4, 6, 6]
    inputs = dict.fromkeys(("x", "x2")[: 1 + case.second], shape)
    # What comes behind makes `y` an inner tensor, as it is in a net.
    behind = [node("Neg", name, f"z{i}") for i, name in enumerate(outputs)]
    first = node(case.operator, " ".join(names), " ".join(outputs), **case.attributes)
    return load(
        make_model([first, *behind], inputs, [f"z{i}" for i in range(case.outputs)], constants, opset=case.opset)
    )


LEVELS: tuple[Optimization, ...] = ("off", "all")


def grid_may_saturate(model: Model, operator: onnx.NodeProto) -> bool:
    """As placement decides it, of a tensor in front of the operator that a node makes: from 0 on."""
    low = model.constant(operator.input[1]) if len(operator.input) > 1 and operator.input[1] else None
    return operator.op_type == "Relu" or (low is not None and low.item() == 0)


def grid_over(values: Array) -> ActivationGrid:
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    scale = (high - low) / 255
    return ActivationGrid(scale, round(-low / scale))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_an_operator_on_integers_gives_what_the_float_operator_gives(case: Case) -> None:
    model = model_of(case)
    random = np.random.default_rng(len(case.id))
    shape = (3, *(spec if spec else 1 for spec in (model.inputs[0].shape or ())[1:]))
    # Not about 0, so that a code that is taken for a number cannot go unnoticed.
    feeds = {spec.name: random.uniform(-0.7, 1.3, shape).astype(np.float32) for spec in model.inputs}
    expected = Session(model, "off").run(feeds)
    outputs = [f"y{name[1:]}" for name in expected]
    operator = model.producers["y0"]
    moves = moves_integers(model, "y0")
    computes = operator.op_type in ARITHMETIC and ARITHMETIC[operator.op_type](model, operator)
    saturates = operator.op_type in SATURATION
    assert (moves or computes or saturates) != case.stays_float
    if case.stays_float:
        return
    measured = tuple(feeds) if moves else (*feeds, *outputs)
    grids = {name: grid_over(feeds[name] if name in feeds else -expected[f"z{name[1:]}"]) for name in measured}
    saturated = frozenset(outputs if saturates and grid_may_saturate(model, operator) else ())
    placement = Placement(measured, dict.fromkeys(outputs, "x") if moves else {}, saturated)
    seen = simulate_activations(model, placement, grids).model
    plain, fused = (Session(seen, level).run(feeds) for level in LEVELS)
    # Half a step of each grid for every rounding; what is computed between them has slopes of at most 1.3.
    step = max(grid.scale for grid in grids.values())
    for name, value in expected.items():
        assert fused[name].shape == value.shape
        np.testing.assert_allclose(plain[name], value, rtol=0, atol=(1.3 * len(feeds) + 1) * step / 2 * 1.001)
        # The kernel may round a tie the other way.
        np.testing.assert_allclose(fused[name], plain[name], rtol=0, atol=step * 1.001)


@pytest.mark.parametrize("both", [False, True], ids=["one-side", "both-sides"])
def test_what_has_to_stay_float_is_not_between_two_grids(both: bool) -> None:
    """onnxruntime would take its kernel for integers, and with dilations could not even load the file."""
    pool = node("AveragePool", "r", "p", kernel_shape=[2, 2], dilations=[2, 2])
    nodes = [node("Conv", "x w", "c"), node("Relu", "c", "r"), pool, node("Conv", "p w", "d"), node("Neg", "d", "y")]
    if both:
        nodes += [node("Conv", "r w", "e"), node("Neg", "e", "z")]
    outputs = ["y", "z"] if both else ["y"]
    random = np.random.default_rng(7)
    weight = random.standard_normal((4, 4, 1, 1)).astype(np.float32)
    model = load(make_model(nodes, {"x": ["N", 4, 6, 6]}, outputs, {"w": weight}, opset=19))
    example = Example({"x": random.standard_normal((3, 4, 6, 6)).astype(np.float32)})
    layers = find_layers(model, example.shapes(model))
    placement = place_activations(model, layers)
    assert not {"r", "p"} <= set(placement.measured)
    values = Session(model.with_graph(outputs=list(placement.measured)), "off").run(example.feeds)
    grids = {name: grid_over(value) for name, value in {**values, **example.feeds}.items()}
    seen = simulate_activations(model, placement, grids).model
    plain, fused = (Session(seen, level).run(example.feeds) for level in LEVELS)
    for name, value in plain.items():
        np.testing.assert_allclose(fused[name], value, atol=0.02 * float(np.abs(value).max()))


@pytest.mark.parametrize("opset", [18, 21])
@pytest.mark.parametrize("operator", ["Slice", "Transpose", "MaxPool", "Reshape"])
def test_numbers_that_are_moved_to_a_float_operator_load_with_signed_codes(operator: str, opset: int) -> None:
    """onnxruntime puts a QuantizeLinear of another type behind them from opset 21 on, and refuses what it made."""
    case = next(case for case in CASES if case.operator == operator)
    model = model_of(replace(case, opset=opset))
    x = np.random.default_rng(3).uniform(-1, 1, (3, 4, 6, 6)).astype(np.float32)
    expected = Session(model, "off").run({"x": x})["z0"]
    grid = ActivationGrid(2 / 255, 0, signed=True)
    seen = simulate_activations(model, Placement(("x",), {}, frozenset()), {"x": grid}).model
    found = Session(seen, "all").run({"x": x})["z0"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=grid.scale / 2 * 1.001)
