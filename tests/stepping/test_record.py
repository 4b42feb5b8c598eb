"""`stepping.json` and the files beside it are not believed: whatever is wrong with them is one line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnx_cbq.errors import CalibrationError, ModelError
from onnx_cbq.stepping.emit import emit_steps
from onnx_cbq.stepping.record import FORMAT, SteppingRecord, StepRecord
from onnx_cbq.stepping.session import SteppingSession
from tests.stepping.nets import padded_net, random_nested, units_of

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two steps of an untrained net."""
    units, _ = units_of(padded_net())
    records = []
    for number, step in enumerate(emit_steps(units, random_nested(units, 2, 0)), start=1):
        content = step.model.to_proto().SerializeToString()
        name = f"step_{number}.onnx"
        (tmp_path / name).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        records.append(StepRecord(name, digest, len(content), step.inputs, step.outputs, 10, 0.5, 50.0, 0.1))
    classes = tuple("abcde")
    record = SteppingRecord(FORMAT, "0" * 64, 40, ("x",), "y", "z", classes, 10, None, tuple(records))
    (tmp_path / "stepping.json").write_text(record.to_json())
    return tmp_path


def test_a_whole_folder_runs(folder: Path) -> None:
    session = SteppingSession(folder)
    found = list(session.steps({"x": np.ones((3, 3, 8, 8), np.float32)}))
    assert [step.total_macs for step in found] == [10, 20]
    # The model ends in a softmax, which `output` has and `logits` do not.
    odds = np.exp(found[1].logits)
    np.testing.assert_allclose(found[1].output, odds / odds.sum(axis=1, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(found[1].confidence, found[1].output.max(axis=1), rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(format=2), "expected format 1"),
        (lambda r: r.update(extra=1), "damaged: a key is missing, unknown"),
        (lambda r: r.pop("classes"), "damaged: a key is missing, unknown"),
        (lambda r: r.update(held_back="many"), "damaged: a key is missing, unknown or of another type"),
        (lambda r: r.update(held_back="7"), "damaged: a value has another type"),
        (lambda r: r.update(steps=[]), "damaged: no steps"),
        (lambda r: r["steps"][0].update(file="../step_1.onnx"), "expected a file name such as step_1.onnx"),
        (lambda r: r["steps"][0].update(file="/etc/passwd"), "expected a file name such as step_1.onnx"),
        (lambda r: r["steps"][1].update(file="step_1.onnx"), "two steps have the same file"),
        (lambda r: r["steps"][0].update(sha256="f" * 64), "is not the file that stepping.json was written with"),
        (lambda r: r["steps"][0].update(sha256="f"), "damaged digest"),
        (lambda r: r["steps"][0].update(bytes=1 << 60), "expected 1152921504606846976"),
        (lambda r: r["steps"][0].update(macs=-1), "damaged digest, bytes or macs"),
        (lambda r: r["steps"].reverse(), "which no earlier step makes"),
        (lambda r: r["steps"][0].update(inputs=[]), "has other inputs or outputs than its record says"),
        (lambda r: r["steps"][0].update(outputs=["y"]), "step 1: does not give 'z'"),
        (lambda r: r.update(logits="other"), "does not give 'other'"),
    ],
)
def test_what_is_wrong_is_said(folder: Path, change: Change, message: str) -> None:
    record = json.loads((folder / "stepping.json").read_text())
    change(record)
    (folder / "stepping.json").write_text(json.dumps(record))
    with pytest.raises(ModelError, match=message):
        SteppingSession(folder)


@pytest.mark.parametrize("content", ["", "[]", "null", "{", '{"format": 1', "[" * 100_000, "\x00"])
def test_a_damaged_record_is_refused(folder: Path, content: str) -> None:
    (folder / "stepping.json").write_text(content)
    with pytest.raises(ModelError, match=r"stepping\.json: (damaged|expected format)"):
        SteppingSession(folder)


def test_missing_files_are_named(folder: Path) -> None:
    (folder / "step_2.onnx").unlink()
    with pytest.raises(ModelError, match=r"step_2\.onnx: cannot be read: No such file"):
        SteppingSession(folder)
    with pytest.raises(ModelError, match=r"stepping\.json: no such file; give the folder that onnx-cbq step wrote"):
        SteppingSession(folder / "nowhere")


def test_inputs_are_checked(folder: Path) -> None:
    session = SteppingSession(folder)
    with pytest.raises(CalibrationError, match="expected the inputs x, got image"):
        next(session.steps({"image": np.ones((1, 3, 8, 8), np.float32)}))
    with pytest.raises(ModelError, match="onnxruntime cannot run the model"):
        next(session.steps(np.ones((1, 3, 9), np.float32)))
