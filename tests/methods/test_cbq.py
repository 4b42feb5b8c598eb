"""Class-based quantization: which layers are pinned, and what is said of the search."""

from __future__ import annotations

from dataclasses import replace

import pytest

from onnx_cbq import QuantizeConfig
from onnx_cbq.methods.cbq import Cbq
from onnx_cbq.search.cbq import CbqConfig
from onnx_cbq.stages.scene import Scene
from tests.conftest import DIGITS_CARD, DIGITS_MODEL
from tests.scenes import gather


@pytest.fixture(scope="module")
def scene() -> Scene:
    return gather(DIGITS_MODEL, DIGITS_CARD, QuantizeConfig(method="cbq", rounding="nearest", activation_bits=0))[0]


def test_cbq_pins_the_ends_unless_they_are_most_of_the_net(scene: Scene) -> None:
    pinned = Cbq().plan(scene, 4)
    assert set(pinned.plan.bits["/0/Conv"].tolist()) == set(pinned.plan.bits["12"].tolist()) == {8}
    free = Cbq(pin_ends=False).plan(scene, 4)
    assert set(free.plan.bits["/0/Conv"].tolist()) != {8}
    low = Cbq().plan(scene, 0.2)
    assert low.plan.average_bits(scene.work.layers) <= 0.2
    assert any("first and last layer are searched too" in note for note in low.notes)


def test_the_settings_of_the_threshold_search_are_those_of_the_method() -> None:
    """Written down beside a name or within the method, they decide the same plan."""
    named = QuantizeConfig(method="cbq", cbq=CbqConfig(pin_ends=False, held_back=0.5))
    assert named.choice.method == Cbq(pin_ends=False, held_back=0.5)
    assert named.choice.scene.samples.held_back == 0.5
    assert replace(named, method=Cbq(pin_ends=False, held_back=0.5), cbq=CbqConfig()).choice == named.choice
