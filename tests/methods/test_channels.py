"""Which layers keep their width, and the channels that are left to choose for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnx_cbq import ConfigError
from onnx_cbq.evidence.workload import Workload, prepare
from onnx_cbq.methods.channels import FreeChannels, kept_layers
from onnx_cbq.records import Layers
from tests.conftest import DIGITS_CARD, DIGITS_MODEL

NAMES = ["/0/Conv", "/3/Conv", "/7/Conv", "12"]


@pytest.fixture(scope="module")
def work() -> Workload:
    return prepare(DIGITS_MODEL, DIGITS_CARD)


def test_names_and_patterns_keep_their_bits(work: Workload) -> None:
    assert [layer.name for layer in work.layers] == NAMES
    assert kept_layers(work.layers, [("12", 8)]) == {"12": 8}
    assert kept_layers(work.layers, [("*Conv", 4), ("/3*", 6)]) == {"/0/Conv": 4, "/3/Conv": 6, "/7/Conv": 4}
    assert kept_layers(work.layers, [("?2", 0)]) == {"12": 0}
    assert kept_layers(work.layers, []) == {}


def test_a_pattern_that_matches_nothing_names_the_layers(work: Workload) -> None:
    with pytest.raises(ConfigError, match=r"--keep conv\*=4: no layer has such a name; the layers are: /0/Conv, /3/"):
        kept_layers(work.layers, [("conv*", 4)])


def test_what_kept_layers_take_is_missing_from_the_budget(work: Workload) -> None:
    """The average of all layers must come to what was asked for, whatever the free ones have."""
    free = FreeChannels(work.layers, {"/7/Conv": 6}, 4.0)
    assert [layer.name for layer in free.layers] == ["/0/Conv", "/3/Conv", "12"]
    spent = free.budget * free.size + 6 * work.layers.by_name["/7/Conv"].size
    assert spent == pytest.approx(4.0 * work.layers.size)
    plan = free.plan(np.full(len(free.sizes), 3))
    assert [set(bits.tolist()) for bits in plan.bits.values()] == [{3}, {3}, {6}, {3}]
    assert list(plan.bits) == NAMES


def test_channels_of_one_scale_are_one_unit(work: Workload) -> None:
    """Sums and largest values must be those of the channels of a unit, in the order of the layers."""
    first, *others = work.layers.layers
    whole = replace(first, rules=replace(first.rules, per_tensor=True))
    free = FreeChannels(Layers((whole, *others)), {}, 4.0)
    channels = np.array([layer.channels for layer in free.layers])
    assert len(free.sizes) == 1 + channels[1:].sum()
    assert free.sizes.sum() == pytest.approx(work.layers.size)
    values = np.arange(1.0, channels.sum() + 1)
    assert free.sums(values)[0] == values[: channels[0]].sum()
    assert free.largest(values)[0] == channels[0]
    np.testing.assert_array_equal(free.sums(values)[1:], values[channels[0] :])
    np.testing.assert_array_equal(free.largest(values)[1:], values[channels[0] :])
    bits = np.concatenate([[7], np.full(channels[1:].sum(), 2)])
    assert [set(found.tolist()) for found in free.plan(bits).bits.values()] == [{7}, {2}, {2}, {2}]
