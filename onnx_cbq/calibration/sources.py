"""Where raw samples come from. A source knows all labels, and reads the samples it is asked for.

Nothing is kept in memory: rows of an `.npz` are read from the file, images are decoded when their turn comes. Who goes
through the same ones many times may have them `remembered`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from onnx_cbq.calibration.card import Card
from onnx_cbq.calibration.places import Place
from onnx_cbq.errors import CalibrationError
from onnx_cbq.model import Array, InputSpec


class Source(ABC):
    """Raw labelled samples.

    Attributes:
        label: what messages call it.
        labels: of every sample, numbers or names of classes, [n, ...].
        class_names: names in the order of the labels, if the source knows them.
        inputs: names of the arrays of a sample.
        skipped: how many unreadable samples were left out; `what` they are called in messages.
    """

    label: str
    labels: Array
    class_names: tuple[str, ...] | None = None
    inputs: tuple[str, ...]
    skipped: int = 0

    @property
    def what(self) -> str:
        """What samples are called in messages."""
        return "samples"

    @property
    def of_images(self) -> bool:
        """Whether a sample is an image, [height, width, channels]."""
        return False

    @property
    def rate(self) -> int | None:
        """Of sounds decoded from files, numbers a second that the first one has; else None."""
        return None

    @abstractmethod
    def read(self, name: str, indices: Sequence[int]) -> Array:
        """Samples `indices` of array `name`, [len(indices), ...]."""

    def describe(self, index: int) -> str:
        """What messages call a sample."""
        return f"sample {index}"

    def framed(self, card: Card) -> Source:
        """The same samples, with files brought to the size that another card says; arrays stay as they are."""
        del card
        return self

    def fitted_to(self, inputs: Sequence[InputSpec]) -> Source:
        """The same samples, decoded to what the inputs of a model want; arrays stay as they are."""
        del inputs
        return self

    def remembered(self, indices: Array) -> Source:
        """The same samples; of `indices` none is decoded twice, if memory allows. Arrays stay as they are."""
        del indices
        return self


class PlacedSource(Source):
    """Raw labelled samples of files that a card names.

    Attributes:
        endings: what the names of the files end with, in small letters; a folder's ends with a slash.
        several: whether several files make one set.
        card: the one that named them, once it is open.
    """

    endings: ClassVar[tuple[str, ...]]
    several: ClassVar[bool] = False
    card: Card | None = None

    @classmethod
    def reads(cls, place: Place, card: Card) -> Iterator[Place]:
        """Every file that is read for what lies at `place`: nobody may write there meanwhile."""
        del card
        yield place

    @abstractmethod
    def __init__(self, places: Sequence[Place], card: Card, *, skip_unreadable: bool) -> None:
        """Find out all labels, and where samples are.

        Raises:
            CalibrationError: something is missing, damaged or a trap.
        """

    def chosen(self) -> Any:
        """What became of it since it was opened, for `resumed` of the same source, opened in another process."""
        return None

    def resumed(self, chosen: Any) -> Source:
        """The same as the one whose `chosen` that is."""
        del chosen
        return self


class ArraySource(Source):
    """Samples that are in memory already."""

    def __init__(self, arrays: Mapping[str, Array], labels: Array, class_names: tuple[str, ...] | None) -> None:
        self.label = "the samples"
        self.labels = checked_labels(labels, {name: values.shape for name, values in arrays.items()}, self.label)
        self.class_names = class_names
        self.inputs = tuple(arrays)
        self._arrays = arrays

    def read(self, name: str, indices: Sequence[int]) -> Array:
        """Samples `indices` of array `name`."""
        return self._arrays[name][list(indices)]


_LARGEST_LABEL = 2.0**53


def checked_labels(labels: Array, shapes: Mapping[str, tuple[int, ...]], source: str) -> Array:
    """`labels` [n, ...] as int64, or as strings, held against the shapes of all arrays.

    Raises:
        CalibrationError: they are neither whole numbers nor names, or not one entry per sample.
    """
    whole = labels.dtype.kind in "iub" or (labels.dtype.kind == "f" and bool((labels == np.rint(labels)).all()))
    whole = whole and not bool((np.abs(labels.astype(np.float64)) > _LARGEST_LABEL).any())
    if not labels.ndim or not (whole or labels.dtype.kind in "US"):
        raise CalibrationError(
            f"{source}: labels 'y' must be whole numbers or names, one per sample; got {labels.dtype} of shape "
            f"{labels.shape}"
        )
    for name, shape in shapes.items():
        if shape[:1] != labels.shape[:1]:
            raise CalibrationError(
                f"{source}: {name!r} has {shape[0] if shape else 'no'} samples but 'y' has {len(labels)} labels; "
                f"expected one label per sample"
            )
    if labels.dtype.kind == "S":
        return np.char.decode(labels, "utf-8", "replace")
    return labels if labels.dtype.kind == "U" else labels.astype(np.int64)
