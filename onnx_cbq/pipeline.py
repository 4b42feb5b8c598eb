"""The story from a float model to a quantized one, a line per stage."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto

from onnx_cbq.calibration.samples import CalibrationSet, Draw, Samples, draw
from onnx_cbq.config import QuantizeConfig
from onnx_cbq.emit.files import write_model
from onnx_cbq.emit.metadata import StoredPlan, read_metadata, with_metadata
from onnx_cbq.emit.qdq import emit_qdq
from onnx_cbq.errors import CalibrationError
from onnx_cbq.graph.layers import find_layers
from onnx_cbq.graph.load import load
from onnx_cbq.graph.logits import Logits, find_logits
from onnx_cbq.graph.normalise import normalise
from onnx_cbq.graph.placement import NO_ACTIVATIONS, Placement, place_activations
from onnx_cbq.graph.shapes import EXAMPLE_BATCH, Example
from onnx_cbq.model import Model
from onnx_cbq.planning import PlanMeasure, Planned, plan_by_importance, plan_uniform
from onnx_cbq.progress import Progress, silent
from onnx_cbq.quantize.activations import choose_grid
from onnx_cbq.quantize.weights import leave_room_for_bias, quantize_layer
from onnx_cbq.records import ActivationGrid, Evaluation, Layers, LayerWeights, Plan, Scores
from onnx_cbq.result import EvaluationResult, Result
from onnx_cbq.runtime import versions
from onnx_cbq.scoring import batch_size, score_channels, scoring_graph
from onnx_cbq.statistics import collect_histograms
from onnx_cbq.verify import Comparison, check_file, compare

ModelSource = str | Path | ModelProto
DataSource = str | Path | CalibrationSet


def quantize(
    model: ModelSource, data: DataSource, config: QuantizeConfig | None = None, progress: Progress = silent
) -> Result:
    """Quantize a classifier to the average bits that `config` asks for, and prove what it costs.

    Args:
        model: path of an ONNX file, or a `ModelProto`; it is not changed.
        data: path of a calibration card, or a `CalibrationSet`.
        config: the settings; `QuantizeConfig()` if left out.
        progress: called as the long stages go on.

    Raises:
        OnnxCbqError: model or samples cannot be used, or the result failed its check; the message says what to do.
    """
    config = config or QuantizeConfig()
    clock = Clock()
    with clock.stage("load"):
        work = prepare(model, data, config.logits)
        drawn = draw(work.samples, work.class_names, config.samples, config.seed)
        train, held = _split(drawn, config)
    with clock.stage("score"):
        scores = _scores(work, train, config, progress) if config.method == "cbq" else None
    with clock.stage("search"):
        planned = _plan(work, scores, held, config, progress)
    with clock.stage("activations"):
        placement, grids = _activations(work, drawn, config, progress)
    with clock.stage("weights"):
        weights = _weights(work, planned.plan, placement, grids)
        plan = Plan({name: layer.bits for name, layer in weights.items()})
    with clock.stage("emit"):
        output = emit_qdq(work.model, work.layers, weights, placement, grids)
        output = with_metadata(output, work.layers, plan, config.method, _versions()["onnx-cbq"])
    with clock.stage("verify"):
        comparison = _verify(work, output, weights, progress)
    return Result(
        model=output,
        plan=plan,
        layers=work.layers,
        scores=scores,
        reference=comparison.evaluations[0],
        quantized=comparison.evaluations[1],
        agreement=comparison.agreements[1],
        class_names=work.class_names,
        calibration_samples=len(drawn.indices),
        seconds=clock.seconds,
        notes=(*work.notes, *drawn.notes, *planned.notes),
        versions=_versions(),
        config=config,
    )


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
    return work.layers, _scores(work, drawn, config, progress)


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
    samples = _as_set(data).for_model(loaded.inputs)
    example = _example(samples)
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
        notes=(*_missing_classes(comparison.evaluations[-1], names), *_left_out(samples)),
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


@dataclass(frozen=True)
class Workload:
    """A model and samples, ready to be analysed.

    Attributes:
        source: the model as it came; `source_bytes` is its size.
        model: the normalised model, which every stage works on.
        example: a few samples to measure shapes on.
    """

    source: Model
    source_bytes: int
    model: Model
    layers: Layers
    logits: Logits
    samples: Samples
    example: Example
    class_names: tuple[str, ...]
    notes: tuple[str, ...]


def prepare(model: ModelSource, data: DataSource, logits: str | None = None) -> Workload:
    """Load and normalise a model, fit the samples to it, find its layers and its class scores."""
    source = load(model)
    samples = _as_set(data).for_model(source.inputs)
    example = _example(samples)
    normalised = normalise(source, example)
    shapes = example.shapes(normalised.model)
    layers = find_layers(normalised.model, shapes)
    found = find_logits(normalised.model, shapes, logits)
    names = samples.check_labels(found.classes, every_class=True)
    size, notes = size_of(model), (*normalised.notes, *_left_out(samples))
    return Workload(source, size, normalised.model, layers, found, samples, example, names, notes)


def size_of(model: ModelSource) -> int:
    """Bytes of a model's file, with its external data."""
    if isinstance(model, ModelProto):
        return int(model.ByteSize())
    path = Path(model)
    graph = onnx.load(path, load_external_data=False).graph
    entries = (entry for tensor in graph.initializer for entry in tensor.external_data if entry.key == "location")
    files = [path, *(path.parent / name for name in {entry.value for entry in entries})]
    return sum(file.stat().st_size for file in files)


class Clock:
    """Seconds per stage, in the order of the stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what happens inside."""
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


def _split(drawn: Draw, config: QuantizeConfig) -> tuple[Draw, Draw]:
    """The samples to score channels with, and those that plans are measured on."""
    if config.method != "cbq":
        return drawn, drawn
    train, held = drawn.split(config.cbq.held_back)
    if not len(held.indices):
        raise CalibrationError(
            "no class has two samples, one to score channels and one to measure plans; give more samples, "
            "or use --method uniform"
        )
    return train, held


def _scores(work: Workload, drawn: Draw, config: QuantizeConfig, progress: Progress) -> Scores:
    graph = scoring_graph(work.model, work.layers, work.logits, work.example, config.scoring)
    return score_channels(graph, work.layers, work.samples, drawn, work.class_names, progress)


def _plan(work: Workload, scores: Scores | None, held: Draw, config: QuantizeConfig, progress: Progress) -> Planned:
    if scores is None:
        return plan_uniform(work.layers, int(config.bits))
    size = batch_size(work.layers)
    measure = PlanMeasure(work.model, work.layers, work.samples, held.indices, size, work.logits.output)
    return plan_by_importance(work.layers, scores, work.logits, config.bits, measure, config.cbq, progress)


def _activations(
    work: Workload, drawn: Draw, config: QuantizeConfig, progress: Progress
) -> tuple[Placement, Mapping[str, ActivationGrid]]:
    if not config.activation_bits:
        return NO_ACTIVATIONS, {}
    placement = place_activations(work.model, work.layers)
    size = batch_size(work.layers)
    histograms = collect_histograms(work.model, placement.measured, work.samples, drawn, size, progress)
    return placement, {name: choose_grid(histogram) for name, histogram in histograms.items()}


def _weights(
    work: Workload, plan: Plan, placement: Placement, grids: Mapping[str, ActivationGrid]
) -> dict[str, LayerWeights]:
    weights: dict[str, LayerWeights] = {}
    for layer in work.layers:
        weight = work.model.constant(layer.weight)
        assert weight is not None
        rounded = quantize_layer(layer, weight, plan.bits[layer.name])
        for use in layer.uses:
            grid = grids.get(placement.grid_of(use.activation))
            bias = work.model.constant(use.bias) if use.bias else None
            if grid is not None and bias is not None:
                rounded = leave_room_for_bias(layer, rounded, bias, grid.scale)
        weights[layer.name] = rounded
    return weights


def _verify(work: Workload, output: Model, weights: Mapping[str, LayerWeights], progress: Progress) -> Comparison:
    """Check the file that the model becomes, and run it beside the float model on all samples of the card."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quantized.onnx"
        size = write_model(output, path)
        check_file(path, work.model, work.layers, weights, work.example.feeds)
        everything = draw(work.samples, work.class_names, None, seed=0)
        sizes = [work.source_bytes, size]
        indices, classes = everything.indices, work.logits.classes
        return compare([work.source, path], sizes, work.logits.output, work.samples, indices, classes, progress)


def _as_set(data: DataSource) -> CalibrationSet:
    return data if isinstance(data, CalibrationSet) else CalibrationSet.from_card(data)


def _example(samples: Samples) -> Example:
    count = samples.fixed_batch or EXAMPLE_BATCH
    return Example(samples.read(np.arange(count) % len(samples.labels)))


def _missing_classes(evaluation: Evaluation, names: tuple[str, ...]) -> tuple[str, ...]:
    missing = [name for name, accuracy in zip(names, evaluation.per_class, strict=True) if accuracy is None]
    return (f"no samples of {len(missing)} classes, the first of them {missing[0]!r}",) if missing else ()


def _left_out(samples: Samples) -> tuple[str, ...]:
    skipped = samples.data.source.skipped
    return (f"{skipped} unreadable images were left out",) if skipped else ()


def _versions() -> dict[str, str]:
    return {"onnx-cbq": version("onnx-cbq"), **versions()}
