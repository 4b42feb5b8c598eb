"""Run models side by side on labelled samples, and hold a finished file against what it should be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from onnx_cbq.calibration.samples import Indices, Samples
from onnx_cbq.errors import ModelError, VerificationError
from onnx_cbq.graph.load import LAYER_OPERATORS, load
from onnx_cbq.graph.logits import Logits
from onnx_cbq.model import Array, Model, attributes
from onnx_cbq.progress import Progress, silent
from onnx_cbq.quantize.grid import fits_bits
from onnx_cbq.ranks import ranks_fit
from onnx_cbq.records import Evaluation, Layers, LayerWeights
from onnx_cbq.runtime import Feeds, Session, median_latency

LARGEST_BATCH = 100
# Samples of one batch, so that their activations fit as well.
BATCH_BYTES = 16 << 20
TOP = 5
# The plain graph predicts beside the fused one on about so many samples.
PLAIN_SAMPLES = 2000
# Rounding alone changes a prediction here and there: a share of the samples, and a few where there are few.
_MOST_DIFFERING, _FEW = 0.005, 3
# Standard errors by which their accuracies may differ.
_CERTAINTY = 3.0
_FINITE_ADVICE = "expected finite numbers; check that the samples are prepared as the model was trained"


@dataclass(frozen=True)
class Fidelity:
    """What the fused graph predicts beside the plain one.

    Attributes:
        samples: that both ran on.
        differing: of them, where they choose different classes.
        gained, lost: where only the fused graph, or only the plain one, is right.
    """

    samples: int
    differing: int
    gained: int
    lost: int

    @property
    def share(self) -> float:
        """Share of samples with different predictions, in percent."""
        return 100 * self.differing / max(self.samples, 1)

    def holds(self) -> bool:
        """Whether rounding and chance explain the difference."""
        allowed = max(_MOST_DIFFERING * self.samples, _FEW)
        return self.differing <= allowed and abs(self.gained - self.lost) <= max(
            _CERTAINTY * math.sqrt(self.gained + self.lost), _FEW
        )


@dataclass(frozen=True)
class Comparison:
    """Evaluations of several models on the same samples.

    Attributes:
        agreements: how often each agrees with the first, in percent.
        fidelity: of the last, if that was asked for; `plain_latency_ms` is that of its plain graph.
    """

    evaluations: tuple[Evaluation, ...]
    agreements: tuple[float, ...]
    fidelity: Fidelity | None = None
    plain_latency_ms: float | None = None


def compare(
    models: Sequence[Path | Model | Session],
    sizes: Sequence[int],
    logits: Logits,
    samples: Samples,
    indices: Indices,
    progress: Progress = silent,
    plain: Session | None = None,
) -> Comparison:
    """Evaluate the `logits` of `models` (with file `sizes`) side by side on the samples `indices`.

    `plain` is the last of them without fusions, and predicts beside it on some of the samples.

    Raises:
        ModelError: a model cannot be run.
        VerificationError: a model gives class scores that are not finite.
    """
    sessions = [model if isinstance(model, Session) else Session(model) for model in models]
    output, classes = logits.output, logits.classes
    confusion = np.zeros((len(models), classes, classes), np.int64)
    in_top = np.zeros(len(models), np.int64)
    agreeing = np.zeros(len(models), np.int64)
    done, beside = 0, _Beside(len(indices))
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
        if plain is not None and beside.wants(done):
            beside.add(predictions[-1], _class_scores(plain, batch.feeds, output, batch.count), batch.labels)
        done += batch.count
        progress("evaluation", done, len(indices))
    one = samples.read(indices[: samples.fixed_batch or 1])
    latencies = median_latency([*sessions, plain] if plain is not None else sessions, one)
    total = max(len(indices), 1)
    evaluations = (
        _evaluation(confusion[i], 100 * in_top[i] / total, sizes[i], latencies[i] * 1e3) for i in range(len(models))
    )
    agreements = tuple((100 * agreeing / total).tolist())
    if plain is None:
        return Comparison(tuple(evaluations), agreements)
    return Comparison(tuple(evaluations), agreements, beside.fidelity(), latencies[-1] * 1e3)


class _Beside:
    """Counts on batches spread over all samples how two graphs of one model differ."""

    def __init__(self, total: int) -> None:
        self._every = max(total / PLAIN_SAMPLES, 1.0)
        self._counts = np.zeros(4, np.int64)

    def wants(self, done: int) -> bool:
        return bool(self._counts[0] * self._every <= done)

    def add(self, fused: Array, plain_scores: Array, labels: Indices) -> None:
        plain = plain_scores.argmax(axis=1)
        one, other = fused == labels, plain == labels
        self._counts += [len(labels), (fused != plain).sum(), (one & ~other).sum(), (other & ~one).sum()]

    def fidelity(self) -> Fidelity:
        return Fidelity(*self._counts.tolist())


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
        VerificationError: it is not valid ONNX, its outputs are not those of the float model in name and shape, or not
            finite.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
        session = Session(path)
        feeds = {name: value[: session.samples] for name, value in feeds.items()}
        fused = session.run(feeds)
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


def check_equal(path: Path, model: Model, feeds: Feeds) -> None:
    """Hold a file against a model that has the same weights, stored in another way: to the last bit.

    Where the kernels are the same so are the outputs; weights beside float activations may be multiplied by others.

    Raises:
        VerificationError: something differs.
    """
    session = Session(path)
    feeds = {name: value[: session.samples] for name, value in feeds.items()}
    stored = load(path)
    found, expected = _weights(stored, feeds), _weights(model, feeds)
    for (_, value), (_, other) in zip(found, expected, strict=True):
        if not np.array_equal(value, other):
            raise VerificationError("a weight differs once it is packed; report this as a bug")
    dequantized = all(
        stored.producers[name].op_type == "DequantizeLinear" for name, _ in found if name in stored.producers
    )
    for name, value in Session(model).run(feeds).items() if dequantized else ():
        if not np.array_equal(np.asarray(value), np.asarray(session.run(feeds)[name])):
            raise VerificationError(f"output {name!r} differs once the weights are packed; report this as a bug")


def _weights(model: Model, feeds: Feeds) -> list[tuple[str, Array]]:
    """What the layers of a model multiply with, in order: names, and values in float, a matrix with channels last."""
    varying = {spec.name for spec in model.inputs}
    found: list[tuple[str, bool]] = []
    for node in model.nodes:
        if varying.intersection(node.input):
            varying.update(node.output)
            if node.op_type in LAYER_OPERATORS:
                turned = node.op_type == "Gemm" and bool(attributes(node).get("transB", 0))
                found += [(name, turned) for name in node.input[:2] if name not in varying]
    values = Session(model.with_graph(outputs=dict.fromkeys(name for name, _ in found)), "off").run(feeds)
    return [(name, values[name].T if turned else values[name]) for name, turned in found]


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
    size, total = session.samples, len(next(iter(feeds.values())))
    if size is None or size >= total:
        scores = session.run(feeds, [output])[output]
    else:  # a file for a target that takes so many samples at a time
        parts = ({name: value[i : i + size] for name, value in feeds.items()} for i in range(0, total, size))
        scores = np.concatenate([session.run(part, [output])[output] for part in parts])
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
