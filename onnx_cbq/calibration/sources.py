"""Where raw samples come from. A source knows all labels, and reads the samples it is asked for.

Nothing is kept in memory: rows of an `.npz` are read from the file, images are decoded when their turn comes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np

from onnx_cbq.errors import CalibrationError
from onnx_cbq.model import Array


class Source(ABC):
    """Raw labelled samples.

    Attributes:
        label: what messages call it.
        labels: class of every sample, [n].
        class_names: names in the order of the labels, if the source knows them.
        inputs: names of the arrays of a sample.
        skipped: how many unreadable samples were left out.
    """

    label: str
    labels: Array
    class_names: tuple[str, ...] | None = None
    inputs: tuple[str, ...]
    skipped: int = 0

    @abstractmethod
    def read(self, name: str, indices: Sequence[int]) -> Array:
        """Samples `indices` of array `name`, [len(indices), ...]."""

    def describe(self, index: int) -> str:
        """What messages call a sample."""
        return f"sample {index}"

    def decoded_to(self, channels: int) -> Source:
        """The same samples, with images decoded to so many channels (1 grey, 3 RGB); arrays stay as they are."""
        del channels
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


def checked_labels(labels: Array, shapes: Mapping[str, tuple[int, ...]], source: str) -> Array:
    """`labels` as int64 [n], held against the shapes of all arrays.

    Raises:
        CalibrationError: they are no whole numbers, one per sample.
    """
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise CalibrationError(
            f"{source}: labels 'y' must be whole numbers, one per sample; got {labels.dtype} of shape {labels.shape}"
        )
    for name, shape in shapes.items():
        if shape[:1] != labels.shape:
            raise CalibrationError(
                f"{source}: {name!r} has {shape[0] if shape else 'no'} samples but 'y' has {len(labels)} labels; "
                f"expected one label per sample"
            )
    return labels.astype(np.int64)
