"""Weights that take shared values, which are trained while each weight stays with its own.

The gradient of a value is the sum, or the average, of those of the weights that take it (Choi et al., ICLR 2017, arXiv
1612.01543, section 3.3); to Adam, which divides each parameter's gradient by its usual size, the two are the same.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from onnx_cbq.model import Array
from onnx_cbq.quantize.codebook import LARGEST, make_codebook
from onnx_cbq.quantize.shared import as_channels
from onnx_cbq.quantize.weights import as_weights
from onnx_cbq.records import Layer, LayerWeights, Shared
from onnx_cbq.records.ranks import index_bits


class Values(nn.Module):
    """The values of a codebook, as they are written: whole numbers -127 .. 127 times one scale.

    Args:
        levels: the values to start from, float32 [k], rising.
        device: where they live.
        largest: what a number of the codebook may be.
    """

    def __init__(self, levels: Array, device: torch.device, largest: int = LARGEST) -> None:
        super().__init__()
        self.largest = largest
        self.values = nn.Parameter(torch.tensor(levels, dtype=torch.float32, device=device))

    def forward(self) -> Tensor:
        """The values as they are written, float32 [k]; the gradient passes as it is."""
        scale = self.scale
        return self.values + ((self.values / scale).round() * scale - self.values).detach()

    @property
    def scale(self) -> Tensor:
        """What the values are multiples of; no gradients flow from it."""
        largest = self.values.detach().abs().max()
        return torch.where(largest > 0, largest / self.largest, 1.0)

    @property
    def spacing(self) -> float:
        """The mean distance of neighbouring values."""
        values = self.values.detach()
        return float((values.max() - values.min()) / max(len(values) - 1, 1)) or 1.0


class SharedWeight(nn.Module):
    """A layer's weight by the values that its weights take.

    Args:
        layer: whose weight it is.
        start: codes, scales and table to start from.
        values: of that table; layers may share them.
        device: where the tensors live.
    """

    positions: Tensor

    def __init__(self, layer: Layer, start: LayerWeights, values: Values, device: torch.device) -> None:
        super().__init__()
        assert isinstance(start.grid, Shared)
        table = start.grid.table
        self._layer, self.values = layer, values
        # Words of varying length: a channel's bits are then those that its own codes need.
        self._priced = bool((start.bits[start.bits > 0] != index_bits(len(table))).any())
        self.register_buffer("positions", torch.tensor(np.searchsorted(table, start.codes), device=device))

    def forward(self) -> Tensor:
        """The weight, float32 weight_shape."""
        found: Tensor = self.values()[self.positions]
        return found

    @torch.no_grad()
    def integers(self) -> LayerWeights:
        """Codes, scales and table as they are now; values that have met are one."""
        values = self.values.values.cpu().numpy()
        book = make_codebook(values, None, self.values.largest)
        codes = np.clip(np.rint(values / np.float32(book.scale)), -book.largest, book.largest).astype(np.int8)
        rows = self._layer.rows(codes[self.positions.cpu().numpy()])
        found = as_channels(rows, book, priced=self._priced)
        return as_weights(self._layer, found)

    @property
    def weights(self) -> tuple[nn.Parameter, float]:
        """What makes the weights, and the distance that learning rates are relative to."""
        return self.values.values, self.values.spacing

    @property
    def others(self) -> tuple[nn.Parameter, ...]:
        """What else is learned: nothing."""
        return ()

    @property
    def scale(self) -> Tensor:
        """The scale of each channel, float32 [channels]; no gradients flow from it."""
        return self.values.scale.expand(self._layer.channels)
