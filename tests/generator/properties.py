"""What must hold of every command on every model that onnxruntime runs."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, ValueInfoProto

import onnx_cbq
from onnx_cbq import CalibrationSet, DataFreeConfig, OnnxCbqError, QuantizeConfig, VerificationError
from onnx_cbq.jobs.inspect import inspect
from onnx_cbq.model import Array
from tests.generator import noise
from tests.generator.jobs import Job
from tests.generator.models import Case, run, session
from tests.generator.refusals import reason_of

# A command on a net of a few hundred weights; generous, since machines are shared.
SECONDS = 20.0


class BrokenError(AssertionError):
    """A property does not hold; `kind` says which, without names and numbers."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind, self.detail = kind, detail


@dataclass(frozen=True)
class Outcome:
    """A command that did what it should.

    Attributes:
        refused: the reason, if it said that it cannot.
        distances: of each output from the float model's, as a share of what is allowed.
    """

    refused: str | None
    seconds: float
    distances: Mapping[str, float]


def examine(case: Case, job: Job, folder: Path) -> Outcome:
    """Run `job` on `case`; files go into `folder`.

    Raises:
        BrokenError: a property does not hold; any other exception is a fault as well.
    """
    path = folder / "model.onnx"
    onnx.save(case.model, path)
    started = time.monotonic()
    try:
        made = _carry_out(case, job, path, folder)
    except VerificationError as error:
        raise BrokenError("its own check failed", str(error)) from error
    except OnnxCbqError as error:
        message = str(error)
        if "\n" in message or not message:
            raise BrokenError("a message that is not one line", message) from error
        reason = reason_of(message, case, job)
        if reason is None:
            raise BrokenError("refused without need", message) from error
        return Outcome(reason, time.monotonic() - started, {})
    seconds = time.monotonic() - started
    if seconds > SECONDS:
        raise BrokenError("slow", f"{seconds:.0f} s")
    if made is None:
        return Outcome(None, seconds, {})
    return Outcome(None, seconds, dict(_hold(case, job, made)))


def _carry_out(case: Case, job: Job, path: Path, folder: Path) -> Path | None:
    """The command; returns the quantized file, if it makes one."""
    data = CalibrationSet.from_arrays(case.inputs, case.labels)
    if isinstance(job.config, DataFreeConfig):
        free, target = onnx_cbq.quantize_without_data(path, job.config), folder / "free.onnx"
        free.save(target)
        return target
    if isinstance(job.config, QuantizeConfig):
        config = _with_logits(job.config, case)
        result, target = onnx_cbq.quantize(path, data, config), folder / "quantized.onnx"
        if config.storage == "archive":
            packed = folder / "quantized.cbqz"
            result.save(packed)
            target.write_bytes(onnx_cbq.restore(packed))
        else:
            result.save(target)
            if config.storage == "int8":
                content = onnx_cbq.restore(onnx_cbq.archive(target).content)
                _demand(content == target.read_bytes(), "an archive that restores something else")
        result.to_json()
        inspect(target)
        checked = onnx_cbq.check(target, config.choice.target.name)
        _demand(
            all(violation.effect == "slow" for violation in checked.violations),
            "check finds something in what quantize wrote",
            "; ".join(map(str, checked.violations)),
        )
        return target
    if job.name == "score":
        onnx_cbq.score(path, data, _with_logits(QuantizeConfig(), case))
    else:
        onnx_cbq.evaluate(path, data, logits=case.logits)
        inspect(path)
    return None


def _with_logits(config: QuantizeConfig, case: Case) -> QuantizeConfig:
    return replace(config, logits=case.logits)


def _hold(case: Case, job: Job, path: Path) -> Iterator[tuple[str, float]]:
    """Hold the file against the float model; gives the distance of each output as a share of what is allowed."""
    made = onnx.load(path)
    fixed = isinstance(job.config, QuantizeConfig) and job.config.target not in ("cpu", "vnni", "arm64")
    _same_interface(case.model, made, sizes=not fixed)
    batch = case.fixed_batch
    fused, plain = session(made), session(made, plain=True)
    if fixed:
        declared = fused.get_inputs()[0].shape[0]
        batch = declared if isinstance(declared, int) else batch
    reference = run(session(case.model), case.inputs, case.fixed_batch)
    outputs, unfused = run(fused, case.inputs, batch), run(plain, case.inputs, batch)
    for name, value in reference.items():
        if batch != case.fixed_batch and value.shape[:1] != case.labels.shape:
            continue  # of a batch, not of its samples
        _demand(outputs[name].shape == value.shape, "an output of another shape", name)
        _demand(outputs[name].dtype == value.dtype, "an output of another type", name)
        if np.issubdtype(value.dtype, np.floating):
            _demand(bool(np.isfinite(outputs[name]).all()), "an output that is not finite", name)
    if not fixed:
        _same_for_other_sizes(case, fused)
    if job.close:
        floats = {name: value for name, value in reference.items() if np.issubdtype(value.dtype, np.floating)}
        limits = noise.allowed(case, floats)
        for name, value in floats.items():
            for what, found in (("the fused graph", outputs), ("the plain graph", unfused)):
                share = noise.distance(found[name], value) / limits[name]
                detail = f"{name}: {share:.2f} times what rounding explains; deviation of the output {value.std():.3g}"
                _demand(share <= 1, f"{what} far from the float model", detail)
                yield f"{what}, {name}", share
            share = noise.distance(outputs[name], unfused[name]) / limits[name]
            _demand(share <= 1, "the fused graph far from the plain one", f"{name}: {share:.2f}")


def _same_interface(model: ModelProto, made: ModelProto, *, sizes: bool) -> None:
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [info for info in model.graph.input if info.name not in constants]
    for what, before, after in (
        ("inputs", inputs, list(made.graph.input)),
        ("outputs", list(model.graph.output), list(made.graph.output)),
    ):
        _demand(
            [i.name for i in before] == [i.name for i in after],
            f"other {what}",
            f"{[i.name for i in before]} and {[i.name for i in after]}",
        )
        for old, new in zip(before, after, strict=True):
            kinds = old.type.tensor_type.elem_type, new.type.tensor_type.elem_type
            _demand(kinds[0] in (0, kinds[1]), f"another type among the {what}", f"{old.name}: {kinds}")
            if sizes and old.type.tensor_type.HasField("shape"):
                _demand(_sizes(old) == _sizes(new), f"another shape among the {what}", f"{_sizes(old)} {_sizes(new)}")
    before_props = {p.key: p.value for p in model.metadata_props}
    after_props = {p.key: p.value for p in made.metadata_props}
    _demand(before_props.items() <= after_props.items(), "metadata lost", str(before_props.keys() - after_props.keys()))


def _sizes(info: ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in info.type.tensor_type.shape.dim]


def _same_for_other_sizes(case: Case, made: Any) -> None:
    """Other batches, lengths and image sizes than calibrated with: the shapes are those of the float model."""
    original = session(case.model)
    for feeds in _other_sizes(case):
        try:
            expected = run(original, feeds, None)
        except Exception:  # noqa: BLE001, S112  # the float model takes no such size
            continue
        try:
            found = run(made, feeds, None)
        except Exception as error:
            raise BrokenError("does not run at another size", str(error).splitlines()[0]) from error
        for name, value in expected.items():
            _demand(
                found[name].shape == value.shape, "another shape at another size", f"{found[name].shape} {value.shape}"
            )


def _other_sizes(case: Case) -> Iterator[dict[str, Array]]:
    if case.fixed_batch is None:
        yield {name: value[:1] for name, value in case.inputs.items()}
        yield {name: value[:5] for name, value in case.inputs.items()}
    if case.dynamic:
        first, *others = case.inputs
        value = case.inputs[first][: case.fixed_batch or 2]
        for factor in (2, 1.5):
            # Tokens [N, T, D] grow along T, images and sequences along all but the channels.
            axes = [1] if "dynamic tokens" in case.features else list(range(2, value.ndim))
            grown = value
            for axis in axes:
                size = int(value.shape[axis] * factor)
                grown = np.take(grown, np.arange(size) % value.shape[axis], axis=axis)
            yield {first: grown} | {name: case.inputs[name][: len(value)] for name in others}


def _demand(holds: bool, kind: str, detail: str = "") -> None:
    if not holds:
        raise BrokenError(kind, detail)


def plain(message: str) -> str:
    """A message without paths, names and numbers, to count kinds by."""
    message = re.sub(r"\S*/(model|quantized|free)\.\w+", "MODEL", message)
    message = re.sub(r"'[^']*'|\"[^\"]*\"", "'...'", message)
    return re.sub(r"\d+(\.\d+)?(e-?\d+)?", "#", message)
