"""Labelled samples for one model: drawn evenly from the classes, prepared as the card says, streamed in batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onnx_cbq.calibration.card import Card, load_card
from onnx_cbq.calibration.files import reason
from onnx_cbq.calibration.labels import Labels, are_in_another_order, read_labels, reordered
from onnx_cbq.calibration.opening import open_source
from onnx_cbq.calibration.prepare import Preparation, fit
from onnx_cbq.calibration.sources import ArraySource, Source
from onnx_cbq.errors import CalibrationError
from onnx_cbq.model import Array, InputSpec
from onnx_cbq.records.answers import Kind
from onnx_cbq.system.ahead import ahead

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Inputs ready to feed. `count` samples are real; the rest pads the batch to the size that the model insists on.

    `labels` are all that is known of the real ones, as `records.answers.Kind` takes it.
    """

    feeds: Mapping[str, Array]
    labels: Array
    count: int


@dataclass(frozen=True)
class CalibrationSet:
    """Labelled samples and how to prepare them, not yet fitted to a model.

    `relabelled`, if given, stands for the source's labels.
    """

    source: Source
    card: Card
    relabelled: Array | None = None

    @staticmethod
    def from_card(
        path: str | Path, source: str | Path | None = None, *, skip_unreadable: bool = False
    ) -> CalibrationSet:
        """The samples of a card (`source` replaces the card's own).

        Raises:
            CalibrationError: the card or its source is wrong.
        """
        return CalibrationSet.of_card(load_card(Path(path), source), skip_unreadable=skip_unreadable)

    @staticmethod
    def of_card(card: Card, *, skip_unreadable: bool = False) -> CalibrationSet:
        """The samples of a card that is in memory.

        Raises:
            CalibrationError: its source is wrong.
        """
        return _checked(CalibrationSet(open_source(card, skip_unreadable=skip_unreadable), card))

    @staticmethod
    def from_arrays(
        x: npt.ArrayLike | Mapping[str, npt.ArrayLike], y: npt.ArrayLike, class_names: Sequence[str] | None = None
    ) -> CalibrationSet:
        """Samples in memory, exactly as the model takes them: `x` [n, ...] (or one array per input) and labels `y` [n].

        Raises:
            CalibrationError: lengths differ, or labels are no whole numbers.
        """
        given = x if isinstance(x, Mapping) else {"x": x}
        try:
            arrays, labels = {name: np.asarray(values) for name, values in given.items()}, np.asarray(y)
        except ValueError as error:  # samples of different lengths
            raise CalibrationError(f"the samples: not one shape for all ({reason(error)}); pad or cut them") from None
        names = None if class_names is None else tuple(map(_text, class_names))
        return _checked(CalibrationSet(ArraySource(arrays, labels, names), Card(Path())))

    @property
    def labels(self) -> Array:
        """The labels as the source has them, [n, ...]."""
        return self.source.labels if self.relabelled is None else self.relabelled

    @property
    def are_images(self) -> bool:
        """Whether samples are decoded from files of images."""
        return self.source.of_images

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The card's class names, else the source's."""
        return self.card.classes or self.source.class_names

    def with_card(self, card: Card) -> CalibrationSet:
        """The same samples, prepared as another card says."""
        return replace(self, source=self.source.framed(card), card=card)

    def for_model(self, inputs: Sequence[InputSpec]) -> Samples:
        """The samples, fitted to a model's inputs.

        Raises:
            CalibrationError: an input is missing, or the samples do not have its shape.
        """
        names = _match_inputs(self.source, inputs)
        fixed = next((spec.shape[0] for spec in inputs if spec.shape), None)
        source = self.source.fitted_to(inputs)
        preparations = {
            spec.name: fit(
                self.card, spec, source.read(names[spec.name], [0])[0], source.label, from_images=self.are_images
            )
            for spec in inputs
        }
        return Samples(replace(self, source=source), names, preparations, fixed)


@dataclass(frozen=True)
class Samples:
    """Samples in the form that one model takes.

    Attributes:
        set_aside: samples that are not drawn; models are evaluated on them all the same.
    """

    data: CalibrationSet
    names: Mapping[str, str]
    preparations: Mapping[str, Preparation]
    fixed_batch: int | None
    set_aside: frozenset[int] = frozenset()
    known: Labels | None = None

    @property
    def labels(self) -> Indices:
        """The class that each sample is drawn by, [n]; its only one, or one of them (see `Labels`)."""
        return self.data.labels if self.known is None else self.known.drawn_by

    @property
    def truth(self) -> Array:
        """All that is known of each sample, [n, ...], as `records.answers.Kind` takes it."""
        return self.data.labels if self.known is None else self.known.truth

    @property
    def label_shape(self) -> tuple[int, ...]:
        """Shape of the labels of one sample, () for a single one."""
        return tuple(self.data.labels.shape[1:])

    def weights(self, labels: Array, class_weights: Array) -> Array:
        """What samples with these labels count, [samples], by the weights of the classes."""
        return class_weights[labels] if self.known is None else self.known.kind.sample_weights(labels, class_weights)

    def with_labels(self, labels: Array) -> Samples:
        """The same samples with other labels."""
        return replace(self, data=replace(self.data, relabelled=labels))

    def labelled(self, kind: Kind, keys: Sequence[str | int] = ()) -> Samples:
        """The samples with labels for such answers; `keys` are what the model itself calls its classes.

        Raises:
            CalibrationError: a label is no class of the model.
        """
        names, labels, label = self.data.class_names, self.data.labels, self.data.source.label
        own = tuple(str(key) for key in keys)
        if names is None:
            own = own or (tuple(np.unique(labels).tolist()) if labels.dtype.kind == "U" else ())
        elif are_in_another_order(names, keys):
            # The model's order is that of its scores; folders, for one, are sorted.
            labels = reordered(labels, names, own, kind)
            names = None
        if names is None and own:
            data = replace(self.data, card=replace(self.data.card, classes=own), relabelled=labels)
            keys = own if self.data.class_names is not None else keys
        else:
            data = self.data
        return replace(self, data=data, known=read_labels(labels, kind, names or (), keys, label))

    def remembered(self, indices: Indices) -> Samples:
        """The same samples; of `indices` none is decoded twice, if memory allows."""
        return replace(self, data=replace(self.data, source=self.data.source.remembered(indices)))

    @property
    def image_axes(self) -> dict[str, int]:
        """The axis of the channels of every input that is an image [samples, ...]."""
        parts = self.preparations.items()
        return {name: part.channel_axis + 1 for name, part in parts if part.channel_axis is not None}

    def check_images(self, augment: Sequence[str]) -> None:
        """Refuse changes of images if there are none.

        Raises:
            CalibrationError: no input is an image.
        """
        if augment and not self.image_axes:
            shapes = ", ".join(f"{name!r} {part.shape}" for name, part in self.preparations.items())
            raise CalibrationError(
                f"{self.data.source.label}: --augment {augment[0]} is for images, samples are {shapes}; leave it out"
            )

    def check_labels(self, classes: int) -> tuple[str, ...]:
        """Hold the labels against the model's number of classes; returns a name for every class, all different.

        Raises:
            CalibrationError: a label is outside 0 .. classes - 1, or there are more or fewer names than classes.
        """
        source, labels = self.data.source.label, self.labels
        outside = np.flatnonzero((labels < 0) | (labels >= classes))
        if outside.size:
            raise CalibrationError(
                f"{source}: label {labels[outside[0]]} of sample {outside[0]} is outside 0..{classes - 1}; "
                f"the model has {classes} classes"
            )
        names = self.data.class_names or tuple(str(m) for m in range(classes))
        if len(names) != classes:
            raise CalibrationError(
                f"{source}: {len(names)} class names, but the model has {classes} classes; list the names of all, in "
                f"the order of the labels, under classes in the card"
            )
        return _distinct(names)

    def empty_classes(self, names: Sequence[str]) -> Indices:
        """The classes without a single sample."""
        counts = np.bincount(self.labels, minlength=len(names)) if self.known is None else self.known.counts
        return np.flatnonzero(counts == 0)

    def read(self, indices: Sequence[int] | Indices) -> dict[str, Array]:
        """Prepared inputs of some samples: input name -> [len(indices), ...].

        Raises:
            CalibrationError: a sample cannot be read, or holds NaN or infinity.
        """
        return self.prepare(self.raw(indices), indices)

    def raw(self, indices: Sequence[int] | Indices) -> dict[str, Array]:
        """Some samples as the source has them, images decoded: input name -> [len(indices), ...]."""
        return {name: self.data.source.read(array, list(indices)) for name, array in self.names.items()}

    def prepare(self, raw: Mapping[str, Array], indices: Sequence[int] | Indices) -> dict[str, Array]:
        """What `raw` gave, prepared.

        Raises:
            CalibrationError: a sample does not fit, or holds NaN or infinity.
        """
        label = self.data.source.label
        return {name: step.apply(raw[name], indices, label) for name, step in self.preparations.items()}

    def raw_batches(self, indices: Indices, size: int) -> Iterator[tuple[Indices, dict[str, Array]]]:
        """The samples `indices` as the source has them, `size` at a time; the next are read while the last are used.

        Where the model insists on a batch, the last one is filled up with samples that came before.
        """
        step = self.fixed_batch or size
        chunks = [indices[start : start + step] for start in range(0, len(indices), step)]
        filled = [chunk if self.fixed_batch is None else np.resize(chunk, step) for chunk in chunks]
        raw = ahead(self.raw, filled)
        return zip(chunks, raw, strict=True)

    def batches(self, indices: Indices, size: int) -> Iterator[Batch]:
        """The samples `indices` in order, `size` at a time; the next batch is read while the last one is used."""
        return self.of_chunks(self.chunks(indices, size))

    def chunks(self, indices: Indices, size: int) -> list[Indices]:
        """The samples of each batch."""
        step = self.fixed_batch or size
        return [indices[start : start + step] for start in range(0, len(indices), step)]

    def of_chunks(self, chunks: Iterable[Indices]) -> Iterator[Batch]:
        """The batches of some chunks; the next batch is read while the last one is used."""
        return ahead(self._batch, chunks)

    def without_inputs(self, chunks: Iterable[Indices]) -> Iterator[Batch]:
        """The labels of the batches of some chunks; nothing is read."""
        return (Batch({}, self.truth[chunk], len(chunk)) for chunk in chunks)

    def _batch(self, chunk: Indices) -> Batch:
        padded = chunk if self.fixed_batch is None else np.resize(chunk, self.fixed_batch)
        return Batch(self.read(padded), self.truth[chunk], len(chunk))


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """The names, those that several classes have with the label behind them: ImageNet has two cranes."""
    counts = Counter(names)
    return tuple(f"{name} (label {m})" if counts[name] > 1 else name for m, name in enumerate(names))


def _checked(data: CalibrationSet) -> CalibrationSet:
    if not len(data.labels):
        skipped = f" besides {data.source.skipped} unreadable {data.source.what}" if data.source.skipped else ""
        raise CalibrationError(f"{data.source.label}: no samples{skipped}; expected at least one of every class")
    return data


def _match_inputs(source: Source, inputs: Sequence[InputSpec]) -> dict[str, str]:
    """Model input -> array of the source: by name, or the only one for the only one."""
    if len(inputs) == 1 and len(source.inputs) == 1:
        return {inputs[0].name: source.inputs[0]}
    names = {spec.name: spec.name for spec in inputs}
    if len(inputs) == 1 and inputs[0].name not in source.inputs and "x" in source.inputs:
        return {inputs[0].name: "x"}
    missing = [name for name in names if name not in source.inputs]
    if missing:
        raise CalibrationError(
            f"{source.label}: no array for model input {missing[0]!r}; it holds {', '.join(source.inputs)}, "
            f"the model wants {', '.join(names)}"
        )
    return names


def _text(name: object) -> str:
    """A class name as text: it may be bytes, or a number."""
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
