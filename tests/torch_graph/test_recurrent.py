"""Recurrent nodes in torch, beside onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")

from onnx_cbq.errors import UnsupportedOperatorError  # noqa: E402
from onnx_cbq.graph.load import load  # noqa: E402
from onnx_cbq.runtime import Session  # noqa: E402
from onnx_cbq.torch_graph import TorchGraph  # noqa: E402
from tests.storage.test_weights_only import RECURRENT, feeds, recurrent  # noqa: E402

UNKNOWN = ("lstm-activations", "rnn-both")
KNOWN = {name: proto for name, proto in RECURRENT.items() if name not in UNKNOWN}


@pytest.mark.parametrize("proto", [*KNOWN.values(), recurrent("RNN", "b", activations=["Relu"])], ids=[*KNOWN, "relu"])
def test_the_same_as_onnxruntime(proto: onnx.ModelProto) -> None:
    """What is trained has to be what runs, and its weights have to learn."""
    model, samples = load(proto), feeds(proto)
    graph = TorchGraph(model, trained=("lstm.w", "lstm.r"), device=torch.device("cpu"))
    found = graph({name: torch.from_numpy(value) for name, value in samples.items()}, ["y", "z"])
    for name, expected in Session(model, "off").run(samples).items():
        limit = 5e-6 * max(1, np.abs(expected).max())
        np.testing.assert_allclose(found[name].detach().numpy(), expected, rtol=0, atol=limit)
    found["y"].square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in graph.weights.values())


@pytest.mark.parametrize("name", UNKNOWN)
def test_other_activation_functions_are_named(name: str) -> None:
    """Others would be trained as if they were the usual ones."""
    with pytest.raises(UnsupportedOperatorError, match="activation functions"):
        TorchGraph(load(RECURRENT[name]))
