"""What a model consists of: layers, their channels, and where they are used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from onnx_cbq.model import Array
from onnx_cbq.records.kinds import Kind, kind_of
from onnx_cbq.records.lanes import Lanes, lanes
from onnx_cbq.records.rules import FREE, WeightRules


@dataclass(frozen=True)
class Windows:
    """Windows over `inputs` positions that make `outputs` positions, each field with one entry per spatial axis.

    Output position o covers the input positions o stride + k dilation - before, k = 0 .. kernel - 1.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]

    @property
    def reach(self) -> tuple[int, ...]:
        """Extent of a dilated kernel less one: (kernel - 1) dilation."""
        return tuple((k - 1) * d for k, d in zip(self.kernel, self.dilations, strict=True))

    @property
    def after(self) -> tuple[int, ...]:
        """Padding behind the input so that the last window just fits; negative where inputs are left over."""
        sizes = zip(self.inputs, self.outputs, self.strides, self.reach, self.before, strict=True)
        return tuple((o - 1) * s + r + 1 - n - p for n, o, s, r, p in sizes)


@dataclass(frozen=True)
class Lookup:
    """How a table is read: `entries` of it, of which `together` lie in one row of the weight, the last row filled up.

    Entry i, or i + entries where i is negative, lies in row i // together.
    """

    entries: int
    together: int


@dataclass(frozen=True)
class Use:
    """One node that uses a layer's weight.

    Of a recurrent node z are the sums of all gates before their activations, [steps, samples, directions x gates x
    hidden units], which only the graph of gradients has as a tensor. Of a table z are the entries looked up, whose
    numbers lie along the channel axis and those behind it.
    """

    output: str  # the tensor z that it computes; of a recurrent node the hidden states
    activation: str  # its other operand
    weight_index: int  # which of its inputs is the weight
    bias: str | None  # name of its constant bias
    channel_axis: int  # of z
    batch_axis: int  # of z
    output_shape: tuple[int, ...]  # of z, measured
    windows: Windows | None = None  # of a Conv or ConvTranspose
    lookup: Lookup | None = None  # of a table
    beside: str | None = None  # the other branch: what is added to z, perhaps behind a bias; nothing else reads z


@dataclass(frozen=True)
class Layer:
    """One quantizable weight and the nodes that use it."""

    name: str
    operator: str
    weight: str
    weight_shape: tuple[int, ...]
    weight_axis: int  # the axis of the weight along which the channels lie
    groups: int
    uses: tuple[Use, ...]
    samples: int  # batch size at which the output shapes were measured
    rules: WeightRules = FREE  # what the target demands of its integers
    positive: bool = False  # whether its outputs must stay above 0, as its weights are (see `graph.layers`)

    @property
    def kind(self) -> Kind:
        """How its operator uses the weight."""
        return kind_of(self.operator)

    @property
    def channels(self) -> int:
        """Number of channels: units that get a bit width of their own."""
        return self.weight_shape[self.weight_axis]

    @property
    def size(self) -> int:
        """Number of weights."""
        return int(np.prod(self.weight_shape))

    @property
    def weights_per_channel(self) -> int:
        """Number of weights of one channel."""
        return self.size // self.channels

    @property
    def lanes(self) -> Lanes | None:
        """Which weights of a row meet in 16-bit lanes; None where no codes can overflow there."""
        depthwise = self.operator == "Conv" and self.weight_shape[1] == 1 and self.groups == self.channels
        if not self.rules.top or depthwise:
            return None
        shape = (*self.weight_shape[: self.weight_axis], *self.weight_shape[self.weight_axis + 1 :])
        return lanes(shape, self.rules.top, positions_first=self.operator == "MatMul")

    @property
    def repeats(self) -> int:
        """Output channels per channel; above 1 only in a grouped ConvTranspose, whose groups share their scales."""
        use = self.uses[0]
        return use.output_shape[use.channel_axis] // self.channels if self.kind == "product" else 1

    @property
    def macs(self) -> int:
        """Multiplications with a weight for one sample, in all uses."""
        return sum(self.macs_of(use) for use in self.uses)

    def macs_of(self, use: Use) -> int:
        """Those of one use."""
        if self.kind == "table":
            return 0
        if self.kind == "recurrent":
            # [steps, samples, channels]: every weight is used once per step.
            return self.size * int(np.prod(use.output_shape[:2])) // self.samples
        if use.windows is not None:
            # Every weight is used once per window.
            return self.size * int(np.prod(use.windows.outputs))
        rank = len(self.weight_shape)
        inputs = self.weight_shape[rank - 2 if self.weight_axis == rank - 1 else rank - 1]
        return int(np.prod(use.output_shape)) * inputs // self.samples

    def rows(self, weight: Array) -> Array:
        """The weight as a matrix with one row per channel: weight_shape -> [channels, weights per channel]."""
        return np.moveaxis(weight, self.weight_axis, 0).reshape(self.channels, -1)

    def unrows(self, rows: Array) -> Array:
        """The inverse of `rows`: [channels, weights per channel] -> weight_shape."""
        shape = list(self.weight_shape)
        channels = shape.pop(self.weight_axis)
        return np.ascontiguousarray(np.moveaxis(rows.reshape(channels, *shape), 0, self.weight_axis))

    def per_channel(self, values: Array) -> Array:
        """Values per output channel -> [channels, repeats]."""
        return np.moveaxis(values.reshape(*values.shape[:-1], self.repeats, self.channels), -1, -2)


@dataclass(frozen=True)
class LeftFloat:
    """A node whose weights stay float, how many there are, and why."""

    name: str
    operator: str
    reason: str
    weights: int


@dataclass(frozen=True)
class KeptQuantized:
    """A layer that was quantized when it came and is written as it is, and how many weights it has."""

    name: str
    operator: str
    weights: int


@dataclass(frozen=True)
class Layers:
    """All layers of a model, what was left float, and what was quantized already and stays so."""

    layers: tuple[Layer, ...]
    left_float: tuple[LeftFloat, ...] = ()
    kept: tuple[KeptQuantized, ...] = ()

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    @cached_property
    def products(self) -> tuple[Layer, ...]:
        """The layers that multiply what they read, which may be integers; the others are quantized in their weights."""
        return tuple(layer for layer in self.layers if layer.kind == "product")

    @cached_property
    def by_name(self) -> Mapping[str, Layer]:
        """Layer name -> layer."""
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def size(self) -> int:
        """Number of weights in all layers."""
        return sum(layer.size for layer in self.layers)

    @cached_property
    def macs(self) -> int:
        """Multiplications of all layers for one sample."""
        return sum(layer.macs for layer in self.layers)
