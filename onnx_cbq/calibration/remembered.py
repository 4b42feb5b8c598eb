"""Samples that are decoded once, for whoever goes through them many times."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnx_cbq.calibration.sources import Source
from onnx_cbq.model import Array

# All samples together, in memory.
_MOST_BYTES = 512 << 20


class Remembered(Source):
    """Some samples of another source, kept as they were read if all of them take no more than `most` bytes.

    Others are read as before. Not for several threads at a time. Cost: a copy of each sample, where the source would
    decode it again.
    """

    def __init__(self, source: Source, indices: Array, most: int = _MOST_BYTES) -> None:
        self._source, self._most = source, most
        self.label, self.labels, self.class_names = source.label, source.labels, source.class_names
        self.inputs, self.skipped = source.inputs, source.skipped
        chosen = np.unique(indices)
        self._place = np.full(len(source.labels), -1, np.int64)
        self._place[chosen] = np.arange(len(chosen))
        self._known = {name: np.zeros(len(chosen), np.bool_) for name in source.inputs}
        self._values: dict[str, Array] = {}

    @property
    def what(self) -> str:
        """As the source calls them."""
        return self._source.what

    @property
    def of_images(self) -> bool:
        """As the source has them."""
        return self._source.of_images

    @property
    def rate(self) -> int | None:
        """As the source has it."""
        return self._source.rate

    def describe(self, index: int) -> str:
        """As the source does."""
        return self._source.describe(index)

    def read(self, name: str, indices: Sequence[int]) -> Array:
        """Samples `indices` of array `name`."""
        asked = np.asarray(indices, np.int64)
        places, known = self._place[asked], self._known.get(name)
        if known is None or (places < 0).any():
            return self._source.read(name, indices)
        missing = np.unique(asked[~known[places]])
        if missing.size and not self._keep(name, self._place[missing], self._source.read(name, missing.tolist())):
            del self._known[name]
            self._values.pop(name, None)
            return self._source.read(name, indices)
        return np.asarray(self._values[name][places])

    def _keep(self, name: str, places: Array, found: Array) -> bool:
        """Keep some samples; whether all fit into memory, and to those that are there."""
        known = self._known[name]
        if name not in self._values:
            if found[:1].nbytes * len(known) > self._most:
                return False
            self._values[name] = np.empty((len(known), *found.shape[1:]), found.dtype)
        values = self._values[name]
        if (values.shape[1:], values.dtype) != (found.shape[1:], found.dtype):
            return False
        values[places], known[places] = found, True
        return True
