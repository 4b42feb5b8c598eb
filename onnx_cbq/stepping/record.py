"""`stepping.json`: what a folder of steps says about itself, and how it is read without trusting it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cattrs import Converter
from cattrs.errors import BaseValidationError

from onnx_cbq.errors import ModelError

RECORD_NAME = "stepping.json"
FORMAT = 1
_FILE = re.compile(r"step_[1-9][0-9]{0,2}\.onnx")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MOST_BYTES = 16 << 20
_ADVICE = "make the steps again with onnx-cbq step"


@dataclass(frozen=True)
class StepRecord:
    """One step.

    Attributes:
        file: its name, without a folder; `sha256` and `bytes` are those of the file.
        inputs: names of inputs of the model, and of what earlier steps made.
        outputs: the class scores first, then what later steps read.
        macs: multiplications of this step for one sample; `share` those of all steps up to it, of the original's.
        top1: of held-back samples, in percent.
        latency_ms: median of this step alone at batch 1, on the machine that made it.
    """

    file: str
    sha256: str
    bytes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    macs: int
    share: float
    top1: float
    latency_ms: float


@dataclass(frozen=True)
class SteppingRecord:
    """A folder of steps.

    Attributes:
        format: number of this format.
        model_sha256: of the model that the steps were made from; `model_macs` are its multiplications.
        inputs: of that model.
        output: what it gives; `logits` the tensor with the class scores, which is the same where no softmax is behind.
        classes: names, in the order of the scores.
        held_back: how many samples `top1` is of.
        bits: width of the weights; null for float.
    """

    format: int
    model_sha256: str
    model_macs: int
    inputs: tuple[str, ...]
    output: str
    logits: str
    classes: tuple[str, ...]
    held_back: int
    bits: int | None
    steps: tuple[StepRecord, ...]

    def to_json(self) -> str:
        """The text of `stepping.json`."""
        return json.dumps(asdict(self), indent=1) + "\n"


def read_record(folder: Path) -> SteppingRecord:
    """The record of a folder, checked in itself.

    Raises:
        ModelError: it is missing or damaged, its steps do not fit together, or a file would lie outside the folder.
    """
    path = folder / RECORD_NAME
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ModelError(f"{path}: too large for a {RECORD_NAME}; {_ADVICE}")
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file; give the folder that onnx-cbq step wrote") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: damaged: not JSON; {_ADVICE}") from error
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        raise ModelError(f"{path}: expected format {FORMAT}; {_ADVICE}, or use the version that wrote it")
    try:
        record = Converter(forbid_extra_keys=True).structure(content, SteppingRecord)
        reason = _strict(content, record) or _disagreement(record)
    except (BaseValidationError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise ModelError(f"{path}: damaged: a key is missing, unknown or of another type; {_ADVICE}") from error
    if reason:
        raise ModelError(f"{path}: {reason}; {_ADVICE}")
    return record


def read_step(folder: Path, step: StepRecord) -> bytes:
    """The model of a step.

    Raises:
        ModelError: the file is missing, or is not the one that was written.
    """
    path = folder / step.file
    try:
        if path.stat().st_size != step.bytes:
            raise ModelError(f"{path}: has {path.stat().st_size} bytes, expected {step.bytes}; {_ADVICE}")
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}; {_ADVICE}") from error
    if hashlib.sha256(content).hexdigest() != step.sha256:
        raise ModelError(f"{path}: is not the file that {RECORD_NAME} was written with; {_ADVICE}")
    return content


def _strict(content: object, record: SteppingRecord) -> str:
    """What changes when the record is written again: numbers as text, numbers for names and the like."""
    same = json.loads(record.to_json()) == content
    return "" if same else "damaged: a value has another type than expected"


def _disagreement(record: SteppingRecord) -> str:
    """What makes a record useless, or nothing."""
    if not record.steps or not record.inputs or not record.classes:
        return "damaged: no steps, inputs or classes"
    if len({step.file for step in record.steps}) < len(record.steps):
        return "two steps have the same file"
    known, scores = set(record.inputs), (record.output, record.logits)
    for number, step in enumerate(record.steps, start=1):
        if reason := _fault(step, known, scores):
            return f"step {number}: {reason}"
        known |= set(step.outputs).difference(scores)
    return ""


def _fault(step: StepRecord, known: set[str], scores: Sequence[str]) -> str:
    """What is wrong with a step, or nothing; `known` are the tensors that there are before it."""
    if not _FILE.fullmatch(step.file):
        return f"expected a file name such as step_1.onnx, got {step.file!r}"
    if not _DIGEST.fullmatch(step.sha256) or min(step.bytes, step.macs) < 0:
        return "damaged digest, bytes or macs"
    if missing := _first_outside(step.inputs, known):
        return f"reads {missing!r}, which no earlier step makes"
    missing = _first_outside(scores, set(step.outputs))
    return f"does not give {missing!r}" if missing else ""


def _first_outside(names: Sequence[str], known: set[str]) -> str | None:
    return next((name for name in names if name not in known), None)
