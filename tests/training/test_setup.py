"""When what training computes is compiled."""

from __future__ import annotations

from dataclasses import replace

import pytest

from onnx_cbq.training.settings import RefineConfig
from onnx_cbq.training.setup import fusing_pays

RESNET_NODES, RESNET_MACS = 60, 41_000_000


@pytest.mark.parametrize(
    ("config", "nodes", "macs", "expected"),
    [
        (RefineConfig(), RESNET_NODES, RESNET_MACS, True),
        (RefineConfig(minutes=5, updates=100_000), RESNET_NODES, RESNET_MACS, True),
        # Compiling takes half a minute of it.
        (RefineConfig(minutes=1, updates=100_000), RESNET_NODES, RESNET_MACS, False),
        (RefineConfig(updates=100), RESNET_NODES, RESNET_MACS, False),
        # All updates of a tiny net are over before that.
        (RefineConfig(), 12, 100_000, False),
        (RefineConfig(minutes=15), 5_000, RESNET_MACS, False),
    ],
)
def test_fusing_pays_where_training_is_long_beside_it(
    config: RefineConfig, nodes: int, macs: int, *, expected: bool
) -> None:
    """Guards against minutes of compiling for seconds of training, and slow updates for hours."""
    assert fusing_pays(config, nodes, macs) is expected
    assert fusing_pays(replace(config, updates=1), nodes, macs) is False
