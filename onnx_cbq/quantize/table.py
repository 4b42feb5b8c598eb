"""Every width of every channel of a layer, rounded once: what a search looks up."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from onnx_cbq.model import Array
from onnx_cbq.quantize.fit import fit
from onnx_cbq.quantize.moments import Moments, mean_shift
from onnx_cbq.quantize.problem import make_problem
from onnx_cbq.quantize.settings import RoundingConfig
from onnx_cbq.records import Layer
from onnx_cbq.settings import MOST_BITS

WIDTHS = MOST_BITS + 1
# What is enough to compare widths by.
_ROUGH = {"refits": 1, "sweeps": 0, "candidates": 3}


@dataclass(frozen=True)
class Table:
    """One layer at every width 0 .. 8. Memory: 9 bytes per weight.

    Attributes:
        codes: int8 [widths, channels, n].
        scale: float32 [widths, channels].
        error: mean square of what rounding adds to the channel's output, float64 [widths, channels].
        power: mean square of the channel's output, less its mean, float64 [channels].
        shifts: for each use of the layer, what the bias takes up, float64 [widths, channels].
        shares: how often each row of a table is looked up, [channels]; None for other layers.
    """

    codes: Array
    scale: Array
    error: Array
    power: Array
    shifts: tuple[Array, ...]
    shares: Array | None = None

    def rows(self, bits: Array) -> Array:
        """Quantized weights, float32 [channels, n]."""
        channels = np.arange(len(bits))
        return np.asarray(self.codes[bits, channels] * self.scale[bits, channels][:, None])

    def shift(self, use: int, bits: Array) -> Array | None:
        """What the bias of a use takes up, [channels]; None if it is not known."""
        return np.asarray(self.shifts[use][bits, np.arange(len(bits))]) if self.shifts else None


def make_table(rows: Array, moments: Moments, config: RoundingConfig, layer: Layer | None = None) -> Table:
    """Round weights [channels, n] to every width, with as little search for scales as comparing widths needs.

    `layer` is whose they are; without it nothing is demanded of codes and scales.

    Cost: about 30 n multiplications per weight.
    """
    config = replace(config, **{name: min(getattr(config, name), most) for name, most in _ROUGH.items()})
    problem = make_problem(rows, moments, config, layer)
    fitted = [fit(problem, np.full(len(rows), width, np.int8), config) for width in range(WIDTHS)]
    shifts = [mean_shift(moments, rows, f.channels.values, layer) for f in fitted]
    return Table(
        codes=np.stack([f.channels.codes for f in fitted]),
        scale=np.stack([f.channels.scale for f in fitted]),
        error=np.stack([f.error for f in fitted]),
        power=fitted[0].error,
        shifts=tuple(np.stack(use) for use in zip(*shifts, strict=True)),
        shares=moments.shares,
    )
