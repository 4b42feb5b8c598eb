"""The story from a float model to a quantized one, a line per stage."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from onnx import ModelProto

from onnx_cbq.calibration.draw import everything
from onnx_cbq.calibration.samples import Indices
from onnx_cbq.errors import OnnxCbqError
from onnx_cbq.evidence import class_scores
from onnx_cbq.evidence.cache import Cache
from onnx_cbq.evidence.workload import (
    DataSource,
    ModelSource,
    Workload,
    aimed_at,
    check_moved_labels,
    prepare,
    run_by,
)
from onnx_cbq.execution import Engine, ModelFile
from onnx_cbq.execution.settings import ALONE, ExecutionConfig
from onnx_cbq.goals.goal import solve
from onnx_cbq.jobs.choice import Choice
from onnx_cbq.jobs.data_free import DataFreeConfig, DataFreeResult, quantize_data_free
from onnx_cbq.jobs.debug import debug
from onnx_cbq.jobs.details import describe
from onnx_cbq.jobs.refine import Refinement, refine
from onnx_cbq.jobs.result import CurvePoint, Result
from onnx_cbq.jobs.settings import QuantizeConfig
from onnx_cbq.jobs.versions import all_versions
from onnx_cbq.methods import Learning
from onnx_cbq.stages.activation_widths import choose_widths
from onnx_cbq.stages.equalize import equalize
from onnx_cbq.stages.samples import draw_samples, weights_of
from onnx_cbq.stages.scene import Scene, make_scene
from onnx_cbq.stages.solution import Solution
from onnx_cbq.stages.wild import without_wild
from onnx_cbq.stages.written import file_size, write_solution
from onnx_cbq.storage.files import write_model
from onnx_cbq.system.processor import processor_kind
from onnx_cbq.system.progress import Clock, Progress, silent
from onnx_cbq.system.temporary import temporary_folder
from onnx_cbq.system.user_cache import largest_folder
from onnx_cbq.training import check_torch
from onnx_cbq.verification.comparison import compare
from onnx_cbq.verification.prove import Proof, attempt, prove

_LOG = logging.getLogger("onnx_cbq")
# Scales and biases that were trained may take a little more once compressed.
_SPARE_BYTES = 16


def quantize(
    model: ModelSource,
    data: DataSource,
    config: QuantizeConfig | None = None,
    progress: Progress = silent,
    cache: str | Path | None = None,
    execution: ExecutionConfig = ALONE,
) -> Result:
    """Quantize a classifier to the average bits that `config` asks for, and prove what it costs.

    Args:
        model: path of an ONNX file, or a `ModelProto`; it is not changed.
        data: path of a calibration card, or a `CalibrationSet`.
        config: the settings; `QuantizeConfig()` if left out.
        progress: called as the long stages go on.
        cache: a folder where evidence is looked for and kept, so that another run with other settings, or one that was
            ended, need not compute it again; None keeps nothing. The result is the same, bit for bit. The environment
            variable ONNX_CBQ_CACHE_SIZE limits its size.
        execution: who runs the model over the samples: worker processes, a Dask cluster, another provider.

    Raises:
        OnnxCbqError: model or samples cannot be used, or the result failed its check; the message says what to do.
    """
    with execution.open() as engine:
        return _quantize((model, data), config or QuantizeConfig(), (progress, cache), engine)


def _quantize(
    given: tuple[ModelSource, DataSource],
    config: QuantizeConfig,
    around: tuple[Progress, str | Path | None],
    engine: Engine,
) -> Result:
    (model, data), (progress, cache) = given, around
    choice, clock, refinement = config.choice, Clock(), _refinement(config)
    lessons = [part.learning for part in (choice.method, refinement) if part is not None and part.learning is not None]
    if lessons:
        check_torch()
    with clock.stage("load"):
        work = prepare(model, data, config.logits, config.ignore_outputs, keep_quantized=config.keep_quantized)
        work = aimed_at(work, choice.target, choice.scene.activations.bits)
        provider = engine.place.provider
        kept = Cache(None, provider) if cache is None else Cache(Path(cache), provider, largest_folder())
        work = run_by(replace(work, cache=kept), engine)
        _check_lessons(work, lessons)
    with clock.stage("trial"):
        attempt(work, choice.method, choice.scene, run_check=choice.run_check)
        if choice.gathers:
            work = without_wild(work, _used(work, choice, lessons), progress)
    if choice.equalizes and choice.scene.activations.bits:
        with clock.stage("equalize"):
            work = equalize(work, choice.scene, choice.goal.bits, progress)
    if choice.scene.activations.auto is not None:
        with clock.stage("activations"):
            work = choose_widths(work, choice.scene, progress)
    scene = make_scene(work, choice.scene, clock, progress)
    met = choice.goal.meet(scene, choice.method)
    solution, seen = met.solution, met.notes
    curve = tuple(_curve_point(scene, choice, bits) for bits in config.curve)
    if refinement is not None:
        with clock.stage("refine"):
            scene, solution, refined = _refined(scene, choice, solution, refinement)
        seen = (*seen, *refined)
    with clock.stage("emit"):
        output = write_solution(scene, choice.method.label, solution)
    with clock.stage("verify"):
        proof = prove(scene, solution, output, run_check=choice.run_check)
    work.cache.tidy()
    return replace(_result(scene, config, solution, proof, curve, seen), name=_name(model))


def _name(model: ModelSource) -> str:
    """Of its file."""
    return "" if isinstance(model, ModelProto) else Path(model).name


def _result(
    scene: Scene,
    config: QuantizeConfig,
    solution: Solution,
    proof: Proof,
    curve: tuple[CurvePoint, ...],
    seen: tuple[str, ...],
) -> Result:
    """Everything that is known in the end."""
    work, comparison = scene.work, proof.comparison
    notes = (
        *work.notes,
        *scene.drawn.notes,
        *solution.chosen.notes,
        *solution.rounded.notes,
        *solution.removal.notes,
        *seen,
        *proof.notes,
        *work.cache.notes,
    )
    for note in notes:
        _LOG.info("note: %s", note)
    return Result(
        model=proof.model,
        dump=proof.dump,
        plan=solution.plan,
        layers=work.layers,
        scores=scene.evidence.known(class_scores),
        method=solution.chosen.report,
        curve=curve,
        groups=scene.evidence.groups,
        reference=comparison.evaluations[0],
        quantized=comparison.evaluations[1],
        agreement=comparison.agreements[1],
        outputs=comparison.further,
        sizes=proof.sizes,
        fidelity=comparison.fidelity,
        left_float=work.left_float,
        processor=processor_kind(),
        removal=solution.removal,
        class_names=work.class_names,
        calibration_samples=len(scene.drawn.indices),
        seconds=scene.clock.seconds,
        notes=notes,
        versions=all_versions(),
        config=config,
        details=describe(scene, solution),
    )


def measure_layers(
    result: Result, model: ModelSource, path: Path, data: DataSource, progress: Progress = silent
) -> Result:
    """The result with what each layer of its file costs by itself; a note says why where that cannot be measured."""
    clock = Clock()
    try:
        with clock.stage("layers"):
            alone = debug(model, path, data, result.config.logits, progress=progress)
    except OnnxCbqError as error:
        return replace(result, notes=(*result.notes, f"--report-full: layers could not be measured: {error}"))
    return replace(result, alone=alone, seconds={**result.seconds, **clock.seconds})


def quantize_without_data(model: ModelSource, config: DataFreeConfig | None = None) -> DataFreeResult:
    """Quantize a model by nothing but its weights; activations stay float.

    Raises:
        OnnxCbqError: the model cannot be used, or the result failed its check.
    """
    return quantize_data_free(model, config, all_versions())


def _refinement(config: QuantizeConfig) -> Refinement | None:
    return None if config.refine is None else Refinement(config.refine)


def _check_lessons(work: Workload, lessons: Sequence[Learning]) -> None:
    """Refuse what cannot be learned from these samples.

    Raises:
        OnnxCbqError: they are no images, or their labels would move.
    """
    for lesson in lessons:
        work.samples.check_images(lesson.augment)
        check_moved_labels(work, lesson.augment, lesson.alpha)


def _used(work: Workload, choice: Choice, lessons: Sequence[Learning]) -> Indices:
    """The samples that the settings make use of: training and learned rounding learn from all there are."""
    if lessons or choice.scene.rounding.learns:
        return everything(work.samples, work.class_names)
    samples = choice.scene.samples
    return draw_samples(work, samples, weights_of(work, samples)).indices


def _refined(
    scene: Scene, choice: Choice, solution: Solution, refinement: Refinement
) -> tuple[Scene, Solution, tuple[str, ...]]:
    """What training made of a solution, unless it takes more bytes than were asked for."""
    limit = choice.goal.largest
    if limit is None:
        return refine(scene, choice.method, solution, refinement)
    label = choice.method.label
    room = limit - file_size(scene, label, solution) - _SPARE_BYTES
    trained, better, notes = refine(scene, choice.method, solution, refinement, room)
    size = file_size(trained, label, better)
    if size <= limit:
        return trained, better, notes
    return scene, solution, (*notes, f"--refine: kept the start after all: training made {size:,} bytes")


def _curve_point(scene: Scene, choice: Choice, bits: float) -> CurvePoint:
    """Another budget from the same statistics, run on all samples of the card."""
    work = scene.work
    solution = solve(scene, choice.method, bits)
    with scene.clock.stage("curve"), temporary_folder() as folder:
        path = folder / "quantized.onnx"
        size = write_model(write_solution(scene, choice.method.label, solution), path)
        indices = everything(work.samples, work.class_names)
        asked = work.logits, work.samples, indices
        found = compare([ModelFile(path)], [size], asked, progress=scene.progress, engine=work.engine)
    average = solution.plan.average_bits(work.layers)
    return CurvePoint(bits, average, math.ceil(average * work.layers.size / 8), found.evaluations[0])
