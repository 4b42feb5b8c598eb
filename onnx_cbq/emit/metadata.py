"""The plan travels in the file that it made: one `metadata_props` entry, JSON, a digit per channel."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, helper

from onnx_cbq.errors import ModelError
from onnx_cbq.model import Array, Model
from onnx_cbq.records import Layers, Plan

KEY = "onnx_cbq"
PRODUCER = "onnx-cbq"
HIGHEST_IR = 10


@dataclass(frozen=True)
class StoredLayer:
    """One layer's part of a stored plan."""

    operator: str
    shape: tuple[int, ...]
    bits: Array  # int8 [channels]


@dataclass(frozen=True)
class StoredPlan:
    """What a file that onnx-cbq made says about itself."""

    version: str
    method: str
    average_bits: float
    layers: Mapping[str, StoredLayer]


def with_metadata(
    model: Model, layers: Layers, plan: Plan, method: str, version: str, written: Layers | None = None
) -> Model:
    """`model` with the plan and without what the exporter left: documentation, metadata, producer.

    The plan is that of all channels of `layers`, those that were removed among them; the shapes are those of the
    layers as they are `written`.
    """
    skeleton = ModelProto()
    skeleton.CopyFrom(model.skeleton)
    skeleton.producer_name, skeleton.producer_version = PRODUCER, version
    skeleton.ir_version = max(
        min(skeleton.ir_version, HIGHEST_IR), helper.find_min_ir_version_for(skeleton.opset_import)
    )
    del skeleton.metadata_props[:]
    for entry in (*skeleton.graph.node, *skeleton.graph.input, *skeleton.graph.output, *skeleton.graph.initializer):
        entry.ClearField("doc_string")
        entry.ClearField("metadata_props")
    stored = {
        "version": version,
        "method": method,
        "average_bits": plan.average_bits(layers),
        "layers": {
            layer.name: [layer.operator, list(layer.weight_shape), "".join(map(str, plan.bits[layer.name].tolist()))]
            for layer in written or layers
        },
    }
    skeleton.metadata_props.add(key=KEY, value=json.dumps(stored, separators=(",", ":")))
    return Model(skeleton, model.weights)


def read_metadata(model: Model) -> StoredPlan | None:
    """The plan stored in a model, or None if onnx-cbq did not make it.

    Raises:
        ModelError: there is an entry, but it is damaged.
    """
    text = next((entry.value for entry in model.skeleton.metadata_props if entry.key == KEY), None)
    if text is None:
        return None
    try:
        stored = json.loads(text)
        layers = {
            name: StoredLayer(operator, tuple(shape), np.array([int(digit) for digit in digits], np.int8))
            for name, (operator, shape, digits) in stored["layers"].items()
        }
        return StoredPlan(stored["version"], stored["method"], float(stored["average_bits"]), layers)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"the plan in the model's metadata is damaged ({error}); quantize the float model again"
        ) from error
