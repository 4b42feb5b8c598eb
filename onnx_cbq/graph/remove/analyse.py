"""Which channels can be cut out of a graph so that its outputs stay what they are.

At first every channel can; then each link keeps what others need, until nothing changes (the largest set for which
every reader of a channel either takes it up in its bias, has no weight for it, or is cut at the same place).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_cbq.graph.remove.build import Channels, find_channels
from onnx_cbq.graph.remove.links import Fixed, Kept
from onnx_cbq.graph.shapes import Shapes
from onnx_cbq.model import Array
from onnx_cbq.records import Layer, Written


@dataclass(frozen=True)
class Found:
    """What can be cut.

    Attributes:
        channels: of every tensor.
        kept: which of them stay, and why.
    """

    channels: Channels
    kept: Kept

    def stays(self, tensor: str) -> Array:
        """Which channels of a tensor stay, bool [channels]."""
        return np.asarray(self.kept[tensor] > 0)

    def stays_of(self, layer: Layer) -> Array:
        """Which channels of a layer stay, bool [channels]."""
        if layer.kind != "product":
            return np.ones(layer.channels, np.bool_)
        stays = self.stays(layer.uses[0].output)
        return stays if len(stays) == layer.channels else np.ones(layer.channels, np.bool_)

    def reason_of(self, layer: Layer, channel: int) -> str:
        """Why a channel of a layer stays."""
        if layer.kind != "product":
            return "rows of recurrent weights and tables stay, as zeros"
        tensor = layer.uses[0].output
        followed = len(self.kept[tensor]) == layer.channels
        return self.kept.reason(tensor, channel) if followed else "its channels are not followed along their axis"


def analyse(
    written: Written,
    shapes: Shapes,
    values: Mapping[str, Array],
    blocks: Sequence[int] = (),
) -> Found:
    """Find the channels that can be cut; every layer keeps at least one.

    `values` are those of `find_channels`. Of the `blocks`, the first that divides the channels of a Conv divides those
    that stay as well.
    """
    model, layers, weights = written.model, written.layers, written.weights
    channels = find_channels(model, layers, weights, shapes, values)
    fixed: Fixed = {name: np.zeros(size, np.bool_) for name, size in channels.sizes.items()}
    for link in channels.links:
        link.fix(fixed)
    kept = Kept(channels.sizes)
    for name in (*model.outputs, *(spec.name for spec in model.inputs)):
        kept.add(name, np.True_, "it is an input or output of the model")
    _settle(channels, kept, fixed)
    for layer in layers.products:
        for use in layer.uses:
            if not kept[use.output].any():
                kept.add(use.output, np.arange(channels.sizes[use.output]) == 0, "all channels of the layer would go")
                _settle(channels, kept, fixed)
    whole = {
        use.output: next((block for block in blocks if layer.channels % block == 0), 1)
        for layer in layers
        if layer.operator == "Conv"
        for use in layer.uses
    }
    while odd := [name for name, block in whole.items() if (kept[name] > 0).sum() % block]:
        name, block = odd[0], whole[odd[0]]
        gone = np.flatnonzero(kept[name] == 0)
        some = np.isin(np.arange(channels.sizes[name]), gone[: (len(gone) % block)])
        kept.add(name, some, f"channels of a Conv go {block} at a time, since kernels are slow at other numbers")
        _settle(channels, kept, fixed)
    return Found(channels, kept)


def _settle(channels: Channels, kept: Kept, fixed: Fixed) -> None:
    kept.changed = True
    while kept.changed:
        kept.changed = False
        for link in reversed(channels.links):
            link.keep(kept, fixed)
