"""Run models side by side on labelled samples, and hold a finished file against what it should be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_cbq.calibration.samples import Batch, Indices, Samples
from onnx_cbq.errors import ModelError, VerificationError
from onnx_cbq.graph.load import LAYER_OPERATORS, load
from onnx_cbq.graph.logits import Logits
from onnx_cbq.graph.shapes import outputs_of_varying_size
from onnx_cbq.model import Array, Model, attributes
from onnx_cbq.progress import Progress, silent
from onnx_cbq.quantize.grid import fits_bits
from onnx_cbq.ranks import ranks_fit
from onnx_cbq.records import Evaluation, Layers, LayerWeights
from onnx_cbq.records.answers import Kind
from onnx_cbq.records.spread import Spread, squared_distances
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
class OutputDistance:
    """How far an output beside the class scores is from the float model's, over all samples.

    Attributes:
        output: its name.
        relative: root mean square of the change over the standard deviation of the output over the samples; None for
            one that is not made of real numbers, or does not vary.
        differing: share of elements that differ, of an output that is not made of real numbers.
    """

    output: str
    relative: float | None
    differing: float | None


@dataclass(frozen=True)
class Comparison:
    """Evaluations of several models on the same samples.

    Attributes:
        agreements: how often each agrees with the first, in percent.
        fidelity: of the last, if that was asked for; `plain_latency_ms` is that of its plain graph.
        further: how far the outputs of the last, beside the class scores, are from those of the first.
    """

    evaluations: tuple[Evaluation, ...]
    agreements: tuple[float, ...]
    fidelity: Fidelity | None = None
    plain_latency_ms: float | None = None
    further: tuple[OutputDistance, ...] = ()


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
    tallies = [_Tally(logits.kind) for _ in models]
    infinities = [_Infinities(logits) for _ in models]
    further = _Distances(sessions, logits.output)
    done, beside = 0, _Beside(len(indices), logits.kind)
    for batch in samples.batches(indices, batch_size(samples)):
        answers = [_answers(session, batch, logits, further.names) for session in sessions]
        scores = [seen.take(values[logits.output]) for seen, values in zip(infinities, answers, strict=True)]
        for tally, found in zip(tallies, scores, strict=True):
            tally.add(found, batch.labels, scores[0])
        further.add(answers[0], answers[-1])
        if plain is not None and beside.wants(done):
            fused = _answers(plain, batch, logits, ())[logits.output]
            beside.add(scores[-1], _Infinities(logits).take(fused), batch.labels)
        done += batch.count
        progress("evaluation", done, len(indices))
    for seen in infinities[1:]:
        seen.check(infinities[0])
    one = samples.read(indices[: samples.fixed_batch or 1])
    latencies = median_latency([*sessions, plain] if plain is not None else sessions, one)
    evaluations = (tally.evaluation(size, ms * 1e3) for tally, size, ms in zip(tallies, sizes, latencies, strict=False))
    agreements = tuple(tally.agreement for tally in tallies)
    if plain is None:
        return Comparison(tuple(evaluations), agreements, further=further.found())
    return Comparison(tuple(evaluations), agreements, beside.fidelity(), latencies[-1] * 1e3, further.found())


class _Tally:
    """Counts what a model answers."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        shape = (kind.classes, 2, 2) if kind.several else (kind.classes, kind.classes)
        self._confusion = np.zeros(shape, np.int64)
        self._in_top = self._agreeing = self._total = 0

    def add(self, scores: Array, labels: Array, reference: Array) -> None:
        """Take in scores [samples, positions, classes]; `reference` are those of the model to agree with."""
        found, first = self._kind.predictions(scores), self._kind.predictions(reference)
        truth = labels.reshape(found.shape)
        known = truth >= 0
        if self._kind.several:
            classes = np.broadcast_to(np.arange(self._kind.classes), truth.shape)
            np.add.at(self._confusion, (classes, truth, found), 1)
        else:
            np.add.at(self._confusion, (truth[known], found[known]), 1)
            self._in_top += _label_in_top(scores[known], truth[known])
        self._agreeing += int((found == first)[known].sum())
        self._total += int(known.sum())

    @property
    def agreement(self) -> float:
        """How often the model answers as the reference, in percent."""
        return 100 * self._agreeing / max(self._total, 1)

    def evaluation(self, size: int, latency_ms: float) -> Evaluation:
        """What came of it."""
        confusion = self._confusion
        # Labels by whether the answer is right: of the classes, or of yes and no for each of them.
        right, given = np.diagonal(confusion, axis1=-2, axis2=-1), confusion.sum(axis=-1)
        with np.errstate(invalid="ignore"):
            shares = 100 * right / given
        if self._kind.several:
            shares = np.where(given[:, 1] > 0, np.nanmean(np.where(given > 0, shares, np.nan), axis=1), np.nan)
        return Evaluation(
            top1=float(100 * right.sum() / max(given.sum(), 1)),
            top5=100 * self._in_top / max(self._total, 1)
            if self._kind.classes > 10 and not self._kind.several
            else None,
            per_class=tuple(None if np.isnan(share) else float(share) for share in shares),
            confusion=confusion,
            bytes=size,
            latency_ms=latency_ms,
        )


class _Infinities:
    """Which class scores of a model are not finite. A class may be masked with -inf; everything else is an error."""

    def __init__(self, logits: Logits) -> None:
        self._logits = logits
        self._masked = np.zeros(logits.classes, bool)

    def take(self, values: Any) -> Array:
        """Scores [samples, positions, classes] of a graph output.

        Raises:
            VerificationError: there is NaN or +inf, or a sample without a single finite score.
        """
        # Of pixels there may be many, and nothing is added up.
        double = isinstance(values, np.ndarray) and values.dtype == np.float64
        scores = self._logits.reading.rows(values, np.float64 if double else np.float32)
        if scores.shape[-1] != self._logits.classes:
            raise ModelError(
                f"the models to compare have {scores.shape[-1]} and {self._logits.classes} classes; expected the same "
                f"number"
            )
        masked = np.isneginf(scores)
        if not np.isfinite(scores[~masked]).all() or masked.all(axis=-1).any():
            raise VerificationError(f"output {self._logits.output!r} holds NaN or infinity; {_FINITE_ADVICE}")
        self._masked |= masked.any(axis=(0, 1))
        return scores

    def check(self, reference: _Infinities) -> None:
        """Hold the masked classes against those of another model.

        Raises:
            VerificationError: some are masked that are not there.
        """
        new = np.flatnonzero(self._masked & ~reference._masked)
        if len(new):
            raise VerificationError(
                f"output {self._logits.output!r} holds -inf for class {new[0]}, where the float model never does; "
                f"give more --bits or --activation-bits"
            )


class _Distances:
    """How far the outputs beside the class scores are from those of the first model."""

    def __init__(self, sessions: Sequence[Session], scores: str) -> None:
        first, last = sessions[0], sessions[-1]
        shared = [name for name in first.outputs if name in last.outputs and name != scores]
        self.names = shared if len(sessions) > 1 else []
        self._spreads = {name: Spread() for name in self.names}
        self._sums = {name: np.zeros(2) for name in self.names}

    def add(self, first: Mapping[str, Any], last: Mapping[str, Any]) -> None:
        """Take in what both give for a batch; outputs of other shapes are not compared."""
        for name in list(self.names):
            before, after = first[name], last[name]
            if not isinstance(before, np.ndarray) or np.shape(before) != np.shape(after):
                self.names.remove(name)
            elif before.dtype.kind == "f":
                self._spreads[name].add(before)
                self._sums[name] += [squared_distances(before, after).sum(), before.size]
            else:
                self._sums[name] += [(before != after).sum(), before.size]

    def found(self) -> tuple[OutputDistance, ...]:
        """The distances so far."""
        distances = []
        for name in self.names:
            total, count = self._sums[name]
            variance, share = self._spreads[name].variance, float(total / max(count, 1))
            if self._spreads[name].is_empty:
                distances.append(OutputDistance(name, None, share))
            else:
                distances.append(OutputDistance(name, math.sqrt(share / variance) if variance else None, None))
        return tuple(distances)


class _Beside:
    """Counts on batches spread over all samples how two graphs of one model differ."""

    def __init__(self, total: int, kind: Kind) -> None:
        self._every = max(total / PLAIN_SAMPLES, 1.0)
        self._kind = kind
        self._counts, self._samples = np.zeros(4, np.int64), 0

    def wants(self, done: int) -> bool:
        return bool(self._samples * self._every <= done)

    def add(self, fused: Array, plain: Array, labels: Array) -> None:
        found, expected = self._kind.predictions(fused), self._kind.predictions(plain)
        truth = labels.reshape(found.shape)
        known = truth >= 0
        one, other, differs = (part[known] for part in (found == truth, expected == truth, found != expected))
        self._samples += len(labels)
        self._counts += [known.sum(), differs.sum(), (one & ~other).sum(), (other & ~one).sum()]

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


def check_sizes(path: Path, model: Model, feeds: Feeds | None) -> None:
    """Run the file and the float model on samples of another size than those that were seen.

    Raises:
        VerificationError: the file gives outputs of other shapes.
    """
    if feeds is None:
        return
    reference, session = Session(model).run(feeds), Session(path)
    size = ", ".join(f"{name} {list(value.shape)}" for name, value in feeds.items())
    try:
        found = session.run({name: value[: session.samples] for name, value in feeds.items()})
    except ModelError as error:
        raise VerificationError(f"the quantized model does not run at another size ({size}): {error}") from error
    varying = outputs_of_varying_size(model)
    for name, value in reference.items():
        if not _alike(found[name], value, varies=name in varying):
            raise VerificationError(
                f"output {name!r} of the quantized model has the shape {list(np.shape(found[name]))} for samples of "
                f"another size ({size}), expected {list(np.shape(value))} as in the float model; report this as a bug"
            )


def check_outputs(path: Path, model: Model, feeds: Feeds) -> None:
    """Run the file that was written beside the float model.

    Raises:
        VerificationError: it is not valid ONNX, its outputs are not those of the float model in name and shape, or not
            finite where the float model's are.
    """
    try:
        # Exporters declare shapes that their own graph does not have; what was wrong before may stay.
        onnx.checker.check_model(str(path), full_check=_declares_its_shapes(model))
        session = Session(path)
        feeds = {name: value[: session.samples] for name, value in feeds.items()}
        fused = session.run(feeds)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ModelError) as error:
        raise VerificationError(f"the quantized model is not valid: {str(error).splitlines()[0]}") from error
    reference = Session(model).run(feeds)
    varying = outputs_of_varying_size(model)
    for name, value in reference.items():
        if name not in fused or not _alike(fused[name], value, varies=name in varying):
            raise VerificationError(f"output {name!r} of the quantized model has another shape than in the float model")
        if not isinstance(value, np.ndarray) or not np.issubdtype(value.dtype, np.floating):
            continue
        new = _new_infinities(value, fused[name])
        if new:
            raise VerificationError(
                f"output {name!r} of the quantized model holds {new}, which the float model does not; {_FINITE_ADVICE}"
            )


def _alike(found: Array, expected: Array, *, varies: bool) -> bool:
    """Whether an output has the right shape; one whose size the values decide, as many axes."""
    one, other = np.shape(found), np.shape(expected)
    return len(one) == len(other) if varies else one == other


def _declares_its_shapes(model: Model) -> bool:
    """Whether the shapes that a model declares are those that its nodes make."""
    try:
        onnx.shape_inference.infer_shapes(model.plain_skeleton(), check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError:
        return False
    return True


def _new_infinities(reference: Array, found: Array) -> str:
    """What of NaN, inf and -inf an output holds though the float model's holds none of it."""
    kinds: dict[str, Callable[[Array], Array]] = {"NaN": np.isnan, "inf": np.isposinf, "-inf": np.isneginf}
    return " and ".join(name for name, test in kinds.items() if test(found).any() and not test(reference).any())


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


def _answers(session: Session, batch: Batch, logits: Logits, others: Sequence[str]) -> dict[str, Any]:
    """The class scores and other outputs of a batch, without the samples that only fill it up."""
    names = [logits.output, *others]
    size, total = session.samples, len(next(iter(batch.feeds.values())))
    if size is None or size >= total:
        values: Mapping[str, Any] = session.run(batch.feeds, names)
    else:  # a file for a target that takes so many samples at a time
        parts = [
            session.run({name: value[i : i + size] for name, value in batch.feeds.items()}, names)
            for i in range(0, total, size)
        ]
        values = {name: _joined([part[name] for part in parts], logits.axis(name)) for name in names}
    return {name: _first(value, batch.count, logits.axis(name)) for name, value in values.items()}


def _joined(parts: list[Any], axis: int) -> Any:
    if isinstance(parts[0], list):
        return [row for part in parts for row in part]
    return np.concatenate(parts, axis) if np.ndim(parts[0]) > axis else parts[0]


def _first(value: Any, count: int, axis: int) -> Any:
    """The first samples of an output."""
    if isinstance(value, list):
        return value[:count]
    return np.moveaxis(np.moveaxis(value, axis, 0)[:count], 0, axis) if np.ndim(value) > axis else value


def _label_in_top(scores: Array, labels: Array) -> int:
    if scores.shape[1] <= TOP:
        return len(labels)
    top = np.argpartition(scores, -TOP, axis=1)[:, -TOP:]
    return int((top == labels[:, None]).any(axis=1).sum())
