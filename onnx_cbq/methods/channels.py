"""The channels that a search may choose for, when some layers keep their width."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence

import numpy as np

from onnx_cbq.errors import ConfigError
from onnx_cbq.model import Array
from onnx_cbq.records import Layer, Layers, Plan


def kept_layers(layers: Layers, keep: Sequence[tuple[str, int]]) -> dict[str, int]:
    """Layer name -> the width that it keeps; of several patterns that match, the last counts.

    Raises:
        ConfigError: a pattern matches no layer.
    """
    kept: dict[str, int] = {}
    for pattern, width in keep:
        names = fnmatch.filter([layer.name for layer in layers], pattern)
        if not names:
            known = ", ".join(layer.name for layer in layers.layers[:8]) + (", ..." if len(layers) > 8 else "")
            raise ConfigError(f"--keep {pattern}={width}: no layer has such a name; the layers are: {known}")
        kept |= dict.fromkeys(names, width)
    return kept


def constant_widths(layer: Layer, bits: int) -> Array:
    """The same width for all channels of a layer."""
    return np.full(layer.channels, bits, np.int8)


class FreeChannels:
    """The channels that a search may choose for, laid end to end, when some layers keep their width.

    What a search chooses for is a unit: a channel, or all channels of a layer that the target gives one scale.
    """

    def __init__(self, layers: Layers, kept: Mapping[str, int], budget: float) -> None:
        self._layers, self._kept = layers, kept
        self.layers = [layer for layer in layers if layer.name not in kept]
        held = sum(layers.by_name[name].size * width for name, width in kept.items())
        self.size = sum(layer.size for layer in self.layers)
        self.budget = (budget * layers.size - held) / max(self.size, 1)
        channels = np.array([layer.channels for layer in self.layers], np.int64)
        units = np.where([layer.rules.per_tensor for layer in self.layers], 1, channels)
        self.sizes = np.repeat([layer.size for layer in self.layers] / np.maximum(units, 1), units)
        self.layer_of = np.repeat(np.arange(len(self.layers)), units)
        self._unit_of = np.repeat(np.arange(len(self.sizes)), np.repeat(channels // units, units))

    def plan(self, bits: Array) -> Plan:
        """The plan with these bits for the units."""
        return Plan(self.by_layer(bits.astype(np.int8)))

    def sums(self, values: Array) -> Array:
        """Values of the free channels, [channels, ...] -> their sums by unit, [units, ...]."""
        if len(values) == len(self.sizes):
            return values
        found = np.zeros((len(self.sizes), *values.shape[1:]))
        np.add.at(found, self._unit_of, values)
        return found

    def largest(self, values: Array) -> Array:
        """Values of the free channels, at least 0, [channels] -> the largest of each unit, [units]."""
        found = np.zeros(len(self.sizes))
        np.maximum.at(found, self._unit_of, values)
        return found

    def by_layer(self, values: Array) -> dict[str, Array]:
        """Values of the units by layer and channel, and the widths of the layers that keep theirs."""
        parts = np.split(values[self._unit_of], np.cumsum([layer.channels for layer in self.layers])[:-1])
        found = {layer.name: part for layer, part in zip(self.layers, parts, strict=True)}
        return {
            layer.name: found[layer.name]
            if layer.name in found
            else constant_widths(layer, self._kept[layer.name]).astype(values.dtype)
            for layer in self._layers
        }

    def require_budget(self, keep: Sequence[tuple[str, int]], bits: float) -> None:
        """Make sure that something is left for the free channels.

        Raises:
            ConfigError: nothing is.
        """
        if not self.layers or self.budget < 0:
            patterns = ", ".join(f"{pattern}={width}" for pattern, width in keep)
            raise ConfigError(
                f"--bits {bits:g} cannot be met: the layers of --keep {patterns} alone take it up; keep fewer layers"
            )
