"""The story from a float model to a quantized one, a line per stage."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from onnx_cbq.calibration.samples import Draw, draw
from onnx_cbq.config import MOST_BITS, QuantizeConfig
from onnx_cbq.emit.files import write_model
from onnx_cbq.emit.metadata import StoredPlan, read_metadata, with_metadata
from onnx_cbq.emit.qdq import emit_qdq, simulate_activations
from onnx_cbq.errors import CalibrationError
from onnx_cbq.graph.layers import find_layers
from onnx_cbq.graph.load import load
from onnx_cbq.graph.logits import find_logits
from onnx_cbq.graph.normalise import normalise
from onnx_cbq.graph.placement import NO_ACTIVATIONS, Placement, place_activations
from onnx_cbq.graph.shapes import Example
from onnx_cbq.model import Model
from onnx_cbq.planning import gather_evidence, make_measure, make_plan
from onnx_cbq.progress import Progress, silent
from onnx_cbq.quantize.activations import choose_grid
from onnx_cbq.quantize.weights import leave_room_for_bias
from onnx_cbq.records import ActivationGrid, Evaluation, Layers, LayerWeights, Plan, Scores
from onnx_cbq.result import EvaluationResult, Result
from onnx_cbq.rounding import Rounded, round_in_order, round_to_nearest, run_of
from onnx_cbq.runtime import versions
from onnx_cbq.scoring import batch_size, score_channels, scoring_graph
from onnx_cbq.statistics import Run, collect_histograms
from onnx_cbq.verify import Comparison, check_file, compare
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
        class_weights = np.ones(work.logits.classes)
    with clock.stage("statistics"):
        evidence = gather_evidence(work, train, config, class_weights, progress)
    with clock.stage("search"):
        measure = make_measure(work, held, evidence) if config.held_back else None
        planned = make_plan(work, evidence, measure, config, class_weights, progress)
    with clock.stage("activations"):
        placement, grids = _activations(work, drawn, config, progress)
    with clock.stage("rounding"):
        run = run_of(work, drawn, config.compensation, class_weights)
        rounded = _round(work, planned.plan, (placement, grids), run, config, progress)
        plan = Plan({name: layer.bits for name, layer in rounded.weights.items()})
    with clock.stage("emit"):
        corrected = work.model.with_constants(rounded.biases)
        output = emit_qdq(corrected, work.layers, rounded.weights, placement, grids)
        output = with_metadata(output, work.layers, plan, config.method, _versions()["onnx-cbq"])
    with clock.stage("verify"):
        comparison = _verify(work, output, rounded.weights, progress)
    return Result(
        model=output,
        plan=plan,
        layers=work.layers,
        scores=evidence.scores,
        search=planned.search,
        reference=comparison.evaluations[0],
        quantized=comparison.evaluations[1],
        agreement=comparison.agreements[1],
        class_names=work.class_names,
        calibration_samples=len(drawn.indices),
        seconds=clock.seconds,
        notes=(*work.notes, *drawn.notes, *planned.notes, *rounded.notes),
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
    if not config.held_back:
        return drawn, drawn
    train, held = drawn.split(config.held_back)
    if not len(held.indices):
        raise CalibrationError(
            "no class has two samples, one to score channels and one to measure plans; give more samples, "
            "or use --method uniform"
        )
    return train, held


def _scores(work: Workload, drawn: Draw, config: QuantizeConfig, progress: Progress) -> Scores:
    graph = scoring_graph(work.model, work.layers, work.logits, work.example, config.scoring)
    return score_channels(graph, work.layers, work.samples, drawn, work.class_names, progress)


def _activations(
    work: Workload, drawn: Draw, config: QuantizeConfig, progress: Progress
) -> tuple[Placement, Mapping[str, ActivationGrid]]:
    if not config.activation_bits:
        return NO_ACTIVATIONS, {}
    placement = place_activations(work.model, work.layers)
    size = batch_size(work.layers)
    histograms = collect_histograms(work.model, placement.measured, work.samples, drawn, size, progress)
    # What layers multiply gets the width asked for; the model's own inputs and what is only added stay at 8 bits.
    multiplied = {placement.grid_of(use.activation) for layer in work.layers for use in layer.uses}
    narrow = multiplied - {spec.name for spec in work.model.inputs}
    return placement, {
        name: choose_grid(histogram, config.activation_bits if name in narrow else MOST_BITS, config.activation_range)
        for name, histogram in histograms.items()
    }


def _round(
    work: Workload,
    plan: Plan,
    activations: tuple[Placement, Mapping[str, ActivationGrid]],
    run: Run,
    config: QuantizeConfig,
    progress: Progress,
) -> Rounded:
    """Integer weights as planned, with room for the biases beside them."""
    placement, grids = activations
    if config.rounding == "compensate":
        simulated = simulate_activations(work.model, placement, grids) if grids else None
        rounded = round_in_order(work.model, simulated, work.layers, plan, run, config.compensation, progress)
    else:
        rounded = round_to_nearest(work.model, work.layers, plan)
    corrected = work.model.with_constants(rounded.biases)
    weights = dict(rounded.weights)
    for layer in work.layers:
        for use in layer.uses:
            grid = grids.get(placement.grid_of(use.activation))
            if grid is not None and use.bias is not None:
                bias = corrected.weight(use.bias)
                weights[layer.name] = leave_room_for_bias(layer, weights[layer.name], bias, grid.scale)
    return replace(rounded, weights=weights)


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


def _missing_classes(evaluation: Evaluation, names: tuple[str, ...]) -> tuple[str, ...]:
    missing = [name for name, accuracy in zip(names, evaluation.per_class, strict=True) if accuracy is None]
    return (f"no samples of {len(missing)} classes, the first of them {missing[0]!r}",) if missing else ()


def _versions() -> dict[str, str]:
    return {"onnx-cbq": version("onnx-cbq"), **versions()}
