"""What the values of some tensors of the float model are over the samples: histograms, ranges, sizes, deviations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import numpy as np

from onnx_cbq.calibration.draw import Draw
from onnx_cbq.calibration.samples import Batch, Indices, Samples
from onnx_cbq.errors import ModelError
from onnx_cbq.execution import IN_PROCESS, Engine, Place, Task
from onnx_cbq.gradient.further import Further
from onnx_cbq.model import Array, Model
from onnx_cbq.quantize.activations import Histogram
from onnx_cbq.records import Layers
from onnx_cbq.records.spread import Spread
from onnx_cbq.runtime import Session
from onnx_cbq.system.progress import Progress, silent

Values = Mapping[str, Array]
_P = TypeVar("_P")


def collect_histograms(
    model: Model,
    tensors: Sequence[str],
    samples: Samples,
    drawn: Draw,
    size: int,
    progress: Progress = silent,
    engine: Engine = IN_PROCESS,
) -> Mapping[str, Histogram]:
    """A histogram of the values of each tensor over the samples drawn, `size` samples at a time.

    Memory does not grow with the number of samples.

    Raises:
        ModelError: a tensor is not finite.
    """
    histograms = dict.fromkeys(tensors, Histogram.empty())
    done, indices = 0, drawn.indices
    for count, found in _each(TensorWork.of(model, tensors, samples), _Histograms(), indices, size, engine):
        histograms = {name: seen.joined(found[name]) for name, seen in histograms.items()}
        done += count
        progress("activations", done, len(indices))
    return histograms


def collect_ranges(
    model: Model,
    channel_axes: Mapping[str, int],
    samples: Samples,
    indices: Indices,
    size: int,
    engine: Engine = IN_PROCESS,
) -> Mapping[str, Array]:
    """The largest magnitude in each channel of some tensors: name -> axis of its channels gives name -> [channels].

    Raises:
        ModelError: a tensor is not finite.
    """
    ranges: dict[str, Array] = {}
    work = TensorWork.of(model, list(channel_axes), samples)
    for _, found in _each(work, _Ranges(channel_axes), indices, size, engine):
        ranges = {name: np.maximum(ranges[name], new) if ranges else new for name, new in found.items()}
    return ranges


@dataclass(frozen=True)
class Sizes:
    """How large the values of each sample are in one tensor, float64 [samples]: mean square, and largest magnitude."""

    energies: Array
    peaks: Array


def collect_sizes(
    model: Model,
    layers: Layers,
    samples: Samples,
    indices: Indices,
    size: int,
    progress: Progress = silent,
    engine: Engine = IN_PROCESS,
) -> Mapping[str, Sizes]:
    """How large each of the samples `indices` is in each tensor of real numbers that a layer reads.

    Raises:
        ModelError: a tensor is not finite.
    """
    axes = {use.activation: use.batch_axis for layer in layers.products for use in layer.uses}
    parts: dict[str, list[Array]] = {name: [] for name in axes}
    done = 0
    for count, found in _each(TensorWork.of(model, list(axes), samples), _Sizes(axes), indices, size, engine):
        for name, part in found.items():
            parts[name].append(part)
        done += count
        progress("samples", done, len(indices))
    return {name: Sizes(*np.concatenate(part, axis=1)) for name, part in parts.items() if part}


def deviations(
    model: Model,
    further: Sequence[Further],
    samples: Samples,
    indices: Indices,
    size: int,
    engine: Engine = IN_PROCESS,
) -> Mapping[str, float]:
    """Standard deviation of each further output over the samples: tensor -> number, 0 if it does not vary."""
    axes = {one.tensor: one.batch_axis for one in further}
    spreads = {name: Spread() for name in axes}
    work = TensorWork.of(model, list(axes), samples)
    for _, found in _each(work, _Spreads(axes), indices, size, engine) if axes else ():
        for name, spread in found.items():
            spreads[name].join(spread)
    return {name: float(np.sqrt(spread.variance)) for name, spread in spreads.items()}


@dataclass(frozen=True)
class TensorWork:
    """Tensors of a model, graph inputs among them, on samples."""

    model: Model
    names: tuple[str, ...]
    samples: Samples

    @staticmethod
    def of(model: Model, names: Sequence[str], samples: Samples) -> TensorWork:
        """The part of the model that gives them."""
        chosen, inputs = tuple(dict.fromkeys(names)), {spec.name for spec in model.inputs}
        outputs = [name for name in chosen if name not in inputs] or model.outputs
        return TensorWork(model.with_graph(outputs=outputs), chosen, samples)

    def start(self, place: Place) -> Tensors:
        """A session."""
        return Tensors(self, place.session(self.model))


@dataclass(frozen=True)
class Tensors:
    """What runs the work."""

    work: TensorWork
    session: Session

    def batches(self, chunks: Sequence[Indices], *, finite_only: bool = True) -> Iterator[tuple[Batch, Values]]:
        """The tensors of each batch, all of them finite unless that does not matter.

        Raises:
            ModelError: one is not.
        """
        for batch in self.work.samples.of_chunks(chunks):
            values = {**self.session.run(batch.feeds), **batch.feeds}
            wanted = {name: values[name] for name in self.work.names}
            yield batch, finite(wanted) if finite_only else wanted


def _each(
    work: TensorWork, task: Task[Tensors, Indices, _P], indices: Indices, size: int, engine: Engine
) -> Iterator[tuple[int, _P]]:
    """How many samples each batch has, and what the task makes of it."""
    chunks = work.samples.chunks(indices, size)
    with engine.crew(work, chunks) as crew:
        yield from zip(map(len, chunks), crew.each(task), strict=True)


@dataclass(frozen=True)
class _Histograms:
    leaves: ClassVar[bool] = False

    def on(self, held: Tensors) -> Callable[[Sequence[Indices]], Iterator[dict[str, Histogram]]]:
        """A histogram of every tensor."""

        def run(chunks: Sequence[Indices]) -> Iterator[dict[str, Histogram]]:
            for _, values in held.batches(chunks):
                yield {name: Histogram.empty().add(value) for name, value in values.items()}

        return run


@dataclass(frozen=True)
class _Ranges:
    channel_axes: Mapping[str, int]
    leaves: ClassVar[bool] = False

    def on(self, held: Tensors) -> Callable[[Sequence[Indices]], Iterator[dict[str, Array]]]:
        """The largest magnitude of every channel."""

        def run(chunks: Sequence[Indices]) -> Iterator[dict[str, Array]]:
            for _, values in held.batches(chunks):
                yield {name: self._largest(value, self.channel_axes[name]) for name, value in values.items()}

        return run

    @staticmethod
    def _largest(value: Array, axis: int) -> Array:
        channels = np.moveaxis(value, axis, 0)
        return np.asarray(np.abs(channels.reshape(len(channels), -1)).max(axis=1))


@dataclass(frozen=True)
class _Sizes:
    batch_axes: Mapping[str, int]
    leaves: ClassVar[bool] = False

    def on(self, held: Tensors) -> Callable[[Sequence[Indices]], Iterator[dict[str, Array]]]:
        """Mean square and largest magnitude of every sample, [2, samples]."""

        def run(chunks: Sequence[Indices]) -> Iterator[dict[str, Array]]:
            for batch, values in held.batches(chunks):
                fed = len(next(iter(batch.feeds.values())))
                found = {}
                for name, value in values.items():
                    by_sample = _by_sample(value, self.batch_axes[name], fed)
                    if by_sample is not None:
                        real = by_sample[: batch.count].astype(np.float64)
                        found[name] = np.stack([np.square(real).mean(axis=1), np.abs(real).max(axis=1)])
                yield found

        return run


@dataclass(frozen=True)
class _Spreads:
    batch_axes: Mapping[str, int]
    leaves: ClassVar[bool] = False

    def on(self, held: Tensors) -> Callable[[Sequence[Indices]], Iterator[dict[str, Spread]]]:
        """How every tensor varies."""

        def run(chunks: Sequence[Indices]) -> Iterator[dict[str, Spread]]:
            for batch, values in held.batches(chunks, finite_only=False):
                spreads = {name: Spread() for name in values}
                for name, value in values.items():
                    spreads[name].add(np.moveaxis(value, self.batch_axes[name], 0)[: batch.count])
                yield spreads

        return run


def _by_sample(value: Array, axis: int, count: int) -> Array | None:
    """[..., count or a multiple of it at the axis, ...] -> [count, values]; None if the tensor has no such axis."""
    known = np.issubdtype(value.dtype, np.floating) and value.size and axis < value.ndim
    if not known or value.shape[axis] % count:
        return None
    return np.moveaxis(value, axis, 0).reshape(count, -1)


def finite(values: dict[str, Array]) -> dict[str, Array]:
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
