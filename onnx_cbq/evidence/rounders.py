"""How the plans that are measured are rounded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np

from onnx_cbq.model import Array, Model
from onnx_cbq.quantize.grid import Channels, quantize_rows
from onnx_cbq.quantize.table import Table
from onnx_cbq.records import Layer, Layers, Plan


class Rounder(Protocol):
    """How measured plans are rounded."""

    def rows(self, layer: Layer, bits: Array) -> Array:
        """The layer's weights at these widths, float32 [channels, weights per channel]."""

    def shift(self, layer: Layer, use: int, bits: Array) -> Array | None:
        """What the bias of a use takes up, [channels]; None for nothing."""


class NearestRounder:
    """Rounding to nearest. A layer is rounded to a width once and kept: a byte per weight and width."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._rounded: dict[tuple[str, int], Channels] = {}

    def rows(self, layer: Layer, bits: Array) -> Array:
        """The nearest levels."""
        rows = np.empty((layer.channels, layer.weights_per_channel), np.float32)
        for width in np.unique(bits):
            chosen = bits == width
            rows[chosen] = self._all(layer, int(width)).values[chosen]
        return rows

    def shift(self, layer: Layer, use: int, bits: Array) -> None:
        """Biases stay."""

    def _all(self, layer: Layer, width: int) -> Channels:
        if (layer.name, width) not in self._rounded:
            rows = layer.rows(self._model.weight(layer.weight))
            self._rounded[layer.name, width] = quantize_rows(
                rows, np.full(len(rows), width, np.int8), layer.rules, layer.lanes
            )
        return self._rounded[layer.name, width]


class TableRounder:
    """Rounding looked up in tables: layer name -> table."""

    def __init__(self, tables: Mapping[str, Table]) -> None:
        self._tables = tables

    def rows(self, layer: Layer, bits: Array) -> Array:
        """The compensated levels."""
        return self._tables[layer.name].rows(bits)

    def shift(self, layer: Layer, use: int, bits: Array) -> Array | None:
        """The mean of what rounding adds."""
        return self._tables[layer.name].shift(use, bits)


class RoundedConstants:
    """Weights and biases of a model as a plan rounds them; a layer whose widths stay is not rounded again."""

    def __init__(self, model: Model, layers: Layers, rounder: Rounder) -> None:
        self._model, self._layers, self._rounder = model, layers, rounder
        self._values: dict[str, tuple[bytes, dict[str, Array]]] = {}

    def of(self, plan: Plan, layers: Iterable[Layer] | None = None) -> dict[str, Array]:
        """The constants of the layers, of all if none are named."""
        constants: dict[str, Array] = {}
        for layer in self._layers if layers is None else layers:
            constants |= self._constants(layer, plan.bits[layer.name])
        return constants

    def _constants(self, layer: Layer, bits: Array) -> dict[str, Array]:
        key = bits.tobytes()
        known = self._values.get(layer.name)
        if known is None or known[0] != key:
            constants = {layer.weight: layer.unrows(self._rounder.rows(layer, bits))}
            for i, use in enumerate(layer.uses):
                shift = self._rounder.shift(layer, i, bits) if use.bias else None
                if shift is not None:
                    bias = self._model.weight(str(use.bias))
                    constants[str(use.bias)] = (bias + shift).astype(np.float32)
            self._values[layer.name] = (key, constants)
        return self._values[layer.name][1]
