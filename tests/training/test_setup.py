"""When what training computes is compiled."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from onnx_cbq.graph.load import load
from onnx_cbq.model import Model
from onnx_cbq.training.settings import RefineConfig
from onnx_cbq.training.setup import fusing_pays
from tests.gradient.cases import floats
from tests.graphs import make_model, node

CPU, GPU = torch.device("cpu"), torch.device("cuda")
# Of ResNet-20.
NODES, MACS = 60, 128 * 41_000_000


def chain(nodes: int, last: str = "Relu") -> Model:
    """So many nodes, one behind the other."""
    made = [node("Relu" if i else "Neg", f"t{i}" if i else "x", f"t{i + 1}") for i in range(nodes - 1)]
    end = f"t{nodes - 1}"
    if last == "GRU":
        made.append(node("GRU", f"{end} w r", "y", hidden_size=2))
        return load(make_model(made, {"x": [3, 1, 2]}, ["y"], {"w": floats(1, 6, 2), "r": floats(1, 6, 2)}))
    return load(make_model([*made, node(last, end, "y")], {"x": [3, 1, 2]}, ["y"], {}))


@pytest.mark.parametrize(
    ("config", "nodes", "macs", "device", "expected"),
    [
        (RefineConfig(), NODES, MACS, CPU, True),
        (RefineConfig(minutes=5, updates=100_000), NODES, MACS, CPU, True),
        # Compiling takes half a minute of it.
        (RefineConfig(minutes=1, updates=100_000), NODES, MACS, CPU, False),
        (RefineConfig(updates=100), NODES, MACS, CPU, False),
        (RefineConfig(minutes=5), 500, MACS, CPU, False),
        # All updates of a tiny net, and of any on a GPU, are over before that.
        (RefineConfig(), NODES, MACS // 400, CPU, False),
        (RefineConfig(), NODES, MACS, GPU, False),
    ],
)
def test_fusing_pays_where_training_is_long_beside_it(
    config: RefineConfig, nodes: int, macs: int, device: torch.device, *, expected: bool
) -> None:
    """Guards against minutes of compiling for seconds of training, and slow updates for hours."""
    model = chain(nodes)
    assert len(model.nodes) == nodes
    assert fusing_pays(config, model, macs, device) is expected
    assert not fusing_pays(replace(config, updates=1), model, macs, device)


def test_nets_that_are_written_out_are_not_compiled() -> None:
    """Guards against an hour of compiling a sequence of a thousand positions."""
    assert fusing_pays(RefineConfig(), chain(5), MACS, CPU)
    assert not fusing_pays(RefineConfig(), chain(5, "GRU"), MACS, CPU)
