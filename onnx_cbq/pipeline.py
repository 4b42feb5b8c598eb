"""The story from a float model to a quantized one, a line per stage."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from onnx_cbq.calibration.samples import Draw, draw
from onnx_cbq.config import DataFreeConfig, QuantizeConfig
from onnx_cbq.data_free import DataFreeResult, quantize_data_free
from onnx_cbq.emit.archive import archive, restore
from onnx_cbq.emit.files import compressed_size, write_model
from onnx_cbq.emit.metadata import StoredPlan, read_metadata, with_metadata
from onnx_cbq.equalizing import equalize
from onnx_cbq.errors import VerificationError
from onnx_cbq.graph.layers import find_layers
from onnx_cbq.graph.load import load
from onnx_cbq.graph.logits import find_logits
from onnx_cbq.graph.normalise import normalise
from onnx_cbq.graph.shapes import Example
from onnx_cbq.limits import meet_limits
from onnx_cbq.model import Model
from onnx_cbq.progress import Clock, Progress, silent
from onnx_cbq.records import Evaluation, Grouping, Layers, Scores
from onnx_cbq.refining import State, check_training, refine
from onnx_cbq.result import CurvePoint, EvaluationResult, Result, Sizes
from onnx_cbq.runtime import versions
from onnx_cbq.scoring import score_channels, scoring_graph
from onnx_cbq.sizes import meet_bytes
from onnx_cbq.solving import Setting, Solution, emit_solution, make_setting, solve, with_bits
from onnx_cbq.verify import Comparison, check_equal, check_file, compare
from onnx_cbq.workload import (
    DataSource,
    ModelSource,
    Workload,
    as_set,
    left_out,
    make_example,
    prepare,
    size_of,
)

# Scales and biases that were trained may take a little more once compressed.
_SPARE_BYTES = 16


def quantize(
    model: ModelSource,
    data: DataSource,
    config: QuantizeConfig | None = None,
    progress: Progress = silent,
    state: State | None = None,
) -> Result:
    """Quantize a classifier to the average bits that `config` asks for, and prove what it costs.

    Args:
        model: path of an ONNX file, or a `ModelProto`; it is not changed.
        data: path of a calibration card, or a `CalibrationSet`.
        config: the settings; `QuantizeConfig()` if left out.
        progress: called as the long stages go on.
        state: with `config.refine`, a file that keeps the state of the training until it is over.

    Raises:
        OnnxCbqError: model or samples cannot be used, or the result failed its check; the message says what to do.
    """
    config = config or QuantizeConfig()
    clock = Clock()
    if config.refine is not None or config.method == "differentiable":
        check_training(state)
    with clock.stage("load"):
        work = prepare(model, data, config.logits)
    if config.refine is not None:
        work.samples.check_images(config.refine.augment)
    if config.method == "differentiable":
        work.samples.check_images(config.differentiable.augment)
    if config.equalize and config.activation_bits:
        with clock.stage("equalize"):
            work = equalize(work, config, progress)
    setting = make_setting(work, config, clock, progress)
    solution, seen = _solution(setting, clock, progress)
    if config.refine is not None:
        with clock.stage("refine"):
            setting, solution, refined = _refined(setting, solution, state, progress)
        seen = (*seen, *refined)
    rounded, plan = solution.rounded, solution.plan
    curve = tuple(_curve_point(setting, bits, clock, progress) for bits in config.curve)
    with clock.stage("emit"):
        output = _emit(setting, solution)
    with clock.stage("verify"):
        comparison, sizes = _verify(setting, solution, output, progress)
    return Result(
        model=output,
        plan=plan,
        layers=work.layers,
        scores=setting.evidence.scores,
        search=solution.planned.search,
        widths=solution.planned.widths,
        curve=curve,
        groups=setting.evidence.groups,
        reference=comparison.evaluations[0],
        quantized=comparison.evaluations[1],
        agreement=comparison.agreements[1],
        sizes=sizes,
        removal=solution.removal,
        class_names=work.class_names,
        calibration_samples=len(setting.drawn.indices),
        seconds=clock.seconds,
        notes=(
            *work.notes,
            *setting.drawn.notes,
            *solution.planned.notes,
            *rounded.notes,
            *solution.removal.notes,
            *seen,
        ),
        versions=_versions(),
        config=config,
    )


def _solution(setting: Setting, clock: Clock, progress: Progress) -> tuple[Solution, tuple[str, ...]]:
    """The solution that the settings ask for, and what a user should know of how it was found."""
    config = setting.config
    if config.bytes is not None:
        return meet_bytes(setting, _file_size, clock, progress)
    if config.max_drop is not None or config.max_class_drop is not None:
        return meet_limits(setting, clock, progress)
    return solve(setting, clock, progress), ()


def _refined(
    setting: Setting, solution: Solution, state: State | None, progress: Progress
) -> tuple[Setting, Solution, tuple[str, ...]]:
    """What training made of a solution, unless it takes more bytes than were asked for."""
    limit = setting.config.bytes
    if limit is None:
        return refine(setting, solution, state, progress)
    room = limit - _file_size(setting, solution) - _SPARE_BYTES
    trained = refine(setting, solution, state, progress, room)
    size = _file_size(*trained[:2])
    if size <= limit:
        return trained
    return setting, solution, (*trained[2], f"--refine: kept the start after all: training made {size:,} bytes")


def quantize_without_data(model: ModelSource, config: DataFreeConfig | None = None) -> DataFreeResult:
    """Quantize a model by nothing but its weights; activations stay float.

    Raises:
        OnnxCbqError: the model cannot be used, or the result failed its check.
    """
    return quantize_data_free(model, config, _versions())


def score(
    model: ModelSource,
    data: DataSource,
    config: QuantizeConfig | None = None,
    progress: Progress = silent,
) -> tuple[Layers, Scores]:
    """Score every channel by how many classes need it; of `config` only samples, seed, logits and scoring matter.

    Raises:
        OnnxCbqError: model or samples cannot be used, or an operator has no gradient rule.
    """
    config = config or QuantizeConfig()
    work = prepare(model, data, config.logits)
    drawn = draw(work.samples, work.class_names, config.samples, config.seed)
    return work.layers, replace(_scores(work, drawn, config, progress), notes=(*work.notes, *drawn.notes))


def evaluate(
    model: ModelSource,
    data: DataSource,
    reference: ModelSource | None = None,
    logits: str | None = None,
    progress: Progress = silent,
) -> EvaluationResult:
    """Accuracy, size and latency of a model on all samples of a card, beside those of a reference.

    Raises:
        OnnxCbqError: a model or the samples cannot be used.
    """
    loaded = load(model)
    samples = as_set(data).for_model(loaded.inputs)
    example = make_example(samples)
    found = find_logits(loaded, example.shapes(loaded), logits)
    names = samples.check_labels(found.classes, every_class=False)
    everything = draw(samples, names, None, seed=0)
    models = [loaded] if reference is None else [load(reference), loaded]
    sizes = [size_of(model)] if reference is None else [size_of(reference), size_of(model)]
    comparison = compare(models, sizes, found.output, samples, everything.indices, found.classes, progress)
    return EvaluationResult(
        model=comparison.evaluations[-1],
        reference=comparison.evaluations[0] if reference is not None else None,
        agreement=comparison.agreements[-1] if reference is not None else None,
        class_names=names,
        notes=(*_missing_classes(comparison.evaluations[-1], names), *left_out(samples)),
        versions=_versions(),
    )


@dataclass(frozen=True)
class Inspection:
    """The layers of a model, or the plan that it carries if onnx-cbq made it."""

    layers: Layers
    plan: StoredPlan | None


def inspect(model: ModelSource) -> Inspection:
    """What the model consists of.

    Raises:
        OnnxCbqError: the model cannot be read, or has no layer that can be quantized.
    """
    source = load(model)
    plan = read_metadata(source)
    if plan is not None:
        return Inspection(Layers(()), plan)
    example = Example.made_up(source)
    normalised = normalise(source, example).model
    return Inspection(find_layers(normalised, example.shapes(normalised)), None)


def _scores(work: Workload, drawn: Draw, config: QuantizeConfig, progress: Progress) -> Scores:
    graph = scoring_graph(work.model, work.layers, work.logits, work.example, config.scoring)
    return score_channels(graph, work.layers, work.samples, drawn, Grouping.single(work.class_names), progress)


def _emit(setting: Setting, solution: Solution) -> Model:
    output = emit_solution(setting, solution)
    config = setting.config
    method = config.codebook if config.shares_values else config.method
    made_by = method, _versions()["onnx-cbq"]
    written, removed = solution.written.layers, solution.removal.removed
    return with_metadata(output, setting.work.layers, solution.plan, made_by, written, removed)


def _file_size(setting: Setting, solution: Solution) -> int:
    proto = _emit(setting, solution).to_proto()
    if setting.config.storage == "archive":
        return len(archive(proto, setting.config.coder).content)
    return len(proto.SerializeToString())


def _curve_point(setting: Setting, bits: float, clock: Clock, progress: Progress) -> CurvePoint:
    """Another budget from the same statistics, run on all samples of the card."""
    work = setting.work
    solution = solve(with_bits(setting, bits, setting.class_weights), clock, progress)
    with clock.stage("curve"), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quantized.onnx"
        size = write_model(_emit(setting, solution), path)
        everything = draw(work.samples, work.class_names, None, seed=0).indices
        found = compare([path], [size], work.logits.output, work.samples, everything, work.logits.classes, progress)
    average = solution.plan.average_bits(work.layers)
    return CurvePoint(bits, average, math.ceil(average * work.layers.size / 8), found.evaluations[0])


def _verify(setting: Setting, solution: Solution, output: Model, progress: Progress) -> tuple[Comparison, Sizes]:
    """Check the file that the model becomes, and run it beside the float model on all samples of the card."""
    work = setting.work
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quantized.onnx"
        size = write_model(output, path)
        check_file(path, work.model, solution.written.layers, solution.written.weights, work.example.feeds)
        if setting.config.storage != "int8":
            check_equal(path, emit_solution(setting, solution, "int8"), work.example.feeds)
        ideal = math.ceil(solution.plan.average_bits(work.layers) * work.layers.size / 8)
        found = Sizes(ideal, size, compressed_size(path))
        if setting.config.storage == "archive":
            found = _archive_sizes(found, path, setting)
        everything = draw(work.samples, work.class_names, None, seed=0)
        sizes = [work.source_bytes, size]
        indices, classes = everything.indices, work.logits.classes
        comparison = compare([work.source, path], sizes, work.logits.output, work.samples, indices, classes, progress)
        return comparison, found


def _archive_sizes(sizes: Sizes, path: Path, setting: Setting) -> Sizes:
    """What the archive takes, once it has been shown to give the same file again."""
    made = archive(path, setting.config.coder)
    if restore(made.content) != path.read_bytes():
        raise VerificationError("the archive does not give the same file again; report this as a bug")
    coded = 8 * made.code_bytes / setting.work.layers.size
    return replace(sizes, archive=len(made.content), coded_bits=coded)


def _missing_classes(evaluation: Evaluation, names: tuple[str, ...]) -> tuple[str, ...]:
    missing = [name for name, accuracy in zip(names, evaluation.per_class, strict=True) if accuracy is None]
    return (f"no samples of {len(missing)} classes, the first of them {missing[0]!r}",) if missing else ()


def _versions() -> dict[str, str]:
    return {"onnx-cbq": version("onnx-cbq"), **versions()}
