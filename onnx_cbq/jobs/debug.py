"""Hold a quantized file of any tool against its float model, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from onnx import ModelProto

from onnx_cbq.calibration.draw import everything
from onnx_cbq.calibration.samples import Samples
from onnx_cbq.errors import ModelError, VerificationError
from onnx_cbq.evidence.workload import DataSource, ModelSource, Workload, prepare
from onnx_cbq.graph.load import load
from onnx_cbq.graph.logits import Logits, find_logits
from onnx_cbq.graph.shapes import Example, fixed_batch
from onnx_cbq.jobs.debug_result import DebugResult, Deviating, LayerDebug
from onnx_cbq.jobs.versions import all_versions
from onnx_cbq.model import Model
from onnx_cbq.records import Layers
from onnx_cbq.runtime import Feeds
from onnx_cbq.settings import check
from onnx_cbq.storage.archive import restore
from onnx_cbq.system.processor import processor_kind
from onnx_cbq.system.progress import Progress, silent
from onnx_cbq.targets.reading import QdqFile
from onnx_cbq.targets.running import Run
from onnx_cbq.verification.computed import with_computed_weights
from onnx_cbq.verification.diagnosis import LayerNoise, Subject, Whole, diagnose
from onnx_cbq.verification.entries import is_archive
from onnx_cbq.verification.kernel_use import KernelUse, kernel_use
from onnx_cbq.verification.kernels import Deviation, deviations
from onnx_cbq.verification.pairing import Pair, Pairs, find_pairs, names_of, renamed
from onnx_cbq.verification.rescaling import find_factors

# Enough for a ranking: what a layer costs by itself differs between layers by far more than between draws of so many.
SAMPLES = 64
_SEED = 0
# Names in a note.
_LISTED = 8


def debug(
    model: ModelSource,
    quantized: ModelSource,
    data: DataSource,
    logits: str | None = None,
    samples: int = SAMPLES,
    progress: Progress = silent,
) -> DebugResult:
    """Which layer hurts, and why: every layer of a quantized file by itself beside the float model.

    Args:
        model: the float model.
        quantized: the same model with QuantizeLinear and DequantizeLinear, by any tool, or an archive of ours.
        data: path of a calibration card, or a `CalibrationSet`.
        logits: name of the output with the class scores.
        samples: how many are drawn.
        progress: called as the run goes on.

    Cost: some five passes over the samples, and for every layer somewhat more than half a pass of the float model.

    Raises:
        OnnxCbqError: a model or the samples cannot be used, nothing is quantized, or no layer of one is in the other.
    """
    check(samples > 0, "--samples", "at least 1", samples)
    content = _content(quantized)
    loaded = load(content)
    file = QdqFile(with_computed_weights(loaded))
    _check_format(file, _label(quantized), unpacks=file.source is not loaded)
    work = prepare(model, data, logits)
    drawn, batch = _drawn(work, file.source, samples)
    example = _first(batch, drawn)
    file_logits = _logits(file.source, renamed(example, file.source), batch, logits, _label(quantized))
    if file_logits.classes != work.logits.classes:
        raise ModelError(
            f"{_label(quantized)}: has {file_logits.classes} classes, the float model {work.logits.classes}; give two "
            f"forms of one model"
        )
    pairs = find_pairs(work.model, work.layers, file, example)
    if not pairs.pairs:
        raise ModelError(
            f"{_label(quantized)}: none of its {len(file.products)} products with a weight is like one of the "
            f"{len(work.layers)} layers of the float model; give two forms of one model"
        )
    factors = find_factors(pairs, example, work.layers, work.shapes)
    subject = Subject(pairs, factors, work.logits, file_logits)
    noise, whole = diagnose(subject, batch, drawn, progress)
    off, notes = _deviations(loaded, renamed(example, loaded))
    run = Run(file, content if isinstance(content, Path) else content.SerializeToString())
    with run.blamed():
        use = kernel_use(run)
    said = (*_not_taken_apart(work.layers), *_unread(subject), *notes, *_refusal(use))
    return _result(pairs, noise, whole, use, off, (*work.notes, *said))


def _content(quantized: ModelSource) -> Path | ModelProto:
    """The file, and what an archive holds."""
    if isinstance(quantized, ModelProto):
        return quantized
    path = Path(quantized)
    return ModelProto.FromString(restore(path)) if is_archive(path) else path


def _label(quantized: ModelSource) -> str:
    return "the quantized model" if isinstance(quantized, ModelProto) else str(quantized)


def _check_format(file: QdqFile, label: str, *, unpacks: bool) -> None:
    # Weights that are unpacked may be all that is quantized, without any DequantizeLinear.
    if not (file.is_quantized or unpacks):
        raise ModelError(
            f"{label}: nothing in it is quantized; expected the float model first, then one with QuantizeLinear and "
            f"DequantizeLinear"
        )
    found = next((product for product in file.products if product.on_codes), None)
    if found is not None:
        raise ModelError(
            f"{label}: {found.node.op_type} {found.name} works on codes itself; expected float operators between "
            f"QuantizeLinear and DequantizeLinear (onnxruntime's QuantFormat.QDQ)"
        )


def _logits(model: Model, feeds: Feeds, samples: Samples, name: str | None, label: str) -> Logits:
    """The class scores of the file, by the name that those of the float model have if it has such an output."""
    try:
        shapes = Example(feeds).shapes(model)
        return find_logits(model, shapes, name if name in model.outputs else None, samples.label_shape)
    except ModelError as error:
        raise ModelError(f"{label}: {error}") from error


def _drawn(work: Workload, quantized: Model, count: int) -> tuple[np.ndarray, Samples]:
    """The samples, in batches that both models take."""
    sizes = {size for size in (work.samples.fixed_batch, fixed_batch(quantized)) if size is not None}
    if len(sizes) > 1:
        raise ModelError(
            f"the models take {min(sizes)} and {max(sizes)} samples at a time; give one of them with a free batch"
        )
    together = next(iter(sizes), None)
    usable = everything(work.samples, work.class_names)
    if together is not None:
        count = max(count // together, 1) * together
    drawn = np.random.default_rng(_SEED).choice(usable, min(count, len(usable)), replace=False)
    return np.sort(drawn), replace(work.samples, fixed_batch=together)


def _first(samples: Samples, drawn: np.ndarray) -> dict[str, np.ndarray]:
    """A few samples to match tensors by."""
    return samples.read(np.resize(drawn, samples.fixed_batch or min(len(drawn), 8)))


def _deviations(model: Model, feeds: dict[str, np.ndarray]) -> tuple[list[Deviation], tuple[str, ...]]:
    """What this processor's kernels make something else of, and what there is to say."""
    try:
        return [found for found in deviations(model, feeds) if not found.is_rounding], ()
    except (VerificationError, ModelError) as error:
        return [], (f"kernels: {error}",)


def _unread(subject: Subject) -> tuple[str, ...]:
    """What is said of grids that no figure but those of the whole file counts."""
    pairs = subject.pairs.pairs
    names = [
        name
        for pair, name in zip(pairs, names_of(pairs), strict=True)
        if pair.product.grids[0] is not None and subject.grid(pair) is None
    ]
    if not names:
        return ()
    what = f"what is read by {', '.join(names)} is on a grid of several scales, or not of whole numbers"
    return (f"{what}: its rounding is in the figures of the file, and in none of a layer alone",)


def _not_taken_apart(layers: Layers) -> tuple[str, ...]:
    """What is said of layers that are no products: their weights are in the file, and in the figures of the whole."""
    names = [layer.name for layer in layers if layer.kind != "product"]
    if not names:
        return ()
    listed = ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
    return (f"recurrent layers and tables are in the figures of the file alone: {listed}",)


def _refusal(use: KernelUse) -> tuple[str, ...]:
    return (f"onnxruntime does not open the file: {use.refusal}",) if use.refusal else ()


def _result(
    pairs: Pairs,
    noise: Sequence[LayerNoise],
    whole: Whole,
    use: KernelUse,
    off: Sequence[Deviation],
    notes: tuple[str, ...],
) -> DebugResult:
    position = {id(product): i for i, product in enumerate(pairs.file.products)}
    places = [position[id(pair.product)] for pair in pairs.pairs]
    costs = [found.divergence / found.samples if found.samples else None for found in noise]
    total = sum(cost for cost in costs if cost is not None)
    by_node = {found.node: found.distance for found in reversed(off)}
    rows = zip(pairs.pairs, names_of(pairs.pairs), noise, places, costs, strict=True)
    return DebugResult(
        layers=tuple(_layer(pair, name, found, use, i, by_node, (cost, total)) for pair, name, found, i, cost in rows),
        unmatched=pairs.alone,
        unmatched_in_file=pairs.alone_in_file,
        divergence=whole.divergence / whole.samples,
        agreement=100 * whole.equal / whole.samples,
        samples=whole.samples,
        deviations=tuple(Deviating(found.node, found.tensor, found.distance, found.off) for found in off),
        fallbacks=use.fallbacks,
        processor=processor_kind(),
        notes=notes,
        versions=all_versions(),
    )


def _layer(
    pair: Pair,
    name: str,
    found: LayerNoise,
    use: KernelUse,
    place: int,
    off: dict[str, int],
    cost: tuple[float | None, float],
) -> LayerDebug:
    product, sums = pair.product, use.sums[place]
    kind = None if product.grids[0] is None else product.grids[0].dtype or np.dtype(np.uint8)
    return LayerDebug(
        name=name,
        node=product.name,
        operator=product.operator,
        weight_type="float" if product.codes is None else str(product.codes.dtype),
        input_type="float" if kind is None else str(kind),
        integer=use.integer[place],
        reason=use.reasons[place],
        pair_sum=None if sums is None else sums[0],
        deviation=off.get(f"{product.node.op_type} {product.name}"),
        weight_snr=found.weight.ratio,
        weight_gain=found.weight.gain,
        input_snr=found.read.ratio,
        clipped=100 * found.outside / max(found.numbers, 1),
        weight_alone_snr=found.by_weight.ratio,
        input_alone_snr=found.by_input.ratio,
        alone_snr=found.alone.ratio,
        accumulated_snr=found.so_far.ratio,
        gain=found.by_weight.gain,
        divergence=cost[0],
        share=None if cost[0] is None else 100 * cost[0] / cost[1] if cost[1] else 0.0,
    )
