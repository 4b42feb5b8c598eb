"""The same batches again and again, read anew only where they do not fit in memory or nobody needs their inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from onnx_cbq.calibration.samples import Batch, Indices, Samples

# Samples that are run again and again stay in memory up to this size, and are read again beyond it.
HELD_BYTES = 128 << 20

# The number of a batch, and its samples.
Numbered = tuple[int, Indices]


@dataclass(frozen=True)
class Reader:
    """Batches by number.

    Attributes:
        keeps: whether they stay in memory once they are read.
    """

    samples: Samples
    keeps: bool
    _read: dict[int, Batch] = field(default_factory=dict, repr=False)

    @staticmethod
    def of(samples: Samples, indices: Indices) -> Reader:
        """One that keeps the inputs of all these samples, if they fit `HELD_BYTES`."""
        one = sum(value.nbytes for value in samples.read(indices[:1]).values()) if len(indices) else 0
        return Reader(samples, keeps=0 < one * len(indices) <= HELD_BYTES)

    def batches(self, shards: Sequence[Numbered], *, inputs: bool = True) -> Iterator[Batch]:
        """The batches of some shards; without `inputs` their labels are enough."""
        missing = [chunk for number, chunk in shards if number not in self._read]
        found = self.samples.of_chunks(missing) if inputs else self.samples.without_inputs(missing)
        for number, _ in shards:
            batch = self._read.get(number) or next(found)
            if self.keeps and inputs:
                self._read[number] = batch
            yield batch
