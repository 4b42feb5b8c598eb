"""The story from a float model to a quantized one, a line per stage."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from onnx import ModelProto

from onnx_cbq.calibration.samples import Draw, Indices, draw, everything
from onnx_cbq.comparison import compare
from onnx_cbq.config import DataFreeConfig, QuantizeConfig
from onnx_cbq.data_free import DataFreeResult, quantize_data_free
from onnx_cbq.emit.files import write_model
from onnx_cbq.emit.metadata import StoredPlan, read_metadata
from onnx_cbq.equalizing import equalize
from onnx_cbq.errors import ModelError
from onnx_cbq.graph.layers import find_layers
from onnx_cbq.graph.load import load
from onnx_cbq.graph.normalise import normalise
from onnx_cbq.graph.shapes import Example
from onnx_cbq.limits import meet_limits
from onnx_cbq.model import Model
from onnx_cbq.processor import processor_kind
from onnx_cbq.progress import Clock, Progress, silent
from onnx_cbq.proving import attempt, file_size, prove, write_solution
from onnx_cbq.records import Grouping, Layers, Scores
from onnx_cbq.refining import State, check_training, refine
from onnx_cbq.result import CheckResult, CurvePoint, EvaluationResult, Result
from onnx_cbq.runtime import versions
from onnx_cbq.scoring import score_channels, scoring_graph
from onnx_cbq.sizes import meet_bytes
from onnx_cbq.solving import Setting, Solution, aim, draw_samples, make_setting, solve, weights_of, with_bits
from onnx_cbq.targets import CPU, find_target
from onnx_cbq.targets.fit import target_of
from onnx_cbq.targets.lint import lint
from onnx_cbq.targets.reading import Product, QdqFile
from onnx_cbq.targets.running import Run
from onnx_cbq.temporary import temporary_folder
from onnx_cbq.wild import without_wild
from onnx_cbq.workload import (
    DataSource,
    ModelSource,
    Workload,
    as_set,
    check_moved_labels,
    judge,
    left_out,
    make_example,
    prepare,
    scores_notes,
    size_of,
    without_samples,
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
    target_of(config)
    with clock.stage("load"):
        work = aim(prepare(model, data, config.logits, config.ignore_outputs), config)
    if config.refine is not None:
        work.samples.check_images(config.refine.augment)
        check_moved_labels(work, config.refine.augment, config.refine.alpha)
    if config.method == "differentiable":
        work.samples.check_images(config.differentiable.augment)
        check_moved_labels(work, config.differentiable.augment, config.differentiable.alpha)
    with clock.stage("trial"):
        attempt(work, config)
        if config.gathers:
            work = without_wild(work, _used(work, config), progress)
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
        output = write_solution(setting, solution)
    with clock.stage("verify"):
        proof = prove(setting, solution, output, progress)
    return Result(
        model=output,
        plan=plan,
        layers=work.layers,
        scores=setting.evidence.scores,
        search=solution.planned.search,
        widths=solution.planned.widths,
        curve=curve,
        groups=setting.evidence.groups,
        reference=proof.comparison.evaluations[0],
        quantized=proof.comparison.evaluations[1],
        agreement=proof.comparison.agreements[1],
        outputs=proof.comparison.further,
        sizes=proof.sizes,
        fidelity=proof.comparison.fidelity,
        left_float=work.left_float,
        processor=processor_kind(),
        removal=solution.removal,
        class_names=work.class_names,
        calibration_samples=len(setting.drawn.indices),
        seconds=clock.seconds,
        notes=(
            *work.notes,
            *setting.drawn.notes,
            *setting.evidence.notes,
            *solution.planned.notes,
            *rounded.notes,
            *solution.removal.notes,
            *seen,
            *proof.notes,
        ),
        versions=_versions(),
        config=config,
    )


def _solution(setting: Setting, clock: Clock, progress: Progress) -> tuple[Solution, tuple[str, ...]]:
    """The solution that the settings ask for, and what a user should know of how it was found."""
    config = setting.config
    if config.bytes is not None:
        return meet_bytes(setting, file_size, clock, progress)
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
    room = limit - file_size(setting, solution) - _SPARE_BYTES
    trained = refine(setting, solution, state, progress, room)
    size = file_size(*trained[:2])
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
    work = without_wild(work, _drawn(work, config).indices, progress)
    drawn = _drawn(work, config)
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
    found, samples = judge(loaded, example.shapes(loaded), samples, logits)
    names = samples.check_labels(found.classes)
    models = [loaded] if reference is None else [load(reference), loaded]
    sizes = [size_of(model)] if reference is None else [size_of(reference), size_of(model)]
    comparison = compare(models, sizes, found, samples, everything(samples, names), progress)
    return EvaluationResult(
        model=comparison.evaluations[-1],
        reference=comparison.evaluations[0] if reference is not None else None,
        agreement=comparison.agreements[-1] if reference is not None else None,
        outputs=comparison.further,
        class_names=names,
        notes=(*without_samples(samples, names), *left_out(samples), *scores_notes(found)),
        versions=_versions(),
    )


def check(model: ModelSource, target: str = "cpu") -> CheckResult:
    """Hold a quantized file, whoever made it, against a target.

    Raises:
        OnnxCbqError: the target is unknown, the file cannot be read, or nothing in it is quantized.
    """
    wanted, loaded = find_target(target), load(model)
    label = "the model" if isinstance(model, ModelProto) else str(model)
    file = QdqFile(loaded)
    run = Run(file, model.SerializeToString() if isinstance(model, ModelProto) else Path(model))
    if not file.is_quantized and read_metadata(loaded) is None:
        raise ModelError(
            f"{label}: nothing in it is quantized; expected QuantizeLinear and DequantizeLinear, or integer products"
        )
    with run.blamed():
        violations, products = lint(file, wanted, run), run.products
        integers = sum(product.codes is not None and product.activation_type is not None for product in products)
        fused = run.fused.integer_products if run.fused is not None else 0
        safe = not (run.unsafe(CPU) or any(violation.finding.fact == "pairs" for violation in violations))
    return CheckResult(wanted, violations, len(products), integers, fused, safe)


@dataclass(frozen=True)
class Inspection:
    """The layers of a float model, the plan that a file carries if onnx-cbq made it, or the products of another's.

    Attributes:
        layers: of a model whose activations are float, whatever its weights are stored as.
        products: of a quantized file that carries no plan.
        unsafe: layers of a quantized model whose codes may saturate in 16 bits; the largest sum of a pair for each.
    """

    layers: Layers
    plan: StoredPlan | None
    unsafe: Mapping[str, int]
    products: tuple[Product, ...] = ()


def inspect(model: ModelSource) -> Inspection:
    """What the model consists of.

    Raises:
        OnnxCbqError: the model cannot be read, or has no layer that can be quantized.
    """
    source = load(model)
    plan = read_metadata(source)
    file = QdqFile(source)
    if plan is not None or file.is_quantized:
        run = Run(file, model.SerializeToString() if isinstance(model, ModelProto) else Path(model))
        with run.blamed():
            unsafe, products = run.unsafe(CPU), run.products
        on_integers = plan is not None or any(product.activation_type is not None for product in products)
        return Inspection(Layers(()) if on_integers else _layers(source), plan, unsafe, products)
    return Inspection(_layers(source), None, {})


def _layers(source: Model) -> Layers:
    example = Example.made_up(source)
    normalised = normalise(source, example).model
    return find_layers(normalised, example.shapes(normalised))


def _drawn(work: Workload, config: QuantizeConfig) -> Draw:
    return draw(work.samples, work.class_names, config.samples, config.seed)


def _used(work: Workload, config: QuantizeConfig) -> Indices:
    """The samples that the settings make use of: training learns from all there are."""
    if config.refine is not None or config.method == "differentiable":
        return everything(work.samples, work.class_names)
    return draw_samples(work, config, weights_of(work, config)).indices


def _scores(work: Workload, drawn: Draw, config: QuantizeConfig, progress: Progress) -> Scores:
    graph = scoring_graph(work.model, work.layers, work.logits, work.example, config.scoring, work.further.counted)
    return score_channels(graph, work.layers, work.samples, drawn, Grouping.single(work.class_names), progress)


def _curve_point(setting: Setting, bits: float, clock: Clock, progress: Progress) -> CurvePoint:
    """Another budget from the same statistics, run on all samples of the card."""
    work = setting.work
    solution = solve(with_bits(setting, bits, setting.class_weights), clock, progress)
    with clock.stage("curve"), temporary_folder() as folder:
        path = folder / "quantized.onnx"
        size = write_model(write_solution(setting, solution), path)
        indices = everything(work.samples, work.class_names)
        found = compare([path], [size], work.logits, work.samples, indices, progress)
    average = solution.plan.average_bits(work.layers)
    return CurvePoint(bits, average, math.ceil(average * work.layers.size / 8), found.evaluations[0])


def _versions() -> dict[str, str]:
    return {"onnx-cbq": version("onnx-cbq"), **versions()}
