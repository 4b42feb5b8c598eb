"""Quantize weights without any samples (Nayak et al., arXiv 1910.04877); activations stay float."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from onnx import ModelProto

from onnx_cbq.evidence.workload import ModelSource, kept_notes, size_of, taken
from onnx_cbq.graph.layers import find_layers
from onnx_cbq.graph.load import load
from onnx_cbq.graph.normalise import KEEPING_PASSES, PASSES, normalise
from onnx_cbq.graph.placement import NO_ACTIVATIONS
from onnx_cbq.graph.shapes import Example
from onnx_cbq.model import Array, Model
from onnx_cbq.model.mapped import release
from onnx_cbq.quantize.grid import Channels
from onnx_cbq.quantize.schemes import (
    LEAST_BITS,
    GridStatistics,
    grid_statistics,
    quantize_scheme,
    statistics_of,
)
from onnx_cbq.records import Affine, Layer, Layers, LayerWeights, Plan
from onnx_cbq.records.figures import to_json_text
from onnx_cbq.search.rate_distortion import allocate
from onnx_cbq.settings import CHOOSE, FIRST, MOST_BITS, changed_options, check, check_kinds, either, option
from onnx_cbq.storage import STORAGES, Int8, find_storage
from onnx_cbq.storage.files import write_model
from onnx_cbq.storage.metadata import with_metadata
from onnx_cbq.storage.qdq import emit_qdq
from onnx_cbq.system.progress import Clock
from onnx_cbq.system.temporary import temporary_folder
from onnx_cbq.verification.kernels import check_kernels
from onnx_cbq.verification.verify import check_equal, check_file


@dataclass(frozen=True)
class DataFreeConfig:
    """How weights are quantized without samples.

    Attributes:
        bits: average bits per weight, 2 to 8; where it is no whole number, widths follow the weights' distortion.
        scheme: how weights are quantized.
        per_tensor: one scale for a whole layer, instead of one per channel.
        storage, keep_quantized: as in `QuantizeConfig`.
    """

    SCHEMES: ClassVar[tuple[str, ...]] = ("mse", "symmetric", "asymmetric", "power-of-two", "log")

    bits: float = option(8.0, FIRST, "B")
    scheme: str = option(SCHEMES[0], CHOOSE, "|".join(SCHEMES))
    per_tensor: bool = option(default=False, panel=CHOOSE, shown="one per channel")
    storage: str = option("int8", FIRST)
    keep_quantized: bool = option(default=False, panel=CHOOSE, shown="quantized again")

    def __post_init__(self) -> None:
        check_kinds(self)
        coded = find_storage(self.storage).coded
        plain = tuple(kind.name for kind in STORAGES if not kind.coded)
        check(not coded, "--storage", f"{either(plain)} with --data-free", self.storage)
        check(self.scheme in self.SCHEMES, "--scheme", either(self.SCHEMES), self.scheme)
        check(2 <= self.bits <= MOST_BITS, "--bits", f"2 to {MOST_BITS} with --data-free", self.bits)


@dataclass(frozen=True)
class DataFreeResult:
    """A model whose weights were quantized without samples.

    Attributes:
        model: the quantized model.
        plan: bits of every channel.
        statistics: layer name -> how its grids fit.
        float_bytes, bytes: of the two files.
        notes: what a user should know.
    """

    model: Model
    plan: Plan
    layers: Layers
    statistics: Mapping[str, GridStatistics]
    float_bytes: int
    bytes: int
    seconds: Mapping[str, float]
    notes: tuple[str, ...]
    versions: Mapping[str, str]
    config: DataFreeConfig

    @property
    def average_bits(self) -> float:
        """Average bits per weight over all layers."""
        return self.plan.average_bits(self.layers)

    @property
    def proto(self) -> ModelProto:
        """The quantized model as one protobuf message."""
        return self.model.to_proto()

    def save(self, path: str | Path) -> int:
        """Write the model whole or not at all; returns its bytes.

        Raises:
            OutputError: it cannot be written.
        """
        return write_model(self.model, Path(path))

    def to_json(self) -> str:
        """Everything but the model."""
        content: dict[str, Any] = {
            "average_bits": self.average_bits,
            "bits": {name: bits.tolist() for name, bits in self.plan.bits.items()},
            "layers": {name: asdict(found) for name, found in self.statistics.items()},
            "float": {"bytes": self.float_bytes},
            "quantized": {"bytes": self.bytes},
            "left_float": [asdict(entry) for entry in self.layers.left_float],
            "notes": list(self.notes),
            "seconds": dict(self.seconds),
            "versions": dict(self.versions),
            "settings": {"data-free": True, **changed_options(self.config), "bits": self.config.bits},
        }
        return to_json_text("quantize --data-free", content)


def quantize_data_free(
    model: ModelSource, config: DataFreeConfig | None = None, versions: Mapping[str, str] | None = None
) -> DataFreeResult:
    """Quantize the weights of a model by nothing but the weights.

    Raises:
        OnnxCbqError: the model cannot be used, or the result failed its check.
    """
    config, versions = config or DataFreeConfig(), versions or {}
    clock = Clock()
    with clock.stage("load"):
        source, grids = taken(load(model), keep_quantized=config.keep_quantized)
        example = Example.made_up(source)
        normalised = normalise(source, example, KEEPING_PASSES if config.keep_quantized else PASSES)
        layers = find_layers(normalised.model, example.shapes(normalised.model))
        notes = (*grids, *kept_notes(layers), *normalised.notes)
    with clock.stage("search"):
        plan = _plan(normalised.model, layers, config)
    with clock.stage("rounding"):
        weights, statistics = {}, {}
        for layer in layers:
            # One at a time, so that no more than the codes of all others is held.
            rows, bits = _rows(layer, normalised.model, config), plan.bits[layer.name]
            found = _quantize(rows, bits, config)
            statistics[layer.name] = statistics_of((rows[i], q, int(bits[i][0])) for i, q in found)
            weights[layer.name] = _weights(layer, found, bits)
            release(normalised.model.weight(layer.weight))
    with clock.stage("emit"):
        storage = find_storage(config.storage)()
        output = emit_qdq(normalised.model, layers, weights, NO_ACTIVATIONS, {}, storage.codes())
        output = storage.finish(output)
        output = with_metadata(output, layers, plan, (f"data-free {config.scheme}", versions.get("onnx-cbq", "")))
    with clock.stage("verify"), temporary_folder() as folder:
        path = folder / "quantized.onnx"
        size = write_model(output, path)
        check_file(path, normalised.model, layers, weights, example.feeds)
        check_kernels(path, example.feeds)
        if storage != Int8():
            plain = emit_qdq(normalised.model, layers, weights, NO_ACTIVATIONS, {})
            check_equal(path, plain, example.feeds)
    return DataFreeResult(
        output, plan, layers, statistics, size_of(model), size, clock.seconds, notes, versions, config
    )


def layer_statistics(model: ModelSource, bits: int, *, per_tensor: bool) -> dict[str, dict[str, GridStatistics]]:
    """Layer name -> scheme -> how its grid at `bits` bits fits the weights.

    Raises:
        OnnxCbqError: the model cannot be read, or has no layer that can be quantized.
    """
    source = load(model)
    example = Example.made_up(source)
    normalised = normalise(source, example).model
    layers = find_layers(normalised, example.shapes(normalised))
    found: dict[str, dict[str, GridStatistics]] = {}
    for layer in layers:
        found[layer.name] = {}
        for scheme in DataFreeConfig.SCHEMES:
            config = DataFreeConfig(bits, scheme, per_tensor)
            rows = _rows(layer, normalised, config)
            found[layer.name][scheme] = grid_statistics(rows, quantize_scheme(rows, bits, scheme), bits)
    return found


def _plan(model: Model, layers: Layers, config: DataFreeConfig) -> Plan:
    """The same width everywhere, or, at a fractional average, widths by the relative distortion of the weights."""
    if float(config.bits).is_integer():
        return Plan({layer.name: np.full(layer.channels, int(config.bits), np.int8) for layer in layers})
    losses, sizes = [], []
    for layer in layers:
        rows = _rows(layer, model, config)
        power = float(np.square(rows, dtype=np.float64).sum()) or 1.0
        loss = np.full((len(rows), MOST_BITS + 1), np.inf)
        for bits in range(LEAST_BITS, MOST_BITS + 1):
            difference = quantize_scheme(rows, bits, config.scheme).values - rows
            loss[:, bits] = np.square(difference, dtype=np.float64).sum(axis=1) / power
        losses.append(loss)
        sizes.append(np.full(len(rows), rows.shape[1], float))
    every = np.concatenate(losses)
    found = allocate(every, np.concatenate(sizes), config.bits, np.isfinite(every))
    parts = np.split(found, np.cumsum([len(loss) for loss in losses])[:-1])
    # A layer that is one row has one width for all its channels.
    return Plan(
        {layer.name: np.broadcast_to(part, (layer.channels,)).copy() for layer, part in zip(layers, parts, strict=True)}
    )


def _rows(layer: Layer, model: Model, config: DataFreeConfig) -> Array:
    rows = layer.rows(model.weight(layer.weight))
    return rows.reshape(1, -1) if config.per_tensor else rows


def _quantize(rows: Array, bits: Array, config: DataFreeConfig) -> list[tuple[Array | slice, Channels]]:
    """(rows chosen, quantized) for each width in use."""
    widths = bits[: len(rows)]
    if (widths == widths[0]).all():
        return [(slice(None), quantize_scheme(rows, int(widths[0]), config.scheme))]
    chosen = [np.flatnonzero(widths == width) for width in np.unique(widths)]
    return [(index, quantize_scheme(rows[index], int(widths[index[0]]), config.scheme)) for index in chosen]


def _weights(layer: Layer, found: list[tuple[Array | slice, Channels]], bits: Array) -> LayerWeights:
    """The quantized rows as the weights of a layer."""
    rows = sum(len(quantized.codes) for _, quantized in found)
    codes = np.empty((rows, layer.size // rows), found[0][1].codes.dtype)
    scale, zero, grid = np.empty(rows, np.float32), np.zeros(rows, np.int8), found[0][1].grid
    for index, quantized in found:
        codes[index], scale[index] = quantized.codes, quantized.scale
        zero[index] = quantized.grid.zero if isinstance(quantized.grid, Affine) else 0
    whole = layer.unrows(codes.reshape(layer.channels, -1))
    spread = [np.broadcast_to(part, (layer.channels,)).copy() for part in (scale, zero)]
    return LayerWeights(whole, spread[0], bits, Affine(spread[1]) if isinstance(grid, Affine) else grid)
