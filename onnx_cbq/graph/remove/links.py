"""How the channels of a node's inputs and those of its outputs hang together.

Every tensor has one axis of channels. A channel is *fixed* if it does not depend on the samples. It is *kept* if it
cannot be cut out, with a reason. A link says two things about its node: which channels of the output are fixed, given
those of the inputs; and which channels must be kept because others are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from onnx_cbq.graph.shapes import Shape
from onnx_cbq.model import Array
from onnx_cbq.records import Layer, Use

Fixed = dict[str, Array]  # tensor -> bool [channels]


class Kept:
    """Which channels of each tensor are kept, and why: the first reason that was found counts."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self._numbers = {name: np.zeros(size, np.int32) for name, size in sizes.items()}
        self._reasons = [""]
        self.changed = False

    def __getitem__(self, tensor: str) -> Array:
        """The number of the reason to keep each channel, 0 for none, int32 [channels]."""
        return self._numbers[tensor]

    def reason(self, tensor: str, channel: int) -> str:
        """Why a channel is kept; empty if it is not."""
        return self._reasons[int(self._numbers[tensor][channel])]

    def merge(self, tensor: str, numbers: Array) -> None:
        """Keep the channels whose number is not 0."""
        old = self._numbers[tensor]
        if (numbers[old == 0] != 0).any():
            self._numbers[tensor] = np.where(old == 0, numbers, old)
            self.changed = True

    def add(self, tensor: str, channels: Array | np.bool, reason: str) -> None:
        """Keep `channels`, bool [channels] or one for all."""
        if np.any(channels):
            if reason not in self._reasons:
                self._reasons.append(reason)
            numbers = np.where(channels, self._reasons.index(reason), 0).astype(np.int32)
            self.merge(tensor, np.broadcast_to(numbers, self._numbers[tensor].shape))


class Link(Protocol):
    """One node's channels."""

    def fix(self, fixed: Fixed) -> None:
        """Say which channels of the outputs are fixed; those of the inputs are known."""

    def keep(self, kept: Kept, fixed: Fixed) -> None:
        """Keep what must be kept because of what is kept already."""


@dataclass(frozen=True)
class Opaque:
    """An operator that needs all its channels, as far as we know."""

    title: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    reason: str = "cannot do without it"

    def fix(self, fixed: Fixed) -> None:
        """Nothing is."""

    def keep(self, kept: Kept, fixed: Fixed) -> None:
        """Everything."""
        for name in (*self.inputs, *self.outputs):
            kept.add(name, np.True_, f"{self.title} {self.reason}")


@dataclass(frozen=True)
class Widened(Opaque):
    """A Pad that puts channels of zeros in front of the `count` channels of its input, and behind them."""

    before: int = 0
    count: int = 0


@dataclass(frozen=True)
class Same:
    """Channel c of the output is computed from channel c of each input."""

    title: str
    inputs: Sequence[str]
    output: str

    def fix(self, fixed: Fixed) -> None:
        """What is fixed in all inputs."""
        fixed[self.output] = np.logical_and.reduce([fixed[name] for name in self.inputs])

    def keep(self, kept: Kept, fixed: Fixed) -> None:
        """What any of them keeps."""
        tensors = (self.output, *self.inputs)
        some = np.logical_or.reduce([kept[name] > 0 for name in tensors])
        for name in self.inputs:
            lost = fixed[name] & ~fixed[self.output]
            kept.add(name, some & lost, f"{self.title} joins it with a channel that is not constant")
        for _ in range(2):  # there and back
            for name in self.inputs:
                kept.merge(self.output, kept[name])
                kept.merge(name, kept[self.output])


@dataclass(frozen=True)
class Flattened:
    """Axes of `shape`, one of which has the channels, become one axis; the batch in front of them is not counted."""

    input: str
    output: str
    shape: Shape
    axis: int

    def spread(self, channels: Array) -> Array:
        """Values per channel -> per column of the output."""
        sizes = [-1 if axis == self.axis else 1 for axis in range(len(self.shape))]
        return np.broadcast_to(channels.reshape(sizes), self.shape).reshape(-1)

    def fix(self, fixed: Fixed) -> None:
        """The columns of fixed channels."""
        fixed[self.output] = self.spread(fixed[self.input])

    def keep(self, kept: Kept, fixed: Fixed) -> None:
        """A channel with all its columns."""
        columns = np.moveaxis(kept[self.output].reshape(self.shape), self.axis, 0)
        kept.merge(self.input, columns.reshape(len(columns), -1).max(axis=1))
        kept.merge(self.output, self.spread(kept[self.input]))


@dataclass(frozen=True)
class Joined:
    """The channels of the inputs one after the other."""

    inputs: Sequence[str]
    output: str

    def fix(self, fixed: Fixed) -> None:
        """What is fixed in its input."""
        fixed[self.output] = np.concatenate([fixed[name] for name in self.inputs])

    def keep(self, kept: Kept, fixed: Fixed) -> None:
        """A channel in its input and in the output alike."""
        kept.merge(self.output, np.concatenate([kept[name] for name in self.inputs]))
        ends = np.cumsum([len(kept[name]) for name in self.inputs])[:-1]
        for name, part in zip(self.inputs, np.split(kept[self.output], ends), strict=True):
            kept.merge(name, part)


@dataclass(frozen=True)
class Product:
    """One use of a layer's weight: its input channels can be cut out where it can take up what they add.

    Attributes:
        reads: whether a channel has a weight other than 0 for an input of its group, bool [g, O/g, I/g].
        values: what a fixed input is, nan where it is not the same at all positions, [I].
        takes: whether the bias can take up a constant, which then is the same at every output position: "all" of them,
            only one that is 0 because of "zero padding" or because there is "no bias", or "none".
    """

    title: str
    layer: Layer
    use: Use
    reads: Array
    values: Array
    takes: str

    def fix(self, fixed: Fixed) -> None:
        """Channels that read nothing but fixed inputs."""
        inputs = fixed[self.use.activation].reshape(len(self.reads), 1, -1)
        fixed[self.use.output] = ~(self.reads & ~inputs).any(axis=2).reshape(-1)

    def keep(self, kept: Kept, fixed: Fixed) -> None:
        """Inputs that are read and that the bias cannot take up; a group as a whole; the uses of a weight alike."""
        source, output = self.use.activation, self.use.output
        for use in self.layer.uses:
            for one, other in ((output, use.output), (source, use.activation)):
                kept.merge(one, kept[other])
                kept.merge(other, kept[one])
        if len(self.reads) > 1:
            self._keep_groups(kept)
            return
        needed = self.reads[0][kept[output] > 0].any(axis=0) & ~self.foldable(fixed)
        known = fixed[source]
        kept.add(source, needed & ~known, f"{self.title} needs its value")
        differs = needed & np.isnan(self.values)
        kept.add(source, differs, f"{self.title} reads it with other numbers at the borders, where zeros were padded")
        kept.add(source, needed, self._refusal)

    def foldable(self, fixed: Fixed) -> Array:
        """The inputs that the bias can take up, bool [I]."""
        known = fixed[self.use.activation] & ~np.isnan(self.values)
        return known & ((self.values == 0) if self.takes != "all" else np.True_) & (self.takes != "none")

    @cached_property
    def _refusal(self) -> str:
        reasons = {
            "zero padding": "pads it with zeros, and it is not 0",
            "no bias": "has no bias to take it up",
            "none": "spreads it unevenly",
        }
        return f"{self.title} {reasons.get(self.takes, '')}"

    def _keep_groups(self, kept: Kept) -> None:
        source, output, groups = self.use.activation, self.use.output, len(self.reads)
        ends = [kept[name].reshape(groups, -1) for name in (output, source)]
        first = np.where(ends[0].max(axis=1) > 0, ends[0].max(axis=1), ends[1].max(axis=1))
        if self.reads[0].size > 1:
            whole = (first > 0)[:, None]
            kept.add(output, (whole & (ends[0] == 0)).reshape(-1), f"{self.title} keeps its group")
            kept.add(source, (whole & (ends[1] == 0)).reshape(-1), f"{self.title} keeps its group")
        else:
            kept.merge(output, first)
            kept.merge(source, first)
