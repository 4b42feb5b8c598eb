"""Ctrl-C and SIGTERM: one line, exit code 130 and nothing left behind, wherever a command is."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnx_cbq import __main__
from onnx_cbq.model import Array
from onnx_cbq.system import stopping
from tests.conftest import DIGITS_CARD, DIGITS_MODEL
from tests.graphs import make_model, node

LINE = f"onnx-cbq: {stopping.MESSAGE}\n"
SIGNALS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminate"])


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "onnx_cbq", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # noqa: S603


def assert_stopped(process: subprocess.Popen[str], folder: Path, *, seconds: float) -> None:
    begun = time.monotonic()
    printed, message = process.communicate(timeout=60)
    assert (process.returncode, printed, message) == (stopping.CODE, "", LINE)
    assert time.monotonic() - begun < seconds
    assert not list(folder.iterdir())


def endless(path: Path) -> Path:
    """A classifier with a loop of a billion turns: onnxruntime is in it for minutes, and Python's handlers wait."""
    scalar, number = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("c", "d")], "a"
    body = helper.make_graph(
        [node("Identity", "c", "d"), node("Add", "a one", "b")],
        "turn",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            scalar[0],
            helper.make_tensor_value_info(number, TensorProto.FLOAT, [1]),
        ],
        [scalar[1], helper.make_tensor_value_info("b", TensorProto.FLOAT, [1])],
    )
    nodes = [
        node("Flatten", "image", "f"),
        node("MatMul", "f w", "m"),
        node("Loop", "turns true zero", "s", body=body),
        node("Mul", "s zero", "z"),
        node("Add", "m z", "logits"),
    ]
    constants: dict[str, Array] = {
        "w": np.ones((64, 10), np.float32),
        "turns": np.full((), 10**9, np.int64),
        "true": np.ones((), np.bool_),
        "zero": np.zeros(1, np.float32),
        "one": np.ones(1, np.float32),
    }
    onnx.save(make_model(nodes, {"image": ["N", 1, 8, 8]}, ["logits"], constants), path)
    return path


@SIGNALS
def test_inside_a_library_that_computes_for_minutes(tmp_path: Path, number: signal.Signals) -> None:
    model, out = endless(tmp_path / "m.onnx"), tmp_path / "out"
    out.mkdir()
    process = start("quantize", model, "--data", DIGITS_CARD, "--output", out / "q.onnx")
    time.sleep(6)
    assert process.poll() is None
    process.send_signal(number)
    assert_stopped(process, out, seconds=20)


@SIGNALS
@pytest.mark.parametrize("delay", [0.3, 0.6, 1.0])
def test_while_everything_is_imported(tmp_path: Path, number: signal.Signals, delay: float) -> None:
    """A third of a second, since this machine may be busy; what comes before is Python's own start."""
    process = start("quantize", DIGITS_MODEL, "--data", DIGITS_CARD, "--output", tmp_path / "q.onnx")
    time.sleep(delay)
    process.send_signal(number)
    assert_stopped(process, tmp_path, seconds=10)


def test_the_early_line_is_the_late_one(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands twice, since the early one cannot wait for an import."""
    codes: list[int] = []
    monkeypatch.setattr("os._exit", codes.append)
    __main__._leave_at_once()
    assert (codes, capfd.readouterr().err) == ([stopping.CODE], LINE)


def test_what_goes_on_is_told_that_a_signal_came() -> None:
    for error in (KeyboardInterrupt, None):
        with stopping.going_on() as interruption:
            if error is not None:
                raise error
        assert interruption.came is (error is not None)


def test_other_errors_pass_through_what_goes_on() -> None:
    with pytest.raises(ValueError, match="wrong"), stopping.going_on():
        raise ValueError("wrong")
