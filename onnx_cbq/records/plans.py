"""Plans, the integers that they make of weights, and what is written of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from onnx_cbq.model import Array, Model
from onnx_cbq.records.grids import UNIFORM, WeightGrid
from onnx_cbq.records.layers import Layer, Layers


@dataclass(frozen=True)
class ActivationGrid:
    """How an activation is quantized: value = (code - zero_point) * scale.

    Codes are 0 .. 2^bits - 1, uint8, or where they are `signed` -2^(bits-1) .. 2^(bits-1) - 1, int8.
    """

    scale: float
    zero_point: int
    bits: int = 8
    signed: bool = False

    @property
    def bottom(self) -> int:
        """The lowest code."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def top(self) -> int:
        """The highest code."""
        return self.bottom + (1 << self.bits) - 1

    @property
    def ends(self) -> tuple[float, float]:
        """The lowest and the highest value."""
        return (self.bottom - self.zero_point) * self.scale, (self.top - self.zero_point) * self.scale

    @property
    def stored_zero(self) -> Array:
        """The zero point in the type of the codes."""
        return np.array(self.zero_point, np.int8 if self.signed else np.uint8)


@dataclass(frozen=True)
class Plan:
    """The bit width of every channel: layer name -> int8 [channels]."""

    bits: Mapping[str, Array]

    def average_bits(self, layers: Layers) -> float:
        """sum(bits x weights) / sum(weights) over all layers, first and last included."""
        total = sum(int(self.bits[layer.name].sum(dtype=np.int64)) * layer.weights_per_channel for layer in layers)
        return total / layers.size


@dataclass(frozen=True)
class Seen:
    """A model whose tensors are what layers see once those in front are quantized.

    Attributes:
        model: gives the tensors.
        names: tensor of the float model -> the one that stands for it, where it has another name.
    """

    model: Model
    names: Mapping[str, str]

    def name(self, tensor: str) -> str:
        """What stands for a tensor of the float model."""
        return self.names.get(tensor, tensor)


@dataclass(frozen=True)
class LayerWeights:
    """The integer weights of one layer, in the weight's own shape.

    Attributes:
        codes: int8, weight_shape; uint8 where they are positions in a table.
        scale: float32 [channels].
        bits: int8 [channels].
        grid: what the codes stand for.
    """

    codes: Array
    scale: Array
    bits: Array
    grid: WeightGrid = UNIFORM

    def values(self, layer: Layer) -> Array:
        """The weight that they stand for, float32, weight_shape."""
        return layer.unrows(self.grid.levels(layer.rows(self.codes)) * self.scale[:, None])

    def bias_scale(self, activation_scale: float) -> Array:
        """The scale s_x s_w of the int32 bias, float32 [channels]."""
        return np.asarray(self.scale * np.float32(activation_scale), np.float32)


@dataclass(frozen=True)
class Written:
    """What is written: a graph with float weights, its layers, and the integers that stand for their weights."""

    model: Model
    layers: Layers
    weights: Mapping[str, LayerWeights]


@dataclass(frozen=True)
class KeptZero:
    """Channels of 0 bits that stay in a layer as zeros, and why."""

    layer: str
    channels: int
    reason: str


@dataclass(frozen=True)
class Removal:
    """Channels that were cut out of the layers.

    Attributes:
        removed: layer name -> which of its channels; layers that lost none are left out.
        kept_zero: channels of 0 bits that are still there.
        macs: multiplications of all layers for one sample, before and after.
        notes: what a user should know.
    """

    removed: Mapping[str, tuple[int, ...]]
    kept_zero: tuple[KeptZero, ...]
    macs: tuple[int, int]
    notes: tuple[str, ...] = ()
