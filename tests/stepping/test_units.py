"""What belongs together: channels tied by additions, padding, depthwise filters, groups and flattening."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnx_cbq.errors import ModelError, UnsupportedOperatorError
from tests.graphs import make_model, node
from tests.stepping.nets import joined_net, padded_net, units_of


def test_a_padded_shortcut_ties_the_channels_in_the_middle() -> None:
    """Channel c of the small tensor is channel c + 2 of the sum; the padded ones belong to the convolution alone."""
    units, _ = units_of(padded_net())
    small, large = units.of["r1"], units.of["a1"]
    np.testing.assert_array_equal(large[2:8], small)
    assert len(set(large.tolist())) == 10
    assert units.count == 11
    for name in ("c2", "p", "r2", "c3", "r3", "c4", "a2"):
        np.testing.assert_array_equal(units.of[name], large)
    # [10, 4, 4] flattened: 16 columns per channel.
    np.testing.assert_array_equal(units.of["f"], np.repeat(large, 16))


def test_branches_keep_their_units_and_groups_are_one() -> None:
    units, _ = units_of(joined_net())
    np.testing.assert_array_equal(units.of["j"], [*units.of["c2"], *units.of["m"]])
    np.testing.assert_array_equal(units.of["m"], units.of["c1"])
    # Four groups of two inputs and two outputs.
    assert all(len(set(units.of[name].reshape(4, 2)[g].tolist())) == 1 for name in ("j", "c3") for g in range(4))
    np.testing.assert_array_equal(units.of["e"], units.of["j"])
    assert units.count == 5
    assert [n.op_type for n in units.tail] == ["GlobalAveragePool", "Flatten"]


def test_what_the_inputs_give_is_there_from_the_start() -> None:
    units, _ = units_of(padded_net())
    assert (units.of["x"] == 0).all()
    assert all((units.of[p.use.output] > 0).all() for p in units.hidden)


@pytest.mark.parametrize("name", ["residual", "depthwise"])
def test_exported_nets_are_followed(exported: Callable[..., onnx.ModelProto], name: str) -> None:
    """Squeeze-and-excite, hard-swish and strided shortcuts included."""
    units, _ = units_of(exported(name, dynamo=False))
    expected = {"residual": 1 + 8 + 8 + 16 + 16, "depthwise": 1 + 8 + 16 + 4}[name]
    assert units.count == expected


@pytest.mark.parametrize("name", ["vit", "signal"])
def test_what_mixes_channels_is_named(exported: Callable[..., onnx.ModelProto], name: str) -> None:
    """Attention and group norm."""
    with pytest.raises(UnsupportedOperatorError, match=r"node '\S+' \(\w+\) mixes channels .* train smaller nets"):
        units_of(exported(name, dynamo=False))


def test_a_net_without_hidden_layers_has_no_steps() -> None:
    constants = {"w": np.ones((4, 3), np.float32), "b": np.ones(3, np.float32)}
    with pytest.raises(ModelError, match="is the only one that can be divided into steps; expected hidden layers"):
        units_of(make_model([node("Gemm", "x w b", "y")], {"x": ["N", 4]}, ["y"], constants))


def test_class_scores_from_two_layers_are_refused() -> None:
    constants = {name: np.ones((4, 3), np.float32) for name in ("w1", "w2")}
    nodes = [node("Gemm", "x w1", "a"), node("Gemm", "x w2", "b"), node("Mul", "a b", "y")]
    with pytest.raises(UnsupportedOperatorError, match=r"'Mul_y' \(Mul\) joins several tensors behind the last layer"):
        units_of(make_model(nodes, {"x": ["N", 4]}, ["y"], constants))


def test_padded_channels_may_only_be_added_to_others() -> None:
    """A step may have no channel but zeros, which only an addition does without."""
    shapes = {"w": (2, 3, 1, 1), "v": (5, 4, 1, 1), "u": (3, 5, 1, 1)}
    constants = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    constants["pads"] = np.array([0, 1, 0, 0, 0, 1, 0, 0])
    nodes = [node("Conv", "x w", "c"), node("Pad", "c pads", "p"), node("Conv", "p v", "d"), node("Relu", "d", "e")]
    nodes += [node("Conv", "e u", "h"), node("GlobalAveragePool", "h", "g"), node("Flatten", "g", "y")]
    with pytest.raises(UnsupportedOperatorError, match="reads 'p', whose channels were padded; only an Add may"):
        units_of(make_model(nodes, {"x": ["N", 3, 4, 4]}, ["y"], constants))
