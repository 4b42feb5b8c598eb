"""`debug` says in one line what it cannot compare, and writes over nothing that it reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_cbq import ConfigError, ModelError, debug
from onnx_cbq.errors import OnnxCbqError
from onnx_cbq.jobs import debug as job
from onnx_cbq.model import Array
from tests.command import Command
from tests.conftest import DIGITS_CARD, DIGITS_MODEL
from tests.graphs import make_model, node
from tests.jobs.debugged import CLASSES, DATA, X, draw, file_of, net
from tests.qdq import coded, grid_of, quantized_by_hand


def integer_format() -> onnx.ModelProto:
    nodes = [node("QuantizeLinear", "x s z", "q"), node("ConvInteger", "q k z", "c"), node("Cast", "c", "f", to=1)]
    nodes += [node("GlobalAveragePool", "f", "m"), node("Flatten", "m")]
    codes, _ = coded(draw(1, CLASSES, 3, 3, 3))
    constants: dict[str, Array] = {"s": np.array(0.1, np.float32), "z": np.array(128, np.uint8), "k": codes}
    return make_model(nodes, {"x": ["N", 3, 6, 6]}, ["y"], constants)


def of_classes(count: int) -> onnx.ModelProto:
    return net(weights={"g": draw(3, count, 8), "d": draw(6, count)})


def another() -> onnx.ModelProto:
    nodes = [node("Flatten", "x", "f"), node("MatMul", "f k")]
    model = make_model(nodes, {"x": ["N", 3, 6, 6]}, ["y"], {"k": draw(1, 108, CLASSES)})
    return quantized_by_hand(model, {"f": grid_of(X)})


def damaged() -> onnx.ModelProto:
    """Scales that onnxruntime does not take, as some tools write them for weights in blocks."""
    file = file_of(net())
    scale = next(t for t in file.graph.initializer if t.name == "w_scale")
    scale.CopyFrom(numpy_helper.from_array(np.ones((8, 1, 1, 1), np.float32), "w_scale"))
    return file


@pytest.mark.parametrize(
    ("model", "quantized", "message"),
    [
        (net, damaged, "the quantized model: onnxruntime cannot run the model: "),
        (net, net, "the quantized model: nothing in it is quantized; expected the float model first"),
        (net, integer_format, "the quantized model: ConvInteger ConvInteger_c works on codes itself; expected float"),
        (net, another, "the quantized model: none of its 1 products with a weight is like one of the 3 layers"),
        (net, lambda: file_of(of_classes(4)), "the quantized model: has 4 classes, the float model 5"),
        (lambda: net(batch=2), lambda: file_of(net(batch=4)), "the models take 2 and 4 samples at a time"),
    ],
)
def test_what_cannot_be_compared_is_refused(model: object, quantized: object, message: str) -> None:
    assert callable(model)
    assert callable(quantized)
    with pytest.raises(OnnxCbqError) as refused:
        debug(model(), quantized(), DATA)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no-such\.onnx: no such file"):
        debug(net(), tmp_path / "no-such.onnx", DATA)
    with pytest.raises(ModelError, match=r"no-such\.onnx: no such file"):
        debug(tmp_path / "no-such.onnx", file_of(net()), DATA)
    with pytest.raises(ConfigError, match="--samples: expected at least 1, got 0"):
        debug(net(), file_of(net()), DATA, samples=0)


@pytest.mark.parametrize("place", ["float", "quantized"])
def test_no_output_replaces_what_is_read(
    tmp_path: Path, command: Command, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "debug", _never)
    paths = {"float": tmp_path / "float.onnx", "quantized": tmp_path / "q.onnx"}
    for path in paths.values():
        path.write_bytes(DIGITS_MODEL.read_bytes())
    target = paths[place]
    done = command("debug", *paths.values(), "--data", DIGITS_CARD, "--json", target)
    assert done.code == 1
    assert "is also another file of this command" in done.err
    assert target.read_bytes() == DIGITS_MODEL.read_bytes()


def _never(*_: object) -> None:
    raise AssertionError("nothing must run")
