"""Which layer hurts: a float model and a quantized file on the same samples, each layer by itself and all together.

What a file makes of a layer is measured three times beside the float model's output y, with the float model's own x in
front of it, so that nothing adds up: with the file's weight alone, with the rounding of x alone, and with both. Then
y^, of both, takes the place of y in the float model, and the divergence of the class scores is what that layer alone
costs. Beside it stands the noise that has come together up to there in the file itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import helper

from onnx_cbq.calibration.samples import Batch, Indices, Samples
from onnx_cbq.evidence.relay import begin_at, dependents
from onnx_cbq.graph.logits import Logits
from onnx_cbq.model import Array, Model
from onnx_cbq.records import Grouping
from onnx_cbq.records.answers import Kind
from onnx_cbq.runtime import Session
from onnx_cbq.system.progress import Progress, silent
from onnx_cbq.targets.reading import Grid
from onnx_cbq.verification.contest import as_logits
from onnx_cbq.verification.counts import LARGEST_BATCH
from onnx_cbq.verification.cutting import cut, input_of, offset_of, with_offsets
from onnx_cbq.verification.noise import Noise, divided, limits, multiplied, rounded
from onnx_cbq.verification.pairing import Pair, Pairs, renamed
from onnx_cbq.verification.rescaling import Factors, expected_rows

# The float model is opened so many times, each time from other layers on.
_PARTS = 4
# Tensors of one batch, of which some six times as many are held.
_BATCH_BYTES = 96 << 20


@dataclass
class LayerNoise:
    """What is measured of a layer; see the module's docstring.

    Attributes:
        weight: noise of its weight, row by row.
        read: of its rounded input, and how many of `numbers` lie `outside` of what the grid can say; nothing where the
            input is float, or on a grid that is not of one scale and whole numbers.
        by_weight, by_input, alone: of its output, with the one, the other and both.
        so_far: of its output in the file.
        divergence: sum over `samples` of that of the class scores, in nats.
    """

    weight: Noise = field(default_factory=Noise)
    read: Noise = field(default_factory=Noise)
    by_weight: Noise = field(default_factory=Noise)
    by_input: Noise = field(default_factory=Noise)
    alone: Noise = field(default_factory=Noise)
    so_far: Noise = field(default_factory=Noise)
    outside: int = 0
    numbers: int = 0
    divergence: float = 0.0
    samples: int = 0


@dataclass
class Whole:
    """The class scores of the file beside those of the float model, summed up over `samples`.

    Attributes:
        divergence: in nats.
        equal: answers that are the same, of each sample their share.
    """

    divergence: float = 0.0
    equal: float = 0.0
    samples: int = 0

    def add(self, divergence: float, equal: Array) -> None:
        """Take in a batch: the sum of its divergences, and which answers are the same [samples, answers]."""
        self.divergence += divergence
        self.equal += float(equal.mean(axis=1).sum())
        self.samples += len(equal)


@dataclass(frozen=True)
class Subject:
    """What is examined.

    Attributes:
        logits, file_logits: how the class scores of both are read.
    """

    pairs: Pairs
    factors: Sequence[Factors]
    logits: Logits
    file_logits: Logits

    def grid(self, pair: Pair) -> tuple[Grid, int, tuple[float, float]] | None:
        """That of a layer's input, its greatest code, and the numbers that it can say; None where it is float."""
        grid = pair.product.grids[0]
        if grid is None:
            return None
        largest = self.pairs.file.largest_code(grid.tensor)
        ends = limits(grid, largest)
        return None if ends is None else (grid, largest, ends)


def diagnose(
    subject: Subject, samples: Samples, indices: Indices, progress: Progress = silent
) -> tuple[list[LayerNoise], Whole]:
    """Measure every pair on the samples `indices`.

    Cost: five passes, and for each layer most of one. Memory: some 600 MB of tensors, or those of one
    sample.

    Raises:
        ModelError: a model cannot be run.
    """
    pairs = subject.pairs
    found = [LayerNoise() for _ in pairs.pairs]
    for pair, layer, factors in zip(pairs.pairs, found, subject.factors, strict=True):
        _add_weight(pairs, pair, factors, layer.weight)
    bench, whole, done = _Bench(subject), Whole(), 0
    for batch in samples.batches(indices, _batch_size(pairs)):
        bench.add(batch, found, whole)
        done += batch.count
        progress("layers", done, len(indices))
    return found, whole


def _batch_size(pairs: Pairs) -> int:
    one = sum(4 * int(np.prod(p.use.output_shape)) // max(p.layer.samples, 1) for p in pairs.pairs)
    return max(min(_BATCH_BYTES // max(one, 1), LARGEST_BATCH), 1)


def _add_weight(pairs: Pairs, pair: Pair, factors: Factors, noise: Noise) -> None:
    """The file's weight beside the float one, as far as both can be compared."""
    rows = pair.rows_of(pairs.weight(pair))
    wanted = None if rows is None else expected_rows(pairs, pair, rows, factors)
    if rows is not None and wanted is not None:
        noise.add(wanted, rows)


class _Bench:
    """Both models, whole and in parts, ready to run."""

    def __init__(self, subject: Subject) -> None:
        self._subject, self._pairs = subject, subject.pairs
        self._model, self._quantized = subject.pairs.model, subject.pairs.file.model
        self._float = _with_outputs(self._model, self._pairs.tensors, subject.logits)
        self._file = _with_outputs(self._quantized, self._pairs.file_tensors, subject.file_logits)
        self._kind: Kind = subject.logits.kind
        self._groups = Grouping.single(("",) * subject.logits.classes)
        self._cuts: tuple[Session, Session] | None = None
        self._behind: dict[int, Session] = {}

    def add(self, batch: Batch, found: Sequence[LayerNoise], whole: Whole) -> None:
        """Take in a batch."""
        values = self._float.run(batch.feeds)
        others = self._file.run(renamed(batch.feeds, self._quantized))
        first = self._answers(values, self._subject.logits, batch)
        second = self._answers(others, self._subject.file_logits, batch)
        whole.add(self._divergence(first, second, batch), first.predictions == second.predictions)
        for pair, layer, factors in zip(self._pairs.pairs, found, self._subject.factors, strict=True):
            wanted = pair.of_outputs(values[pair.use.output])
            layer.so_far.add(wanted, others[pair.made], factors.made, pair.use.channel_axis)
        alone = self._alone(values, others, found)
        known = {**batch.feeds, **values}
        for i, made in alone.items():
            off = made - values[self._pairs.pairs[i].use.output]
            found[i].samples += batch.count
            if off.any():
                scores = self._answers(self._run_with(i, off, alone, known), self._subject.logits, batch)
                found[i].divergence += self._divergence(first, scores, batch)

    def _answers(self, values: Mapping[str, Array], logits: Logits, batch: Batch) -> _Answers:
        scores = logits.reading.rows(values[logits.output])[: batch.count]
        shares = self._kind.log_shares(as_logits(scores, logits), self._groups)
        return _Answers(self._kind.predictions(scores), shares)

    def _divergence(self, first: _Answers, second: _Answers, batch: Batch) -> float:
        """Summed up over samples, of each the mean of its answers, in nats."""
        counts = np.maximum(self._kind.counts(batch.labels).sum(axis=1), 1e-9)
        return float((self._kind.divergences(first.shares, second.shares, batch.labels).sum(axis=1) / counts).sum())

    def _alone(
        self, values: Mapping[str, Array], others: Mapping[str, Array], found: Sequence[LayerNoise]
    ) -> dict[int, Array]:
        """What the file makes of each layer behind the float model's tensors, in the float model's terms."""
        plain: dict[int, Array] = {}
        coarse: dict[int, Array] = {}
        for i, (pair, factors) in enumerate(zip(self._pairs.pairs, self._subject.factors, strict=True)):
            x = pair.of_inputs(values[pair.use.activation])
            if x.size != others[pair.read].size:
                continue
            plain[i] = multiplied(x, factors.read, pair.input_axis)
            coarse[i] = self._rounded(pair, plain[i], found[i])
        if not plain:
            return {}
        float_cut, file_cut = self._cut(plain, others)
        by_weight, alone = (file_cut.run(self._fed(part, others)) for part in (plain, coarse))
        back = {}
        for i, x in coarse.items():
            pair = self._pairs.pairs[i]
            unscaled = divided(x, self._subject.factors[i].read, pair.input_axis)
            back[input_of(pair.use.output)] = pair.with_inputs(values[pair.use.activation], unscaled.astype(x.dtype))
        by_input = float_cut.run(back)
        made = {}
        for i in plain:
            pair, layer, factor = self._pairs.pairs[i], found[i], self._subject.factors[i].made
            y, axis = values[pair.use.output], pair.use.channel_axis
            kept = pair.of_outputs(y)
            layer.by_weight.add(kept, by_weight[pair.made], factor, axis)
            layer.by_input.add(y, by_input[pair.use.output])
            layer.alone.add(kept, alone[pair.made], factor, axis)
            own = divided(alone[pair.made].reshape(kept.shape), factor, axis).astype(y.dtype)
            made[i] = pair.with_outputs(y, own)
        return made

    def _rounded(self, pair: Pair, x: Array, layer: LayerNoise) -> Array:
        """An input on the file's grid; what that takes from it is counted."""
        known = self._subject.grid(pair)
        if known is None:
            return x
        grid, largest, (low, high) = known
        found = rounded(x, grid, largest)
        layer.read.add(x, found)
        assert grid.scale is not None
        half = float(grid.scale.reshape(-1)[0]) / 2
        layer.outside += int(((x < low - half) | (x > high + half)).sum())
        layer.numbers += x.size
        return found

    def _cut(self, fed: Mapping[int, Array], others: Mapping[str, Array]) -> tuple[Session, Session]:
        """Both models cut in front of these layers."""
        if self._cuts is None:
            pairs = [self._pairs.pairs[i] for i in fed]
            kinds = {pair.use.output: _kind_of(fed[i]) for i, pair in zip(fed, pairs, strict=True)}
            theirs = {pair.product.node.output[0]: _kind_of(others[pair.read]) for pair in pairs}
            mine = {pair.use.output: (1 - pair.use.weight_index, kinds[pair.use.output]) for pair in pairs}
            places = {p.product.node.output[0]: (1 - p.product.index, theirs[p.product.node.output[0]]) for p in pairs}
            self._cuts = (
                Session(cut(self._model, mine, [pair.use.output for pair in pairs]), "off"),
                Session(cut(self._quantized, places, [pair.made for pair in pairs]), "off"),
            )
        return self._cuts

    def _fed(self, inputs: Mapping[int, Array], others: Mapping[str, Array]) -> dict[str, Array]:
        """What the file's layers read, in the form in which it has it."""
        pairs = {i: self._pairs.pairs[i] for i in inputs}
        return {
            input_of(pair.product.node.output[0]): inputs[i]
            .reshape(others[pair.read].shape)
            .astype(others[pair.read].dtype)
            for i, pair in pairs.items()
        }

    def _run_with(
        self, i: int, off: Array, alone: Mapping[int, Array], values: Mapping[str, Array]
    ) -> Mapping[str, Array]:
        """The float model with something added to the output of one of the layers `alone`, from `values` on."""
        group = next(part for part in np.array_split(list(alone), _PARTS) if i in part)
        outputs = {j: self._pairs.pairs[j].use.output for j in group.tolist()}
        session = self._behind.get(int(group[0]))
        if session is None:
            kinds = {name: _kind_of(alone[j]) for j, name in outputs.items()}
            changing = dependents(self._model, list(kinds))
            known = {p.use.output: values[p.use.output] for p in self._pairs.pairs if p.use.output not in changing}
            wanted = [self._subject.logits.output]
            session = Session(begin_at(with_offsets(self._model, kinds, wanted), known, wanted))
            self._behind[int(group[0])] = session
        nothing = {offset_of(name): np.zeros((), alone[j].dtype) for j, name in outputs.items()}
        given = {**values, **nothing, offset_of(outputs[i]): off}
        return session.run({name: given[name] for name in session.inputs})


@dataclass(frozen=True)
class _Answers:
    """What a model answers to a batch: predictions, and logarithms of the probabilities."""

    predictions: Array
    shares: Array


def _with_outputs(model: Model, tensors: Sequence[str], logits: Logits) -> Session:
    return Session(model.with_graph(outputs=dict.fromkeys((*tensors, logits.output))), "off")


def _kind_of(values: Array) -> int:
    return int(helper.np_dtype_to_tensor_dtype(values.dtype))
