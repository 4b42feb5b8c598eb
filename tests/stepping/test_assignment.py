"""What subnets cost, against counting pair by pair, and how units are moved."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import ModelProto

from onnx_cbq.errors import VerificationError
from onnx_cbq.model import Array
from onnx_cbq.stepping.assignment import find_spaces, move_units, step_macs, subnet_macs
from onnx_cbq.stepping.units import Units
from tests.stepping.nets import joined_net, padded_net, random_nested, units_of

STEPS = 3


def brute_force(units: Units, assignment: Array, subnet: int) -> int:
    """Every pair of an output and an input, one by one, from the shapes of the weights."""
    total = 0
    for product in (*units.hidden, units.head):
        layer, use = product.layer, product.use
        kernel = layer.weight_shape[2:]
        positions = int(np.prod(units.shapes[use.output][2:]))
        outputs = units.shapes[use.output][1]
        inputs = units.shapes[use.activation][1]
        for o in range(outputs):
            for c in range(inputs):
                same_group = o * layer.groups // outputs == c * layer.groups // inputs
                source = assignment[units.of[use.activation][c]]
                target = subnet if product is units.head else assignment[units.of[use.output][o]]
                if same_group and source <= target <= subnet:
                    total += positions * int(np.prod(kernel))
    return total


@pytest.mark.parametrize("net", [padded_net, joined_net])
def test_macs_are_those_of_all_pairs_that_may_be(net: Callable[[], ModelProto]) -> None:
    units, _ = units_of(net())
    assert units.macs == brute_force(units, np.ones(units.count, np.int64), 1)
    for seed in range(3):
        assignment = random_nested(units, STEPS, seed).assignment
        expected = [brute_force(units, assignment, k) for k in range(1, STEPS + 1)]
        np.testing.assert_array_equal(subnet_macs(units, assignment, STEPS), expected)
        np.testing.assert_array_equal(step_macs(units, assignment, STEPS), np.diff(expected, prepend=0))


def test_units_move_until_every_limit_is_met_the_least_important_first() -> None:
    units, _ = units_of(padded_net())
    importance = np.tile(np.arange(units.count, dtype=float), (STEPS, 1))
    limits = [share * units.macs for share in (0.3, 0.5, 0.8)]
    found = move_units(units, np.ones(units.count, np.int64), importance, limits)
    assert (subnet_macs(units, found, STEPS) <= limits).all()
    assert found[0] == 1
    assert all((found[units.of[p.use.output]] == 1).any() for p in units.hidden)
    # Going on from a result changes nothing.
    np.testing.assert_array_equal(move_units(units, found, importance, limits), found)


def test_spaces_are_units_of_the_same_layers() -> None:
    """The six channels of the shortcut are in one more layer than the four beside them."""
    units, _ = units_of(padded_net())
    spaces = {tuple(space.tolist()) for space in find_spaces(units)}
    shared = units.of["r1"].tolist()
    assert spaces == {tuple(sorted(shared)), tuple(sorted(set(units.of["a1"].tolist()) - set(shared)))}


def test_the_most_important_units_of_a_space_stay_and_spaces_shrink_alike() -> None:
    """Else layers of a larger subnet could write to nobody."""
    units, _ = units_of(padded_net())
    importance = np.random.default_rng(0).random((STEPS, units.count))
    importance[:, units.of["r1"]] += 100
    limits = [share * units.macs for share in (0.3, 0.5, 0.8)]
    found = move_units(units, np.ones(units.count, np.int64), importance, limits)
    left = []
    for space in find_spaces(units):
        order = space[np.argsort(-importance[0, space])]
        first = found[order] == 1
        assert first[: first.sum()].all()
        left.append(first.mean())
    assert abs(left[0] - left[1]) <= 0.25


def test_a_limit_that_cannot_be_met_is_said() -> None:
    units, _ = units_of(padded_net())
    with pytest.raises(VerificationError, match=r"--macs: subnet 1 cannot have 0.1% .* that takes \d+\.\d%"):
        move_units(units, np.ones(units.count, np.int64), np.ones((2, units.count)), [0.001 * units.macs, units.macs])
