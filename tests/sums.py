"""Moments of rows that are there already, for tests of what is made of moments."""

from __future__ import annotations

from onnx_cbq.quantize.moments import Moments
from onnx_cbq.quantize.row_sums import MomentSums, RowSums


class Sums(RowSums):
    """Counts rows as a worker does, and adds up what it found."""

    def __init__(self, *, centred: bool) -> None:
        super().__init__()
        self._total = MomentSums(centred=centred)

    def moments(self) -> Moments:
        """Of everything counted so far."""
        self._total.add(self.found())
        return self._total.moments()
