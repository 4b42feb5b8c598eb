"""Run models side by side on labelled samples, and hold a finished file against what it should be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from onnx_cbq.calibration.samples import Indices, Samples
from onnx_cbq.errors import ModelError, VerificationError
from onnx_cbq.model import Array, Model
from onnx_cbq.progress import Progress, silent
from onnx_cbq.quantize.grid import fits_bits
from onnx_cbq.ranks import ranks_fit
from onnx_cbq.records import Evaluation, Layers, LayerWeights
from onnx_cbq.runtime import Feeds, Session, median_latency

LARGEST_BATCH = 100
# Samples of one batch, so that their activations fit as well.
BATCH_BYTES = 16 << 20
TOP = 5
# Fused and unfused graphs differ by rounding, a step of 1/255 here and there. An overflow, or a kernel that saturates
# products to 16 bits, gives errors as large as the outputs.
FUSION_TOLERANCE = 0.2
_FINITE_ADVICE = "expected finite numbers; check that the samples are prepared as the model was trained"


@dataclass(frozen=True)
class Comparison:
    """Evaluations of several models on the same samples, and how often each agrees with the first, in percent."""

    evaluations: tuple[Evaluation, ...]
    agreements: tuple[float, ...]


def compare(
    models: Sequence[Path | Model],
    sizes: Sequence[int],
    output: str,
    samples: Samples,
    indices: Indices,
    classes: int,
    progress: Progress = silent,
) -> Comparison:
    """Evaluate `models` (with file `sizes`) side by side on the samples `indices`.

    Raises:
        ModelError: a model cannot be run.
        VerificationError: a model gives class scores that are not finite.
    """
    sessions = [Session(model) for model in models]
    confusion = np.zeros((len(models), classes, classes), np.int64)
    in_top = np.zeros(len(models), np.int64)
    agreeing = np.zeros(len(models), np.int64)
    done = 0
    for batch in samples.batches(indices, batch_size(samples)):
        predictions = []
        for i, session in enumerate(sessions):
            scores = _class_scores(session, batch.feeds, output, batch.count)
            if scores.shape[1] != classes:
                raise ModelError(
                    f"the models to compare have {scores.shape[1]} and {classes} classes; expected the same number"
                )
            predictions.append(scores.argmax(axis=1))
            np.add.at(confusion[i], (batch.labels, predictions[i]), 1)
            in_top[i] += _label_in_top(scores, batch.labels)
            agreeing[i] += int((predictions[i] == predictions[0]).sum())
        done += batch.count
        progress("evaluation", done, len(indices))
    one = samples.read(indices[: samples.fixed_batch or 1])
    latencies = median_latency(sessions, one)
    total = max(len(indices), 1)
    evaluations = (
        _evaluation(confusion[i], 100 * in_top[i] / total, sizes[i], latencies[i] * 1e3) for i in range(len(models))
    )
    return Comparison(tuple(evaluations), tuple((100 * agreeing / total).tolist()))


def check_file(path: Path, model: Model, layers: Layers, weights: Mapping[str, LayerWeights], feeds: Feeds) -> None:
    """Hold the file that was written against the model and the weights that it was made from.

    Raises:
        VerificationError: its codes are not the planned ones, or `check_outputs` finds something.
    """
    check_outputs(path, model, feeds)
    for layer in layers:
        found = weights[layer.name]
        check_codes(layer.name, layer.rows(found.codes), found.bits, found.table)


def check_outputs(path: Path, model: Model, feeds: Feeds) -> None:
    """Run the file that was written beside the float model.

    Raises:
        VerificationError: it is not valid ONNX, its outputs are not those of the float model in name and shape, or
            onnxruntime's fused graph computes something else than the plain one.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
        fused = Session(path).run(feeds)
        plain = Session(path, "off").run(feeds)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ModelError) as error:
        raise VerificationError(f"the quantized model is not valid: {str(error).splitlines()[0]}") from error
    reference = Session(model).run(feeds)
    for name, value in reference.items():
        if name not in fused or np.shape(fused[name]) != np.shape(value):
            raise VerificationError(f"output {name!r} of the quantized model has another shape than in the float model")
        if not isinstance(value, np.ndarray) or not np.issubdtype(value.dtype, np.floating):
            continue
        if not np.isfinite(fused[name]).all():
            raise VerificationError(f"output {name!r} of the quantized model holds NaN or infinity; {_FINITE_ADVICE}")
        one, other = (found[name].astype(np.float64) for found in (fused, plain))
        deviation = float(np.linalg.norm(one - other)) / (float(np.linalg.norm(other)) or 1.0)
        if not deviation <= FUSION_TOLERANCE:
            raise VerificationError(
                f"output {name!r}: onnxruntime's optimized graph differs from the plain one by {deviation:.0%}, "
                f"expected at most {FUSION_TOLERANCE:.0%}; if integer kernels saturate here, try --bits 7 or fewer"
            )


def check_equal(path: Path, model: Model, feeds: Feeds) -> None:
    """Run the file that was written beside a model that must give the same outputs to the last bit.

    Raises:
        VerificationError: it does not.
    """
    expected, found = Session(model).run(feeds), Session(path).run(feeds)
    for name, value in expected.items():
        if not np.array_equal(np.asarray(value), np.asarray(found[name])):
            raise VerificationError(f"output {name!r} differs once the weights are packed; report this as a bug")


def check_codes(name: str, rows: Array, bits: Array, table: Array | None = None) -> None:
    """Check that the codes of every channel [channels, n] fit its bits; with a table, that their places in it do.

    Raises:
        VerificationError: a channel's do not.
    """
    if table is not None and not np.isin(rows, table).all():
        raise VerificationError(f"layer {name!r}: a code is not one of the {len(table)} that its weights share")
    for channel, (codes, width) in enumerate(zip(rows, bits, strict=True)):
        fits = fits_bits(codes, int(width)) if table is None else ranks_fit(codes, table, int(width))
        if not fits:
            raise VerificationError(f"layer {name!r}: the codes of channel {channel} do not fit {width} bits")


def batch_size(samples: Samples) -> int:
    """How many samples to run at once; the same for every model and command, so that results do not depend on it."""
    one = samples.read(np.zeros(1, np.int64))
    return max(min(BATCH_BYTES // sum(value.nbytes for value in one.values()), LARGEST_BATCH), 1)


def _class_scores(session: Session, feeds: Feeds, output: str, count: int) -> Array:
    scores = session.run(feeds, [output])[output]
    scores = scores.reshape(len(scores), -1)[:count]
    if not np.isfinite(scores).all():
        raise VerificationError(f"output {output!r} holds NaN or infinity; {_FINITE_ADVICE}")
    return scores


def _label_in_top(scores: Array, labels: Indices) -> int:
    if scores.shape[1] <= TOP:
        return len(labels)
    top = np.argpartition(scores, -TOP, axis=1)[:, -TOP:]
    return int((top == labels[:, None]).any(axis=1).sum())


def _evaluation(confusion: Array, top5: float, size: int, latency_ms: float) -> Evaluation:
    counts, hits = confusion.sum(axis=1), np.diag(confusion)
    per_class = tuple(float(100 * h / n) if n else None for h, n in zip(hits, counts, strict=True))
    return Evaluation(
        top1=float(100 * hits.sum() / max(counts.sum(), 1)),
        top5=float(top5) if len(counts) > 10 else None,
        per_class=per_class,
        confusion=confusion,
        bytes=size,
        latency_ms=latency_ms,
    )
