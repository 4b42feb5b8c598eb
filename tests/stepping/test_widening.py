"""A wider net beside the original, and the width that subnets need beside MACs counted layer by layer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest

from onnx_cbq.runtime import Session
from onnx_cbq.stepping.assignment import find_spaces, subnet_macs
from onnx_cbq.stepping.units import Units, find_units
from onnx_cbq.stepping.widening import counterparts, needed_width, widen
from tests.graphs import make_model, node
from tests.stepping.nets import joined_net, padded_net, units_of

NETS: dict[str, Callable[[], onnx.ModelProto]] = {"padded": padded_net, "joined": joined_net}


def widened(proto: onnx.ModelProto, width: float) -> tuple[Units, Units, onnx.ModelProto]:
    units, example = units_of(proto)
    model = widen(units, width)
    return units, find_units(model, example.shapes(model), units.logits), model.to_proto()


@pytest.mark.parametrize("width", [1.0, 1.3, 2.0])
@pytest.mark.parametrize("name", NETS)
def test_a_wider_net_computes_the_same(name: str, width: float) -> None:
    """Weights that are shared out unevenly, columns in the order of the channels and not of the flattened ones."""
    proto = NETS[name]()
    _, _, wide = widened(proto, width)
    onnx.checker.check_model(wide, full_check=True)
    shape = [3, *(axis.dim_value for axis in proto.graph.input[0].type.tensor_type.shape.dim[1:])]
    feeds = {"x": np.random.default_rng(5).normal(0, 1, shape).astype(np.float32)}
    expected, found = (
        onnxruntime.InferenceSession(model.SerializeToString()).run(["y"], feeds)[0] for model in (proto, wide)
    )
    # Sums in another order.
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("width", [1.0, 1.3, 2.0])
@pytest.mark.parametrize(("name", "known"), [("padded", ["a1", "a2"]), ("joined", None)])
def test_tensors_of_the_wider_net_are_found_in_the_original(name: str, known: list[str] | None, width: float) -> None:
    """Sums of branches, or what every layer gives where there is none; both nets run on the same samples."""
    proto = NETS[name]()
    units, wide, _ = widened(proto, width)
    # Of the same width it is the net as it came.
    wide = units if width == 1 else wide
    found = counterparts(units, width)
    names = [use.output for product in units.hidden for use in product.layer.uses] if known is None else known
    assert [one.original for one in found] == names
    shape = [3, *(axis.dim_value for axis in proto.graph.input[0].type.tensor_type.shape.dim[1:])]
    feeds = {"x": np.random.default_rng(5).normal(0, 1, shape).astype(np.float32)}
    expected = Session(units.model.with_graph(outputs=names)).run(feeds)
    values = Session(wide.model.with_graph(outputs=[one.tensor for one in found])).run(feeds)
    for one in found:
        axis = wide.axis[one.tensor]
        taken = expected[one.original].take(one.channels, axis)
        np.testing.assert_allclose(values[one.tensor], taken, rtol=1e-4, atol=1e-5)
        assert wide.of[one.tensor].shape == one.channels.shape


def test_a_layer_that_is_used_twice_is_compared_once_a_use() -> None:
    """And what is multiplied, as a gate is, is no sum."""
    random = np.random.default_rng(0)
    constants = {
        "w1": random.normal(0, 1, (4, 4, 1, 1)).astype(np.float32),
        "w0": random.normal(0, 1, (4, 2, 1, 1)).astype(np.float32),
        "w2": random.normal(0, 1, (4, 3)).astype(np.float32),
    }
    nodes = [
        node("Conv", "x w0", "c0"),
        node("Conv", "c0 w1", "c1"),
        node("Sigmoid", "c1", "s"),
        node("Mul", "c1 s", "m"),
        node("Conv", "m w1", "c2"),
        node("GlobalAveragePool", "c2", "p"),
        node("Flatten", "p", "f"),
        node("MatMul", "f w2", "y"),
    ]
    units, _ = units_of(make_model(nodes, {"x": ["N", 2, 4, 4]}, ["y"], constants))
    assert [one.original for one in counterparts(units, 1)] == ["c0", "c1", "c2"]


def test_every_space_is_wider() -> None:
    units, wide, _ = widened(padded_net(), 2.0)
    before, after = ({len(space) for space in find_spaces(one)} for one in (units, wide))
    # The 6 channels of the shortcut go on into 10, of which 4 are new.
    assert (before, after) == ({4, 6}, {8, 12})
    # Twice where inputs or class scores stay as many, and in the depthwise filters; four times elsewhere.
    once, twice = 6 * 3 * 9 * 64 + 10 * 9 * 16 + 160 * 5, 10 * 6 * 9 * 16 + 10 * 10 * 16
    assert (units.macs, wide.macs) == (once + twice, 2 * once + 4 * twice)


def test_small_maps_are_widened_first_and_no_more_than_macs_need() -> None:
    large, small = 6, 4
    found: list[tuple[int, int, int]] = []
    for width in np.linspace(1, 1.6, 25):
        units, wide, _ = widened(padded_net(), width)
        other = wide.hidden[0].layer.channels
        one = wide.count - 1 - other
        assert wide.macs >= width**2 * units.macs
        # The larger maps come next once the smaller ones have all that they may.
        assert one == 2 * small or other == large
        found.append((wide.macs, one, other))
    assert len({macs for macs, _, _ in found}) > small
    for width, (macs, _, _) in zip(np.linspace(1, 1.6, 25), found, strict=True):
        assert macs == min(other for other, _, _ in found if other >= width**2 * units.macs)


def test_neurons_are_added_last() -> None:
    """A classifier of 100 million weights would be doubled for a hundredth of the multiplications."""
    random = np.random.default_rng(0)
    constants = {
        "w0": random.normal(0, 1, (4, 2, 3, 3)).astype(np.float32),
        "w1": random.normal(0, 1, (4 * 36, 40)).astype(np.float32),
        "w2": random.normal(0, 1, (40, 3)).astype(np.float32),
    }
    nodes = [
        node("Conv", "x w0", "c0"),
        node("Relu", "c0", "r0"),
        node("Flatten", "r0", "f"),
        node("MatMul", "f w1", "m"),
        node("Relu", "m", "r1"),
        node("MatMul", "r1 w2", "y"),
    ]
    proto = make_model(nodes, {"x": ["N", 2, 8, 8]}, ["y"], constants)
    assert [product.layer.channels for product in widened(proto, 1.1)[1].hidden] == [5, 40]
    assert [product.layer.channels for product in widened(proto, 2.0)[1].hidden] == [8, 80]


def test_channels_of_a_group_stay_as_they_are() -> None:
    """Two of a pair would come between its channels."""
    units, wide, _ = widened(joined_net(), 2.0)
    assert wide.count == units.count


def test_two_that_are_alike_are_not_equally_important() -> None:
    """If they were, they would always move together and learn the same."""
    _, wide, _ = widened(padded_net(), 2.0)
    read = {p.use.activation: p.layer.rows(wide.model.weight(p.layer.weight)) for p in wide.hidden}
    first = next(p for p in wide.hidden if p.use.activation != "x")
    norms = np.linalg.norm(read[first.use.activation].reshape(first.layer.channels, 12, -1), axis=(0, 2))
    np.testing.assert_allclose(norms[0::2], 2 * norms[1::2], rtol=1e-5)


@pytest.mark.parametrize("macs", [(0.1, 0.3, 0.5, 0.85), (0.25, 0.5, 0.75, 1.0), (0.2, 0.4, 0.7)])
def test_the_needed_width_gives_the_macs(macs: tuple[float, ...]) -> None:
    """Counted for a layer of many channels whose groups have the widths that shorter lists of shares need."""
    outputs = inputs = 1000
    total, before = 0.0, 0.0
    for k in range(1, len(macs) + 1):
        width = _unclipped(macs[:k])
        total += (width - before) * outputs * width * inputs
        before = width
        assert total / (outputs * inputs) == pytest.approx(macs[k - 1])
    assert needed_width(macs) == pytest.approx(max(width, 1))


def _unclipped(macs: tuple[float, ...]) -> float:
    """Of shares that need less than the whole width too: MACs scale with the square of it."""
    return needed_width(tuple(100 * share for share in macs)) / 10


def test_one_subnet_needs_the_net_as_it_is() -> None:
    assert needed_width((1.0,)) == 1
    assert needed_width((0.5,)) == 1


def test_macs_of_a_wider_net_are_counted_on_it() -> None:
    _, wide, _ = widened(padded_net(), 1.5)
    assignment = np.ones(wide.count, np.int64)
    assert subnet_macs(wide, assignment, 2).tolist() == [wide.macs, wide.macs]
