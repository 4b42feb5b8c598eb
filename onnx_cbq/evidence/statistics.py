"""Second moments of what layers read in the float model, and behind quantized layers in front (`quantize.moments`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import ClassVar

import numpy as np

from onnx_cbq.calibration.samples import Batch, Indices, Samples
from onnx_cbq.errors import ModelError
from onnx_cbq.evidence.relay import Track, dependents
from onnx_cbq.evidence.tensors import Values, finite
from onnx_cbq.execution import IN_PROCESS, Crew, Engine, Place
from onnx_cbq.model import Array, Model
from onnx_cbq.quantize.moments import WIDEST, Moments, combine, looked_up, white
from onnx_cbq.quantize.patches import has_rows, input_rows, mean_output, mean_row, output_rows
from onnx_cbq.quantize.row_sums import Counted, MomentSums, RowSums
from onnx_cbq.quantize.settings import RoundingConfig
from onnx_cbq.records import Layer, Seen, Use

# Batches are joined to shards as long as there are so many of these.
_SHARDS = 8


@dataclass(frozen=True)
class Run:
    """Samples to run.

    Attributes:
        samples, indices: which.
        size: how many at a time.
        config: how many layer inputs to take from them, at least one of each sample, and how many samples to hold back.
        class_weights: what a sample counts, by its class.
    """

    samples: Samples
    indices: Indices
    size: int
    config: RoundingConfig
    class_weights: Array

    def weights(self, batch: Batch) -> Array:
        """What the samples of a batch count; those that only fill up a fixed batch count nothing, float32 [fed]."""
        weights = np.zeros(self.samples.fixed_batch or batch.count, np.float32)
        weights[: batch.count] = self.samples.weights(batch.labels, self.class_weights)
        return weights

    def held(self, number: int, count: int) -> int:
        """How many of the `count` samples of a batch are held back: the last ones."""
        before = number * (self.samples.fixed_batch or self.size)
        return int((before + count) * self.config.held_back) - int(before * self.config.held_back)


@dataclass(frozen=True)
class Shard:
    """Batches that belong together, by their numbers, and the samples of each."""

    numbers: tuple[int, ...]
    chunks: tuple[Indices, ...]


def shards_of(run: Run, layers: Sequence[Layer]) -> list[Shard]:
    """The batches of a run, so many together that products are taken over as many rows as a channel has weights.

    As far as that leaves `_SHARDS`; how they are cut does not depend on who runs them.
    """
    chunks = run.samples.chunks(run.indices, run.size)
    rows = [positions_of(layer, run) * len(chunks[0]) for layer in layers if has_rows(layer)]
    wanted = [min(layer.weights_per_channel, WIDEST) for layer in layers if has_rows(layer)]
    needed = max((math.ceil(n / count) for n, count in zip(wanted, rows, strict=True)), default=1)
    step = max(min(needed, len(chunks) // _SHARDS), 1)
    numbers = range(len(chunks))
    return [Shard(tuple(numbers[i : i + step]), tuple(chunks[i : i + step])) for i in range(0, len(chunks), step)]


@dataclass(frozen=True)
class MomentWork:
    """A float model, what layers see instead of its tensors, None if the same, and samples."""

    model: Model
    seen: Seen | None
    run: Run

    def start(self, place: Place) -> Nets:
        """Both at their start."""
        count = len(self.run.indices)
        return Nets(self, Track(count, place), Track(count, place))


@dataclass(frozen=True)
class Nets:
    """Both models on their way through the batches; constants of the second are replaced as layers are rounded."""

    work: MomentWork
    aimed: Track
    changed: Track
    constants: dict[str, Array] = field(default_factory=dict)

    def changed_model(self) -> Seen:
        """The second as it is now."""
        seen = self.work.seen or Seen(self.work.model, {})
        return Seen(seen.model.with_constants(self.constants), seen.names)


@contextmanager
def collecting(
    engine: Engine, model: Model, seen: Seen | None, layers: Sequence[Layer], run: Run
) -> Iterator[Collector]:
    """What collects moments of the layers, some at a time."""
    shards = shards_of(run, layers)
    with engine.crew(MomentWork(model, seen, run), shards) as crew:
        yield Collector(crew, run, shards, apart=seen is not None)


def collect_moments(
    model: Model, seen: Seen | None, layers: Sequence[Layer], run: Run, engine: Engine = IN_PROCESS
) -> Mapping[str, Moments]:
    """Moments of the inputs of `layers` in the float `model`, by layer name; see `Collector.collect`."""
    with collecting(engine, model, seen, layers, run) as collector:
        return collector.collect(layers)


@dataclass
class Collector:
    """Collects moments of layers, which may be rounded one after another.

    Attributes:
        apart: whether what layers see is something else than the model's own tensors by now.
    """

    crew: Crew
    run: Run
    shards: Sequence[Shard]
    apart: bool
    _rounded: dict[str, Array] = field(default_factory=dict)

    def rounded(self, constants: Mapping[str, Array]) -> None:
        """From now on layers see what these constants give, in place of the model's own."""
        self._rounded |= constants
        self.apart = self.apart or bool(constants)

    def collect(self, layers: Sequence[Layer], pending: frozenset[str] = frozenset()) -> Mapping[str, Moments]:
        """Moments of the inputs of `layers`, by layer name.

        Where layers see something else than the model's tensors, what the branch lacks that a layer's output is added
        to counts, too. With `pending`, the constants of the layers that are still to come, both nets begin where the
        layers before have left them. Memory: the moments, their sums over a shard, the tensors of one batch, and what
        the relay keeps.

        Raises:
            ModelError: an input, or its square, is not finite.
        """
        task = CollectMoments(tuple(layers), dict(self._rounded), pending, apart=self.apart)
        self._rounded.clear()
        sums = {layer.name: [MomentSums(centred=use.bias is not None) for use in layer.uses] for layer in layers}
        squares = dict.fromkeys((layer.name for layer in layers), 0.0)
        counts = {layer.name: np.zeros(layer.channels) for layer in layers if layer.kind == "table"}
        for found in self.crew.each(task):
            for layer in layers:
                mine = found[layer.name]
                for i, counted in enumerate(mine.rows):
                    sums[layer.name][i].add(counted)
                for square in mine.squares:
                    squares[layer.name] += square
                for count in mine.counts:
                    counts[layer.name] += count
        moments = {
            layer.name: looked_up(layer, counts[layer.name])
            if layer.name in counts
            else combine([total.moments() for total in sums.pop(layer.name)])
            if has_rows(layer)
            else white(layer, squares[layer.name] / len(layer.uses))
            for layer in layers
        }
        for layer in layers:
            if not all(np.isfinite(part).all() for part in moments[layer.name].matrices):
                raise ModelError(
                    f"tensor {layer.uses[0].activation!r}, the input of layer {layer.name!r}, holds values too large "
                    f"to be squared in float32; use --rounding nearest --method uniform, or scale the samples"
                )
        return moments


@dataclass
class Found:
    """What was found of a layer in some batches: sums over rows by use, and squares and lookups one after another."""

    rows: list[Counted] = field(default_factory=list)
    squares: list[float] = field(default_factory=list)
    counts: list[Array] = field(default_factory=list)


@dataclass(frozen=True)
class CollectMoments:
    """Sums over the rows of some layers, and the nets brought as far as these layers go.

    Attributes:
        constants: that were rounded since the last time.
    """

    layers: tuple[Layer, ...]
    constants: Mapping[str, Array]
    pending: frozenset[str]
    apart: bool
    leaves: ClassVar[bool] = True

    def on(self, held: Nets) -> Callable[[Sequence[Shard]], Iterator[dict[str, Found]]]:
        """What every shard adds."""
        held.constants.update(self.constants)
        model, seen = held.work.model, held.changed_model() if self.apart else None
        branches = _branches(self.layers, dependents(model, self.pending)) if seen is not None else {}
        names = [*(use.activation for layer in self.layers for use in layer.uses), *branches.values()]
        aimed = held.aimed.stretch(model, names, self.pending)
        others = aimed
        if seen is not None:
            others = held.changed.stretch(seen.model, [seen.name(name) for name in names], self.pending)
        run = held.work.run

        def values_of(shards: Sequence[Shard]) -> Iterator[tuple[int, Batch, Values, Values]]:
            each = [pair for shard in shards for pair in zip(shard.numbers, shard.chunks, strict=True)]
            reads = any(stretch.needs_inputs(number) for number, _ in each for stretch in (aimed, others))
            chunks = [chunk for _, chunk in each]
            batches = run.samples.of_chunks(chunks) if reads else run.samples.without_inputs(chunks)
            for (number, chunk), batch in zip(each, batches, strict=True):
                fed = run.samples.fixed_batch or len(chunk)
                values = finite(aimed.run(number, batch.feeds, fed))
                found = values if others is aimed else finite(others.run(number, batch.feeds, fed))
                yield number, batch, values, found

        def collect(shards: Sequence[Shard]) -> Iterator[dict[str, Found]]:
            all_values = values_of(shards)
            for shard in shards:
                sums = {layer.name: _LayerSums(layer, run, branches.get(layer.name), seen) for layer in self.layers}
                for number, batch, values, found in islice(all_values, len(shard.numbers)):
                    weights = run.weights(batch)
                    held_back = len(weights) - batch.count + run.held(number, batch.count)
                    for one in sums.values():
                        one.add((number, batch.count), (values, found), weights, held_back)
                yield {name: one.found() for name, one in sums.items()}

        return collect


class _LayerSums:
    """What is counted of a layer in the batches of a shard."""

    def __init__(self, layer: Layer, run: Run, branch: str | None, seen: Seen | None) -> None:
        self._layer, self._run, self._branch, self._seen = layer, run, branch, seen
        self._rows = [RowSums() for _ in layer.uses]
        self._found = Found()

    def add(self, which: tuple[int, int], values: tuple[Values, Values], weights: Array, held: int) -> None:
        """Count a batch, `which` by its number and of how many samples: values in the model, and as the layer sees it.

        Samples weigh so much each; the last `held` are held back, or only fill up a fixed batch.
        """
        layer, (number, count), (aimed, seen) = self._layer, which, values
        for use, rows in zip(layer.uses, self._rows, strict=True):
            x, y = aimed[use.activation], seen[self._name(use.activation)]
            if use.lookup is not None:
                self._found.counts.append(_counts(layer, use, x, weights))
            elif has_rows(layer):
                branch = self._branch
                lost = aimed[branch] - seen[self._name(branch)] if self._seen and branch else None
                where = layer, use, positions_of(layer, self._run), number
                _add_rows(rows, where, (x, y, lost), weights, held)
            else:
                square = float(np.square(y, dtype=np.float64).mean())
                self._found.squares.append(square * count / len(self._run.indices))

    def found(self) -> Found:
        """Everything counted."""
        if self._layer.kind != "table" and has_rows(self._layer):
            self._found.rows = [rows.found() for rows in self._rows]
        return self._found

    def _name(self, tensor: str) -> str:
        return self._seen.name(tensor) if self._seen else tensor


def positions_of(layer: Layer, run: Run) -> int:
    """How many rows to take from each sample: as many as the unknowns of a channel need, up to the run's."""
    rows = min(run.config.rows, run.config.rows_per_weight * layer.weights_per_channel)
    return math.ceil(rows / len(run.indices))


def _counts(layer: Layer, use: Use, indices: Array, weights: Array) -> Array:
    """How often each row of a table is looked up by the indices of a batch, each with the weight of its sample."""
    assert use.lookup is not None
    axis, entries = use.batch_axis, use.lookup.entries
    by_sample = np.moveaxis(indices, axis, 0).reshape(len(weights), -1)
    rows = np.mod(by_sample, entries) // use.lookup.together
    spread = np.broadcast_to(weights[:, None], rows.shape)
    return np.bincount(rows.reshape(-1), spread.reshape(-1), minlength=layer.channels)


def _branches(layers: Sequence[Layer], pending: Collection[str]) -> dict[str, str]:
    """The tensor that a layer's output is added to, by layer name; of layers that are used once.

    Where it is `pending`, layers of that branch are still to come, and the last of them makes up for this one.
    """
    found = ((layer.name, layer.uses[0].beside) for layer in layers if len(layer.uses) == 1 and has_rows(layer))
    return {name: beside for name, beside in found if beside is not None and beside not in pending}


def _add_rows(
    total: RowSums,
    where: tuple[Layer, Use, int, int],
    values: tuple[Array, Array, Array | None],
    weights: Array,
    held: int,
) -> None:
    """Count rows of a batch whose last `held` samples are held back: x, x~ and s - s~."""
    layer, use, positions, number = where
    x, y, lost = values
    # Both see the same positions; every batch has its own.
    aimed = input_rows(layer, use, x, positions, np.random.default_rng(number))
    seen = aimed if y is x else input_rows(layer, use, y, positions, np.random.default_rng(number))
    with np.errstate(over="ignore", invalid="ignore"):
        rows = aimed.shape[1] // len(weights)
        missing = None if lost is None else output_rows(layer, use, lost, positions, np.random.default_rng(number))
        total.add(aimed, seen, np.repeat(weights, rows), held * rows, missing)
        if use.bias is not None and weights.any():
            of_x = mean_row(layer, use, x, weights)
            means = [of_x, of_x if y is x else mean_row(layer, use, y, weights)]
            if lost is not None:
                means.append(mean_output(layer, use, lost, weights))
            total.add_means(means, float(weights.sum()))
