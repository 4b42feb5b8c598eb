from __future__ import annotations

import numpy as np
import pytest

from onnx_cbq.errors import ModelError
from onnx_cbq.graph.load import load
from onnx_cbq.graph.shapes import Example, fixed_batch
from tests.graphs import make_model, node

FLATTENED = [node("Transpose", "x", "t", perm=[1, 0, 2]), node("Reshape", "t shape"), node("Shape", "y", "s")]


@pytest.mark.parametrize("batch", ["N", 4])
def test_batch_axis_follows_the_samples(batch: int | str) -> None:
    """Nets move the batch to other axes, or merge it with positions; scores are summed over it."""
    proto = make_model(FLATTENED, {"x": [batch, 5, 2]}, ["y", "s"], {"shape": np.array([5, -1], np.int64)})
    model = load(proto)
    example = Example.made_up(model)
    shapes = example.shapes(model)
    n = example.batch
    assert n == (4 if batch == 4 else 3)
    assert (shapes["t"], shapes.batch_axis["t"]) == ((5, n, 2), 1)
    assert (shapes["y"], shapes.batch_axis["y"]) == ((5, 2 * n), 1)
    assert shapes.batch_axis["shape"] is None


def test_a_size_equal_to_the_batch_is_no_batch_axis() -> None:
    """With a dynamic batch the axis is found by changing it, not by its size: 3 channels at 3 samples."""
    proto = make_model([node("ReduceMax", "x axis", keepdims=0)], {"x": ["N", 3]}, ["y"], {"axis": np.array([0])})
    shapes = Example.made_up(load(proto)).shapes(load(proto))
    assert shapes["y"] == (3,)
    assert shapes.batch_axis["y"] is None


def test_values_that_change_with_the_batch_are_told_apart() -> None:
    nodes = [node("Shape", "x", "s"), node("Gather", "s zero", "n"), node("Gather", "s one", "c"), node("Add", "x x")]
    proto = make_model(nodes, {"x": ["N", 7]}, ["y"], {"zero": np.array(0), "one": np.array(1)})
    model = load(proto)
    values = Example.made_up(model).unchanging_values(model, ["n", "c"])
    assert values == {"c": 7}


def test_inputs_with_different_batches_are_explained() -> None:
    proto = make_model([node("Add", "a b")], {"a": [2, 3], "b": [1, 3]}, ["y"])
    with pytest.raises(ModelError, match="inputs disagree about the batch size"):
        fixed_batch(load(proto))


def test_integer_inputs_are_made_up_as_zeros() -> None:
    """0 is a valid token id whatever the vocabulary."""
    proto = make_model(
        [node("Gather", "w x")], {"x": ["N", 4]}, ["y"], {"w": np.ones((2, 3), np.float32)}, dtypes={"x": np.int64}
    )
    assert not Example.made_up(load(proto)).feeds["x"].any()
