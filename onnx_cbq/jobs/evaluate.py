"""Run a model on labelled samples."""

from __future__ import annotations

from onnx_cbq.calibration.draw import everything
from onnx_cbq.evidence.workload import (
    DataSource,
    ModelSource,
    as_set,
    judge,
    left_out,
    make_example,
    scores_notes,
    size_of,
    without_samples,
)
from onnx_cbq.execution.settings import ALONE, ExecutionConfig
from onnx_cbq.graph.load import load
from onnx_cbq.jobs.result import EvaluationResult
from onnx_cbq.jobs.versions import all_versions
from onnx_cbq.system.progress import Progress, silent
from onnx_cbq.verification.comparison import compare


def evaluate(
    model: ModelSource,
    data: DataSource,
    reference: ModelSource | None = None,
    logits: str | None = None,
    progress: Progress = silent,
    execution: ExecutionConfig = ALONE,
) -> EvaluationResult:
    """Accuracy, size and latency of a model on all samples of a card, beside those of a reference.

    `execution` says who runs them over the samples.

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
    asked = found, samples, everything(samples, names)
    with execution.open() as engine:
        comparison = compare(models, sizes, asked, progress=progress, engine=engine)
    return EvaluationResult(
        model=comparison.evaluations[-1],
        reference=comparison.evaluations[0] if reference is not None else None,
        agreement=comparison.agreements[-1] if reference is not None else None,
        outputs=comparison.further,
        class_names=names,
        notes=(*without_samples(samples, names), *left_out(samples), *scores_notes(found)),
        versions=all_versions(),
    )
