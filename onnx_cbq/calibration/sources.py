"""Where raw samples come from. A source knows all labels, and reads the samples it is asked for.

Nothing is kept in memory: rows of an `.npz` are read from the file, images are decoded when their turn comes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

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

    def decoded_to(self, channels: int) -> Source:
        """The same samples, with images decoded to so many channels (1 grey, 3 RGB); arrays stay as they are."""
        del channels
        return self


class ArraySource(Source):
    """Samples that are in memory already."""

    def __init__(self, arrays: Mapping[str, Array], labels: Array, class_names: tuple[str, ...] | None) -> None:
        self.label = "the samples"
        self.labels = labels
        self.class_names = class_names
        self.inputs = tuple(arrays)
        self._arrays = arrays

    def read(self, name: str, indices: Sequence[int]) -> Array:
        """Samples `indices` of array `name`."""
        return self._arrays[name][list(indices)]
