"""From a plan to codes: each weight by itself, or with compensation for the errors of others."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_cbq import QuantizeConfig, RoundingConfig
from onnx_cbq.quantize.grid import quantize_rows
from onnx_cbq.stages.rounding import ROUNDINGS
from onnx_cbq.stages.scene import Rounding
from tests.conftest import DIGITS_CARD, DIGITS_MODEL
from tests.scenes import gather, solved


@pytest.mark.parametrize("rounding", ROUNDINGS, ids=lambda rounding: rounding.name)
def test_rounding_to_nearest_is_that_of_each_row_alone(rounding: Rounding) -> None:
    """And leaves the biases alone; compensation does neither."""
    config = QuantizeConfig(
        bits=3,
        method="uniform",
        rounding=rounding.name,
        samples=60,
        activation_bits=0,
        compensation=RoundingConfig(refits=0, sweeps=0, rows=2000),
    )
    scene, _ = gather(DIGITS_MODEL, DIGITS_CARD, config)
    rounded, work, equal = solved(scene, config).rounded, scene.work, list[bool]()
    for layer in work.layers:
        nearest = quantize_rows(layer.rows(work.model.weight(layer.weight)), np.full(layer.channels, 3))
        equal.append(np.array_equal(layer.rows(rounded.weights[layer.name].codes), nearest.codes))
    assert equal == [not rounding.compensates] * 4
    assert bool(rounded.biases) == rounding.compensates
