"""The distance of hidden tensors from those of the original, against sums by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from onnx_cbq.model import Array
from onnx_cbq.stepping.units import Units
from onnx_cbq.stepping.widening import Counterpart, counterparts
from onnx_cbq.training.imitation import Imitation
from tests.stepping.nets import padded_net, random_nested, units_of

# The first is too small a part of the net to imitate it.
SHARES, BETA = (0.1, 0.5, 0.9), 0.6


def values_of(units: Units, names: list[str], seed: int) -> dict[str, Array]:
    """Random tensors of seven samples, whose channels vary differently."""
    random = np.random.default_rng(seed)
    found = {}
    for name in names:
        channels, *sides = units.shapes[name][1:]
        scales = np.linspace(0.5, 2, channels)[:, None, None]
        found[name] = (random.normal(1, 1, (7, channels, *sides)) * scales).astype(np.float32)
    return found


def make(units: Units, taught: dict[str, Array], shares: tuple[float, ...] = SHARES) -> Imitation:
    """By the variances of `taught`, given as two batches."""
    parts = [{name: torch.tensor(value[some]) for name, value in taught.items()} for some in (slice(3), slice(3, 7))]
    return Imitation(units, counterparts(units, 1), shares, BETA, parts)


NAMES = ["a1", "a2"]


def distance(imitation: Imitation, assignment: Array, found: dict[str, Array], taught: dict[str, Array]) -> float:
    tensors = {name: torch.tensor(value) for name, value in taught.items()}
    return float(imitation(assignment, [torch.tensor(found[name]) for name in imitation.tensors], tensors))


def test_channels_of_larger_subnets_count_by_their_variance() -> None:
    units, _ = units_of(padded_net())
    assignment = random_nested(units, len(SHARES), 0).assignment
    found, taught = values_of(units, NAMES, 0), values_of(units, NAMES, 1)
    imitation = make(units, taught)
    assert list(imitation.tensors) == NAMES
    expected = 0.0
    # As answers of subnet k count beta^k; 1 on average.
    counted = {2: 2 / (1 + BETA), 3: 2 * BETA / (1 + BETA)}
    for name in NAMES:
        for channel, unit in enumerate(units.of[name]):
            # Given by the input, of the small subnet, or in none: nothing is asked of it.
            if assignment[unit] not in counted:
                continue
            error = np.square(found[name][:, channel] - taught[name][:, channel]).mean(dtype=np.float64)
            error /= taught[name][:, channel].var(dtype=np.float64)
            expected += counted[int(assignment[unit])] * error / len(units.of[name])
    got = distance(imitation, assignment, found, taught)
    np.testing.assert_allclose(got, 2 * expected / len(NAMES), rtol=1e-5)
    assert distance(imitation, assignment, taught, taught) == 0
    imitation.advance(0.75)
    np.testing.assert_allclose(distance(imitation, assignment, found, taught), got / 4, rtol=1e-5)
    imitation.advance(1.0)
    assert distance(imitation, assignment, found, taught) == 0


def test_the_first_quarter_of_a_batch_is_compared() -> None:
    """A pass of the original for all samples took most of the time that imitation takes."""
    units, _ = units_of(padded_net())
    found, taught = values_of(units, NAMES, 0), values_of(units, NAMES, 1)
    imitation = make(units, taught)
    some = imitation.some({"x": torch.arange(7.0)})["x"]
    assert some.tolist() == [0, 1]
    first = [{name: value[:2] for name, value in values.items()} for values in (found, taught)]
    assignment = np.full(units.count, 2)
    got = distance(imitation, assignment, found, first[1])
    np.testing.assert_allclose(got, distance(imitation, assignment, *first), rtol=1e-6)
    assert abs(got / distance(imitation, assignment, found, taught) - 1) > 1e-3


def test_a_net_of_so_many_samples_takes_all_of_them() -> None:
    fixed = padded_net()
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 8
    units, _ = units_of(fixed)
    some = make(units, values_of(units, NAMES, 1)).some({"x": torch.arange(8.0)})["x"]
    assert len(some) == 8


def test_copies_are_held_against_the_channel_that_they_began_as() -> None:
    units, _ = units_of(padded_net())
    turned = [Counterpart(one.tensor, one.original, one.channels[::-1].copy()) for one in counterparts(units, 1)]
    taught = values_of(units, NAMES, 1)
    imitation = Imitation(units, turned, SHARES, BETA, [{name: torch.tensor(value) for name, value in taught.items()}])
    found = {name: value[:, ::-1].copy() for name, value in taught.items()}
    assignment = np.full(units.count, 2)
    assert distance(imitation, assignment, found, taught) == 0
    assert distance(imitation, assignment, taught, taught) > 0.01


def test_a_channel_that_never_varies_does_not_outweigh_the_others() -> None:
    """What is always 0 in the original has no variance to be measured by."""
    units, _ = units_of(padded_net())
    taught = values_of(units, NAMES, 1)
    for value in taught.values():
        value[:, 0] = 0
    found = {name: value + 0.1 for name, value in taught.items()}
    assert 0 < distance(make(units, taught), np.full(units.count, 2), found, taught) < 1


def test_a_tensor_that_never_varies_counts_nothing() -> None:
    """One over its variance stopped Adam for good."""
    units, _ = units_of(padded_net())
    taught = values_of(units, NAMES, 1)
    taught["a1"][:] = 3
    found = dict(taught, a1=taught["a1"] + 5)
    assert distance(make(units, taught), np.full(units.count, 2), found, taught) == 0


@pytest.mark.parametrize("shares", [(0.05, 0.15), (0.1,)])
def test_subnets_too_small_for_it_imitate_nothing(shares: tuple[float, ...]) -> None:
    units, _ = units_of(padded_net())
    imitation = make(units, values_of(units, NAMES, 1), shares)
    assert imitation.tensors == imitation.originals == ()
    assert float(imitation(np.ones(units.count, np.int64), [], {})) == 0
