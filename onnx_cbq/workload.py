"""A model and samples, loaded, fitted to each other and ready to be analysed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto

from onnx_cbq.calibration.samples import CalibrationSet, Samples
from onnx_cbq.graph.layers import find_layers
from onnx_cbq.graph.load import load
from onnx_cbq.graph.logits import Logits, find_logits
from onnx_cbq.graph.normalise import normalise
from onnx_cbq.graph.shapes import EXAMPLE_BATCH, Example, Shapes
from onnx_cbq.model import Model
from onnx_cbq.records import Layers

ModelSource = str | Path | ModelProto
DataSource = str | Path | CalibrationSet


@dataclass(frozen=True)
class Workload:
    """A model and samples, ready to be analysed.

    Attributes:
        source: the model as it came; `source_bytes` is its size.
        model: the normalised model, which every stage works on; `shapes` are those of its tensors.
        example: a few samples to measure shapes on.
    """

    source: Model
    source_bytes: int
    model: Model
    shapes: Shapes
    layers: Layers
    logits: Logits
    samples: Samples
    example: Example
    class_names: tuple[str, ...]
    notes: tuple[str, ...]


def prepare(model: ModelSource, data: DataSource, logits: str | None = None) -> Workload:
    """Load and normalise a model, fit the samples to it, find its layers and its class scores.

    Raises:
        OnnxCbqError: model or samples cannot be used.
    """
    source = load(model)
    samples = as_set(data).for_model(source.inputs)
    example = make_example(samples)
    normalised = normalise(source, example)
    shapes = example.shapes(normalised.model)
    layers = find_layers(normalised.model, shapes)
    found = find_logits(normalised.model, shapes, logits)
    names = samples.check_labels(found.classes, every_class=True)
    size, notes = size_of(model), (*normalised.notes, *left_out(samples))
    return Workload(source, size, normalised.model, shapes, layers, found, samples, example, names, notes)


def size_of(model: ModelSource) -> int:
    """Bytes of a model's file, with its external data."""
    if isinstance(model, ModelProto):
        return int(model.ByteSize())
    path = Path(model)
    graph = onnx.load(path, load_external_data=False).graph
    entries = (entry for tensor in graph.initializer for entry in tensor.external_data if entry.key == "location")
    files = [path, *(path.parent / name for name in {entry.value for entry in entries})]
    return sum(file.stat().st_size for file in files)


def as_set(data: DataSource) -> CalibrationSet:
    """The samples of a card, or the set itself.

    Raises:
        CalibrationError: the card or its source is wrong.
    """
    return data if isinstance(data, CalibrationSet) else CalibrationSet.from_card(data)


def make_example(samples: Samples) -> Example:
    """The first samples, as many as shapes are measured on."""
    count = samples.fixed_batch or EXAMPLE_BATCH
    return Example(samples.read(np.arange(count) % len(samples.labels)))


def left_out(samples: Samples) -> tuple[str, ...]:
    """A note about images that were skipped."""
    skipped = samples.data.source.skipped
    return (f"{skipped} unreadable images were left out",) if skipped else ()
