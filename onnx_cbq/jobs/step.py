"""From a model and samples to steps that build on each other, a line per stage: what `onnx-cbq step` does."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from onnx_cbq.calibration.draw import MOST_HELD, Draw, draw, everything
from onnx_cbq.errors import CalibrationError, ModelError, VerificationError
from onnx_cbq.evidence.cache import Cache
from onnx_cbq.evidence.workload import DataSource, ModelSource, Workload, check_single_label, further_notes, prepare
from onnx_cbq.graph.normalise import TOLERANCE, relative_error
from onnx_cbq.jobs.data_free import DataFreeConfig, quantize_data_free
from onnx_cbq.model import Array
from onnx_cbq.records.figures import to_json_text
from onnx_cbq.runtime import Session, median_latency, versions
from onnx_cbq.settings import changed_options
from onnx_cbq.stages.wild import without_wild
from onnx_cbq.stepping.assignment import move_units, step_macs
from onnx_cbq.stepping.emit import StepModel, emit_steps
from onnx_cbq.stepping.masks import Nested, subnet_model
from onnx_cbq.stepping.record import FORMAT, RECORD_NAME, SteppingRecord, StepRecord
from onnx_cbq.stepping.session import StepRunner
from onnx_cbq.stepping.units import Units, find_units
from onnx_cbq.stepping.widening import Counterpart, counterparts, needed_width, widen
from onnx_cbq.storage.files import write_folder
from onnx_cbq.system.progress import Clock, Progress, silent
from onnx_cbq.system.user_cache import largest_folder
from onnx_cbq.training import check_torch
from onnx_cbq.training.records import Course
from onnx_cbq.training.settings import StepConfig
from onnx_cbq.verification.counts import batch_size

_FEWEST = 2
# What a folder of steps may hold, so that it can be replaced.
STEP_FILES = re.compile(rf"step_\d+\.onnx|{re.escape(RECORD_NAME)}")


@dataclass(frozen=True)
class Steps:
    """Nested subnets of a model, as steps that build on each other.

    Attributes:
        record: the content of `stepping.json`.
        files: name -> content of every step.
        float_top1: of the model on the held-back samples, in percent; `float_latency_ms` its median at batch 1.
        float_bytes: of the model's file.
        seconds: per stage.
        notes: what a user should know.
        config: the settings.
    """

    record: SteppingRecord
    files: Mapping[str, bytes]
    float_top1: float
    float_latency_ms: float
    float_bytes: int
    seconds: Mapping[str, float]
    notes: tuple[str, ...]
    config: StepConfig

    def save(self, folder: str | Path) -> None:
        """Write the folder whole or not at all; one with earlier steps is replaced.

        Raises:
            OutputError: it cannot be written, or holds other files.
        """
        files = {**self.files, RECORD_NAME: self.record.to_json().encode()}
        write_folder(Path(folder), files, STEP_FILES)

    def to_json(self) -> str:
        """Everything but the models."""
        content = {
            "float": {"top1": self.float_top1, "bytes": self.float_bytes, "latency_ms": self.float_latency_ms},
            "stepping": asdict(self.record),
            "notes": list(self.notes),
            "seconds": dict(self.seconds),
            "versions": versions(),
            "settings": changed_options(self.config),
        }
        return to_json_text("step", content)


def make_steps(
    model: ModelSource,
    data: DataSource,
    config: StepConfig | None = None,
    progress: Progress = silent,
    cache: str | Path | None = None,
) -> Steps:
    """Find nested subnets of a classifier, train them, and make a model of every step.

    Args:
        model: path of an ONNX file, or a `ModelProto`; it is not changed.
        data: path of a calibration card, or a `CalibrationSet`; most samples are learned from, the rest are held back.
        config: the settings; `StepConfig()` if left out.
        progress: called as training goes on.
        cache: a folder where the training is kept, so that one that is ended goes on, as in `quantize`; None for none.

    Raises:
        ConfigError: torch is not installed.
        OnnxCbqError: model or samples cannot be used.
        VerificationError: a subnet cannot be made as small as asked, or a step failed its check.
    """
    check_torch()
    # Only here, so that everything else works without torch.
    from onnx_cbq.training.nesting import NestingTask, run_nesting  # noqa: PLC0415

    config, clock = config or StepConfig(), Clock()
    with clock.stage("load"):
        work = prepare(model, data, config.logits)
        work = replace(work, cache=Cache() if cache is None else Cache(Path(cache), largest=largest_folder()))
        check_single_label(work)
        work.samples.check_images(config.augment)
        narrow = find_units(work.model, work.shapes, work.logits)
        limits = tuple(share * narrow.macs for share in config.macs)
        units, pairs = _widened(work, narrow, needed_width(config.macs) if config.width is None else config.width)
        # A limit that cannot be met is said before training, not after it.
        move_units(units, np.ones(units.count, np.int64), np.ones((len(limits), units.count)), limits)
        work = without_wild(work, everything(work.samples, work.class_names), progress)
    learned, held = _drawn(work, config)
    with clock.stage("train"):
        parts = work.samples, learned.indices, held.indices, work.class_names
        nested, course = run_nesting(
            NestingTask(units, narrow.model, limits, *parts, pairs, work.cache), config, progress
        )
    with clock.stage("emit"):
        steps = emit_steps(units, nested)
        _check(work, units, nested, steps)
        if config.bits is not None:
            steps = tuple(_quantized(step, config.bits) for step in steps)
    with clock.stage("verify"):
        files = {f"step_{k}.onnx": step.model.to_proto().SerializeToString() for k, step in enumerate(steps, start=1)}
        record = _record((work, _digest(model)), (units, narrow.macs), nested, steps, files)
        record = _measured(work, held, replace(record, bits=config.bits), list(files.values()))
        top1, latency = _original(work, held)
    work.cache.tidy()
    learning = (*_width_notes(narrow, units), _course_note(course, config), *_order_notes(record))
    notes = (*_input_notes(work), *learning, *work.cache.notes)
    return Steps(record, files, top1, latency, work.source_bytes, clock.seconds, notes, config)


def _widened(work: Workload, units: Units, width: float) -> tuple[Units, tuple[Counterpart, ...]]:
    """The units of a net that is wider and computes the same, and which of its tensors are those of the original.

    Raises:
        VerificationError: it does not.
    """
    pairs = counterparts(units, width)
    if width == 1:
        return units, pairs
    model = widen(units, width)
    for feeds in work.example.runs(units.model):
        expected = Session(units.model).run(feeds)
        found = Session(model).run(feeds, list(expected))
        deviation = relative_error(list(found.values()), list(expected.values()))
        if not deviation <= TOLERANCE:
            raise VerificationError(
                f"the wider net differs by {deviation:.1e} of its largest output; report this as a bug"
            )
    return find_units(model, work.example.shapes(model), units.logits), pairs


def _drawn(work: Workload, config: StepConfig) -> tuple[Draw, Draw]:
    """The samples to learn from, and those held back.

    Raises:
        CalibrationError: there are too few.
    """
    learned, held = draw(work.samples, work.class_names, None, config.seed).split(config.held_back, MOST_HELD)
    if len(learned.indices) < _FEWEST:
        raise CalibrationError(
            f"{work.samples.data.source.label}: {len(learned.indices)} samples to learn from, {len(held.indices)} held "
            f"back; expected {_FEWEST} or more to learn from, whose mean and variance normalize the others"
        )
    return learned, held


def _check(work: Workload, units: Units, nested: Nested, steps: Sequence[StepModel]) -> None:
    """Every step must be valid ONNX, and give what its subnet gives as one model.

    Raises:
        VerificationError: it does not.
    """
    for feeds in work.example.runs(units.model):
        values: dict[str, Array] = dict(feeds)
        for number, step in enumerate(steps, start=1):
            try:
                onnx.checker.check_model(step.model.to_proto(), full_check=True)
                values |= Session(step.model).run({name: values[name] for name in step.inputs})
            except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ModelError) as error:
                raise VerificationError(f"step {number} is not valid: {str(error).splitlines()[0]}") from error
            expected = Session(subnet_model(units, nested, number)).run(feeds)
            deviation = relative_error([values[name] for name in expected], list(expected.values()))
            if not deviation <= TOLERANCE:
                raise VerificationError(
                    f"step {number} differs from its subnet by {deviation:.1e} of its largest output; "
                    f"report this as a bug"
                )


def _quantized(step: StepModel, bits: int) -> StepModel:
    """A step with its weights on grids of so many bits, found without samples; one without layers stays."""
    if not any(node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") for node in step.model.nodes):
        return step
    return replace(step, model=quantize_data_free(step.model.to_proto(), DataFreeConfig(bits)).model)


def _digest(model: ModelSource) -> str:
    """SHA-256 of the model's file, or of the message."""
    content = model.SerializeToString() if isinstance(model, onnx.ModelProto) else Path(model).read_bytes()
    return hashlib.sha256(content).hexdigest()


def _record(
    source: tuple[Workload, str],
    net: tuple[Units, int],
    nested: Nested,
    steps: Sequence[StepModel],
    files: Mapping[str, bytes],
) -> SteppingRecord:
    (work, digest), (units, model_macs) = source, net
    macs = step_macs(units, nested.assignment, nested.steps)
    records = (
        StepRecord(
            file=name,
            sha256=hashlib.sha256(content).hexdigest(),
            bytes=len(content),
            inputs=step.inputs,
            outputs=step.outputs,
            macs=int(own),
            share=float(total / model_macs),
            top1=0.0,
            latency_ms=0.0,
        )
        for step, own, total, (name, content) in zip(steps, macs, np.cumsum(macs), files.items(), strict=True)
    )
    return SteppingRecord(
        format=FORMAT,
        model_sha256=digest,
        model_macs=model_macs,
        inputs=tuple(spec.name for spec in units.model.inputs),
        output=units.logits.output,
        logits=units.logits.tensor,
        classes=work.class_names,
        held_back=0,
        bits=None,
        steps=tuple(records),
    )


def _measured(work: Workload, held: Draw, record: SteppingRecord, contents: Sequence[bytes]) -> SteppingRecord:
    """The record with the accuracy and the latency of every step."""
    runner, hits = StepRunner(record, contents), np.zeros(len(record.steps), np.int64)
    for batch in work.samples.batches(held.indices, batch_size(work.samples)):
        for i, step in enumerate(runner.steps(batch.feeds)):
            hits[i] += int((step.classes[: batch.count] == batch.labels).sum())
    latencies = runner.latencies(work.samples.read(held.indices[: work.samples.fixed_batch or 1]))
    top1 = 100 * hits / len(held.indices)
    steps = (
        replace(step, top1=float(found), latency_ms=latency)
        for step, found, latency in zip(record.steps, top1, latencies, strict=True)
    )
    return replace(record, held_back=len(held.indices), steps=tuple(steps))


def _original(work: Workload, held: Draw) -> tuple[float, float]:
    """Top-1 of the model as it came on the held-back samples, in percent, and its latency in milliseconds."""
    session, hits, output = Session(work.source), 0, work.logits.output
    if output not in session.outputs:
        session = Session(work.model.with_graph(outputs=[output]))
    for batch in work.samples.batches(held.indices, batch_size(work.samples)):
        scores = session.run(batch.feeds, [output])[output]
        hits += int((scores.reshape(len(scores), -1)[: batch.count].argmax(axis=1) == batch.labels).sum())
    one = work.samples.read(held.indices[: work.samples.fixed_batch or 1])
    return 100 * hits / len(held.indices), 1e3 * median_latency([session], one)[0]


def _input_notes(work: Workload) -> tuple[str, ...]:
    """What preparing the model had to say, and which outputs steps do not have."""
    said = tuple(note for note in work.notes if note not in further_notes(work.further))
    lost = [name for name in work.model.outputs if name != work.logits.output]
    return (*said, *([f"steps give the class scores alone, not {', '.join(map(repr, lost))}"] if lost else []))


def _width_notes(narrow: Units, units: Units) -> tuple[str, ...]:
    """What was widened, if anything was."""
    if units.count == narrow.count:
        return ()
    found = f"{units.count - 1:,} units instead of {narrow.count - 1:,}"
    return (f"--width: subnets are taken from a net of {found}, {units.macs / narrow.macs:.2f} times the MACs",)


def _course_note(course: Course, config: StepConfig) -> str:
    why = {"updates": "all", "time": f"until {config.minutes:g} minutes were over,", "Ctrl-C": "until Ctrl-C,"}
    return (
        f"training: {why[course.stopped]} {course.updates} updates in {course.seconds:.0f} s; "
        f"mean divergence on samples held back: {course.start.loss:.4f} when units were in place, "
        f"{course.best.loss:.4f} kept"
    )


def _order_notes(record: SteppingRecord) -> tuple[str, ...]:
    """Steps that are no better than the one before."""
    found = [step.top1 for step in record.steps]
    worse = [str(k) for k in range(2, len(found) + 1) if found[k - 1] <= found[k - 2]]
    return (f"step {', '.join(worse)} is no better than the one before; train longer",) if worse else ()
