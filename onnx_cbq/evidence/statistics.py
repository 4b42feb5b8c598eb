"""Run the float model over the samples and keep what quantization needs to know about its tensors."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_cbq.calibration.draw import Draw
from onnx_cbq.calibration.samples import Indices, Samples
from onnx_cbq.errors import ModelError
from onnx_cbq.evidence.relay import Relay, dependents
from onnx_cbq.model import Array, Model
from onnx_cbq.quantize.activations import Histogram
from onnx_cbq.quantize.moments import Moments, MomentSums, combine, looked_up, white
from onnx_cbq.quantize.patches import has_rows, input_rows, mean_output, mean_row, output_rows
from onnx_cbq.quantize.settings import RoundingConfig
from onnx_cbq.records import Layer, Layers, Seen, Use
from onnx_cbq.runtime import Feeds, Session
from onnx_cbq.system.progress import Progress, silent


def collect_histograms(
    model: Model, tensors: Sequence[str], samples: Samples, drawn: Draw, size: int, progress: Progress = silent
) -> Mapping[str, Histogram]:
    """A histogram of the values of each tensor over the samples drawn, `size` samples at a time.

    Memory does not grow with the number of samples.

    Raises:
        ModelError: a tensor is not finite.
    """
    tensors_of = _Tensors(model, tensors)
    histograms = dict.fromkeys(tensors, Histogram.empty())
    done, indices = 0, drawn.indices
    for batch in samples.batches(indices, size):
        values = tensors_of.run(batch.feeds)
        histograms = {name: seen.add(values[name]) for name, seen in histograms.items()}
        done += batch.count
        progress("activations", done, len(indices))
    return histograms


def collect_ranges(
    model: Model, channel_axes: Mapping[str, int], samples: Samples, indices: Indices, size: int
) -> Mapping[str, Array]:
    """The largest magnitude in each channel of some tensors: name -> axis of its channels gives name -> [channels].

    Raises:
        ModelError: a tensor is not finite.
    """
    tensors = _Tensors(model, list(channel_axes))
    ranges: dict[str, Array] = {}
    for batch in samples.batches(indices, size):
        for name, value in tensors.run(batch.feeds).items():
            channels = np.moveaxis(value, channel_axes[name], 0)
            largest = np.abs(channels.reshape(len(channels), -1)).max(axis=1)
            ranges[name] = np.maximum(ranges[name], largest) if name in ranges else largest
    return ranges


@dataclass(frozen=True)
class Sizes:
    """How large the values of each sample are in one tensor, float64 [samples]: mean square, and largest magnitude."""

    energies: Array
    peaks: Array


def collect_sizes(
    model: Model, layers: Layers, samples: Samples, indices: Indices, size: int, progress: Progress = silent
) -> Mapping[str, Sizes]:
    """How large each of the samples `indices` is in each tensor of real numbers that a layer reads.

    Raises:
        ModelError: a tensor is not finite.
    """
    axes = {use.activation: use.batch_axis for layer in layers.products for use in layer.uses}
    tensors = _Tensors(model, list(axes))
    parts: dict[str, list[Array]] = {name: [] for name in axes}
    done = 0
    for batch in samples.batches(indices, size):
        fed = len(next(iter(batch.feeds.values())))
        for name, value in tensors.run(batch.feeds).items():
            by_sample = _by_sample(value, axes[name], fed)
            if by_sample is not None:
                real = by_sample[: batch.count].astype(np.float64)
                parts[name].append(np.stack([np.square(real).mean(axis=1), np.abs(real).max(axis=1)]))
        done += batch.count
        progress("samples", done, len(indices))
    return {name: Sizes(*np.concatenate(part, axis=1)) for name, part in parts.items() if part}


def _by_sample(value: Array, axis: int, count: int) -> Array | None:
    """[..., count or a multiple of it at the axis, ...] -> [count, values]; None if the tensor has no such axis."""
    known = np.issubdtype(value.dtype, np.floating) and value.size and axis < value.ndim
    if not known or value.shape[axis] % count:
        return None
    return np.moveaxis(value, axis, 0).reshape(count, -1)


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

    def held(self, number: int, count: int) -> int:
        """How many of the `count` samples of a batch are held back: the last ones."""
        before = number * (self.samples.fixed_batch or self.size)
        return int((before + count) * self.config.held_back) - int(before * self.config.held_back)


def collect_moments(
    model: Model, seen: Seen | None, layers: Sequence[Layer], run: Run, relay: Relay | None = None
) -> Mapping[str, Moments]:
    """Moments of the inputs of `layers` in the float `model`, by layer name.

    `seen` is what they see instead of the model's tensors, None if the same; then what the branch lacks that a layer's
    output is added to counts, too. With `relay` both begin where the layers before have left them. Memory: the moments,
    the tensors of one batch, and what the relay keeps.

    Raises:
        ModelError: an input, or its square, is not finite.
    """
    relay = relay or Relay.of(run.samples, run.indices, run.size)
    branches = _branches(layers, dependents(model, relay.pending)) if seen is not None else {}
    names = [*(use.activation for layer in layers for use in layer.uses), *branches.values()]
    aimed = relay.aimed.stretch(model, names, relay.pending)
    others = aimed
    if seen is not None:
        others = relay.changed.stretch(seen.model, [seen.name(name) for name in names], relay.pending)
    passes, whole = relay.passes, aimed.needs_inputs or others.needs_inputs
    sums = {layer.name: [MomentSums(centred=use.bias is not None) for use in layer.uses] for layer in layers}
    squares = dict.fromkeys((layer.name for layer in layers), 0.0)
    counts = {layer.name: np.zeros(layer.channels) for layer in layers if layer.kind == "table"}
    for number, batch in enumerate(passes if whole else passes.without_inputs()):
        values = _finite(aimed.run(number, batch.feeds))
        found = values if others is aimed else _finite(others.run(number, batch.feeds))
        # Samples that only fill up a fixed batch count nothing.
        weights = np.zeros(run.samples.fixed_batch or batch.count, np.float32)
        weights[: batch.count] = run.samples.weights(batch.labels, run.class_weights)
        held = len(weights) - batch.count + run.held(number, batch.count)
        for layer in layers:
            for use, total in zip(layer.uses, sums[layer.name], strict=True):
                x, y = values[use.activation], found[seen.name(use.activation) if seen else use.activation]
                if use.lookup is not None:
                    counts[layer.name] += _counts(layer, use, x, weights)
                elif has_rows(layer):
                    branch = branches.get(layer.name)
                    lost = values[branch] - found[seen.name(branch)] if seen and branch else None
                    _add_rows(total, (layer, use, positions_of(layer, run), number), (x, y, lost), weights, held)
                else:
                    squares[layer.name] += float(np.square(y, dtype=np.float64).mean()) * batch.count / len(run.indices)
    moments = {
        layer.name: looked_up(layer, counts[layer.name])
        if layer.name in counts
        else combine([total.moments() for total in sums[layer.name]])
        if has_rows(layer)
        else white(layer, squares[layer.name] / len(layer.uses))
        for layer in layers
    }
    for layer in layers:
        if not all(np.isfinite(part).all() for part in moments[layer.name].matrices):
            raise ModelError(
                f"tensor {layer.uses[0].activation!r}, the input of layer {layer.name!r}, holds values too large to be "
                f"squared in float32; use --rounding nearest --method uniform, or scale the samples"
            )
    return moments


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
    total: MomentSums,
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


class _Tensors:
    """Tensors of a model, graph inputs among them, for the real samples of each batch."""

    def __init__(self, model: Model, names: Sequence[str]) -> None:
        inputs = {spec.name for spec in model.inputs}
        self._names = list(dict.fromkeys(names))
        self._session = Session(model.with_graph(outputs=[n for n in self._names if n not in inputs] or model.outputs))

    def run(self, feeds: Feeds) -> dict[str, Array]:
        values = {**self._session.run(feeds), **feeds}
        return _finite({name: values[name] for name in self._names})


def _finite(values: dict[str, Array]) -> dict[str, Array]:
    """The values as they are.

    Raises:
        ModelError: one is not finite.
    """
    for name, value in values.items():
        if not np.isfinite(value).all():
            raise ModelError(
                f"tensor {name!r} holds NaN or infinity on the calibration samples; expected finite numbers; "
                f"check that the samples are prepared as the model was trained"
            )
    return values
