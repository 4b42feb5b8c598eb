"""What a large model consists of is found without its weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from onnx_cbq.graph.load import load
from onnx_cbq.model import Array
from onnx_cbq.model import skim as skimming
from onnx_cbq.model.skim import skim
from tests.graphs import make_model, node

SIZE, LAYERS = 4096, 12
_INSPECT = r"""
import re, sys
from pathlib import Path
import onnx_cbq
from onnx_cbq.jobs.inspect import inspect
def peak():
    return int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
found = inspect(sys.argv[1])
print(len(found.layers), found.layers.size, peak() - before)
"""


def large_model(path: Path) -> None:
    """A chain of matrices, 800 MB that nobody wrote: a file with holes."""
    nodes, weights, size = [], [], 4 * SIZE * SIZE
    for i in range(LAYERS):
        tensor = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[SIZE, SIZE])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "data"), ("offset", i * size), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
        weights.append(tensor)
        nodes.append(node("MatMul", f"{'x' if i == 0 else f'a{i - 1}'} w{i}", f"a{i}"))
    proto = make_model([*nodes, node("Relu", f"a{LAYERS - 1}")], {"x": ["N", SIZE]}, ["y"])
    proto.graph.initializer.extend(weights)
    path.write_bytes(proto.SerializeToString())
    with (path.parent / "data").open("wb") as file:
        file.truncate(LAYERS * size)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read as Linux gives it")
def test_inspect_takes_no_memory_for_the_weights(tmp_path: Path) -> None:
    """A model of 200 million weights is listed in a fifth of what they take."""
    large_model(tmp_path / "model.onnx")
    command = [sys.executable, "-c", _INSPECT, str(tmp_path / "model.onnx")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    layers, weights, kilobytes = map(int, run.stdout.split())
    assert (layers, weights) == (LAYERS, LAYERS * SIZE * SIZE)
    assert kilobytes < 160_000


def test_small_tensors_and_small_models_keep_their_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shape of zeros would be another graph."""
    values: dict[str, Array] = {"w": np.ones((600, 500), np.float32), "v": np.arange(500, dtype=np.float32)}
    proto = make_model([node("MatMul", "x w", "a"), node("Add", "a v")], {"x": ["N", 600]}, ["y"], values)
    path = tmp_path / "model.onnx"
    onnx.save_model(proto, path, save_as_external_data=True, location="data", size_threshold=0)
    model = load(path)
    assert skim(model) is model
    monkeypatch.setattr(skimming, "LARGE", 1000)
    skimmed = skim(model)
    assert not skimmed.weight("w").any()
    assert np.array_equal(skimmed.weight("v"), values["v"])
    inside = load(onnx.load(path))
    assert skim(inside) is inside
