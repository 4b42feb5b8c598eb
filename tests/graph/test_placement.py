"""Which activations are quantized. Whether onnxruntime then fuses them is tested where they are written (emit)."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnx_cbq.graph.layers import find_layers
from onnx_cbq.graph.load import load
from onnx_cbq.graph.placement import Placement, place_activations
from onnx_cbq.graph.shapes import Example
from onnx_cbq.records import FUSED, PlacementRules
from tests.graphs import make_model, node

SHAPE: list[int | str] = ["N", 4, 6, 6]
CONSTANTS = {"w": np.ones((4, 4, 1, 1), np.float32), "v": np.ones((4, 4, 1, 1), np.float32)}


def place(
    nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray] | None = None, rules: PlacementRules = FUSED
) -> Placement:
    model = load(make_model(nodes, {"x": SHAPE}, ["y"], CONSTANTS | (constants or {})))
    return place_activations(model, find_layers(model, Example.made_up(model).shapes(model)), rules)


def test_relu_belongs_to_the_layer_in_front() -> None:
    placed = place([node("Conv", "x w", "a"), node("Relu", "a", "b"), node("Conv", "b v", "c"), node("Exp", "c")])
    assert placed.measured == ("b", "c", "x")
    assert placed.saturated == {"b"}


def test_the_graph_output_stays_float() -> None:
    """Class scores are what is compared; nothing is gained by rounding them last."""
    assert place([node("Conv", "x w", "a"), node("Relu", "a", "b"), node("Conv", "b v")]).measured == ("b", "x")


def test_a_relu_that_is_not_the_only_reader_stands_alone() -> None:
    nodes = [node("Conv", "x w", "a"), node("Relu", "a", "b"), node("Add", "a b", "c"), node("Conv", "c v")]
    placed = place(nodes)
    assert set(placed.measured) == {"x", "a", "b", "c"}
    assert not placed.saturated


def test_residual_addition_and_both_branches_are_quantized() -> None:
    nodes = [node("Conv", "x w", "a"), node("Add", "a x", "b"), node("Relu", "b", "c"), node("Conv", "c v")]
    assert set(place(nodes).measured) == {"x", "a", "c"}


def test_moved_numbers_share_the_grid() -> None:
    nodes = [
        node("Conv", "x w", "a"),
        node("Relu", "a", "b"),
        node("MaxPool", "b", "c", kernel_shape=[2, 2], strides=[2, 2]),
        node("Transpose", "c", "d", perm=[0, 1, 3, 2]),
        node("Conv", "d v", "e"),
        node("Relu", "e"),
    ]
    placed = place(nodes)
    assert placed.shared == {"c": "b", "d": "c"}
    assert placed.grid_of("d") == "b"


@pytest.mark.parametrize(("value", "shared"), [(0.0, True), (1.0, False)])
def test_padding_moves_integers_only_with_zero(value: float, shared: bool) -> None:
    """Zero is a level of every grid; another number may lie between two."""
    nodes = [node("Conv", "x w", "a"), node("Pad", "a pads value", "b"), node("Conv", "b v", "c"), node("Relu", "c")]
    constants = {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "value": np.array(value, np.float32)}
    assert ("b" in place(nodes, constants).shared) is shared


def test_float_operators_stay_float() -> None:
    """Nothing is gained by rounding in front of an operator without an integer kernel."""
    nodes = [node("Exp", "x", "a"), node("Log", "a", "b"), node("Conv", "b w", "c"), node("Elu", "c")]
    assert set(place(nodes).measured) == {"b", "c"}


def test_only_layers_with_integer_kernels_want_integers() -> None:
    nodes = [node("Exp", "x", "a"), node("ConvTranspose", "a w", "b"), node("Exp", "b", "c"), node("Conv", "c v")]
    assert set(place(nodes).measured) == {"c"}


RESIDUAL = [
    node("Conv", "x w", "a"),
    node("Relu", "a", "r"),
    node("Conv", "r v", "c"),
    node("Add", "c x", "s"),
    node("Relu", "s", "t"),
    node("MaxPool", "t", "p", kernel_shape=[2, 2], strides=[2, 2]),
    node("AveragePool", "p", "q", kernel_shape=[3, 3]),
    node("Concat", "q q", "j", axis=1),
    node("Exp", "j", "y"),
]


def test_operands_are_what_layers_read_and_the_other_branch() -> None:
    """No output of a layer is quantized, and nothing shares a grid: TensorRT fuses the layer with what follows."""
    placed = place(RESIDUAL, rules=PlacementRules("operands"))
    assert placed.measured == ("r", "x")
    assert not placed.shared


def test_of_a_residual_of_two_layers_one_branch_is_quantized() -> None:
    nodes = [node("Conv", "x w", "a"), node("Conv", "x v", "b"), node("Add", "a b", "s"), node("Conv", "s w")]
    assert place(nodes, rules=PlacementRules("operands")).measured == ("a", "s", "x")


def test_what_two_read_is_not_fused_with_the_addition() -> None:
    """The output of a layer that something else reads as well cannot stay inside."""
    nodes = [node("Conv", "x w", "a"), node("Exp", "a", "e"), node("Add", "a e", "s"), node("Conv", "s v")]
    assert place(nodes, rules=PlacementRules("operands")).measured == ("s", "x")


def test_everywhere_is_every_tensor_but_in_front_of_a_relu() -> None:
    placed = place(RESIDUAL, rules=PlacementRules("everywhere"))
    assert placed.measured == ("c", "j", "q", "r", "t", "x", "y")
    assert placed.shared == {"p": "t"}
    assert placed.saturated == {"r", "t"}


def test_more_operators_may_keep_a_grid_or_hold_grids_together() -> None:
    rules = PlacementRules("everywhere", keeping=frozenset(("AveragePool",)), alike=frozenset(("Concat",)))
    placed = place(RESIDUAL, rules=rules)
    assert placed.shared == {"p": "t", "q": "p"}
    assert placed.grid_of("q") == "t"
    assert placed.alike == (frozenset(("t", "j")),)


def test_groups_that_meet_are_one() -> None:
    nodes = [
        node("Conv", "x w", "a"),
        node("Conv", "x v", "b"),
        node("Concat", "a b", "j", axis=1),
        node("Sigmoid", "a", "g"),
        node("Concat", "a g", "k", axis=1),
        node("Add", "j k"),
    ]
    placed = place(nodes, rules=PlacementRules("everywhere", alike=frozenset(("Concat",))))
    assert placed.alike == (frozenset(("a", "b", "g", "j", "k")),)


def test_an_input_in_half_precision_is_not_quantized_itself() -> None:
    """QuantizeLinear takes float32 only, below opset 19; the Cast behind the input is what can be quantized."""
    nodes = [node("Cast", "x", "f", to=onnx.TensorProto.FLOAT), node("Conv", "f w", "a"), node("Relu", "a")]
    model = load(make_model(nodes, {"x": SHAPE}, ["y"], CONSTANTS, dtypes={"x": np.float16}))
    layers = find_layers(model, Example.made_up(model).shapes(model))
    assert "x" not in place_activations(model, layers, PlacementRules(style="everywhere")).measured


def test_what_a_logarithm_is_taken_of_stays_float() -> None:
    """A log-mel spectrogram lost 7 points at 8 bits: what is soft is below the first level of what is loud."""
    nodes = [node("Conv", "x w", "s"), node("Mul", "s s", "p"), node("Conv", "p v", "m"), node("Add", "m e", "a")]
    nodes += [node("Log", "a", "l"), node("Conv", "l u", "c"), node("Relu", "c", "r"), node("Conv", "r t")]
    more = {name: np.ones((4, 4, 1, 1), np.float32) for name in "ut"} | {"e": np.array(1e-3, np.float32)}
    assert set(place(nodes, more).measured) == {"l", "r"}
    # Integers alone, or nothing.
    assert {"x", "s", "p", "m"} <= set(place(nodes, more, PlacementRules("everywhere")).measured)


def test_a_logarithm_behind_other_operators_leaves_them_alone() -> None:
    """Of class scores a LogSoftmax is taken in parts."""
    nodes = [node("Conv", "x w", "a"), node("Relu", "a", "b"), node("Conv", "b v", "c"), node("Softmax", "c", "d")]
    assert set(place([*nodes, node("Log", "d")]).measured) == {"x", "b", "c"}


def test_what_others_read_as_well_is_quantized_for_them() -> None:
    nodes = [node("Conv", "x w", "s"), node("Abs", "s", "p"), node("Log", "p", "l")]
    nodes += [node("Conv", "x v", "a"), node("Add", "a l")]
    assert set(place(nodes).measured) == {"x", "a"}
