"""The plan travels in the file that it made: one `metadata_props` entry beside those of the user, JSON.

A channel is a digit, its bits; one that was cut out of the file is a letter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, helper

from onnx_cbq.errors import ModelError
from onnx_cbq.model import Array, Model
from onnx_cbq.records import Layers, Plan
from onnx_cbq.system.allowance import advice, allowed

KEY = "onnx_cbq"
PRODUCER = "onnx-cbq"
HIGHEST_IR = 10
# Entries of exporters' own: torch writes its whole program into them, which can be larger than the weights.
_EXPORTERS = "pkg."
# A byte for each channel; parsed it may take a hundred times as much.
_LARGEST_PLAN = 8 << 20
_KEPT, _REMOVED = "012345678", "abcdefghi"


@dataclass(frozen=True)
class StoredLayer:
    """One layer's part of a stored plan."""

    operator: str
    shape: tuple[int, ...]  # of the weight in the file
    bits: Array  # int8 [channels]
    removed: Array  # bool [channels]: those that are not in the file

    @property
    def written_bits(self) -> Array:
        """The bits of the channels in the file."""
        return np.asarray(self.bits[~self.removed])


@dataclass(frozen=True)
class StoredPlan:
    """What a file that onnx-cbq made says about itself."""

    version: str
    method: str
    average_bits: float
    layers: Mapping[str, StoredLayer]


def with_metadata(
    model: Model,
    layers: Layers,
    plan: Plan,
    made_by: tuple[str, str],
    written: Layers | None = None,
    removed: Mapping[str, Sequence[int]] | None = None,
) -> Model:
    """`model` with the plan, and without what the exporter left: at nodes and tensors, and under keys of its own.

    Other entries stay: programs read class names, strides and licences from them.
    The plan is that of all channels of `layers`, those that were `removed` (layer -> which) among them; the shapes are
    those of the layers as they are `written`. `made_by` are method and version.
    """
    method, version = made_by
    skeleton = ModelProto()
    skeleton.CopyFrom(model.skeleton)
    skeleton.producer_name, skeleton.producer_version = PRODUCER, version
    lowest = helper.find_min_ir_version_for(skeleton.opset_import, ignore_unknown=True)
    skeleton.ir_version = max(min(skeleton.ir_version, HIGHEST_IR), lowest)
    others = [e for e in skeleton.metadata_props if e.key != KEY and not e.key.startswith(_EXPORTERS)]
    del skeleton.metadata_props[:]
    skeleton.metadata_props.extend(others)
    for entry in (*skeleton.graph.node, *skeleton.graph.input, *skeleton.graph.output, *skeleton.graph.initializer):
        entry.ClearField("doc_string")
        entry.ClearField("metadata_props")
    gone = removed or {}
    stored = {
        "version": version,
        "method": method,
        "average_bits": plan.average_bits(layers),
        "layers": {
            layer.name: [
                layer.operator,
                list(layer.weight_shape),
                _digits(plan.bits[layer.name], gone.get(layer.name, ())),
            ]
            for layer in written or layers
        },
    }
    skeleton.metadata_props.add(key=KEY, value=json.dumps(stored, separators=(",", ":")))
    return Model(skeleton, model.weights)


def _digits(bits: Array, removed: Sequence[int]) -> str:
    """A digit per channel, a letter for one that was removed."""
    gone = np.zeros(len(bits), bool)
    gone[list(removed)] = True
    return "".join((_REMOVED if out else _KEPT)[width] for width, out in zip(bits.tolist(), gone, strict=True))


def _read_digits(digits: str) -> tuple[Array, Array]:
    """Bits, int8 [channels], and which channels were removed, bool [channels]."""
    bits = [(_KEPT + _REMOVED).index(digit) % len(_KEPT) for digit in digits]
    return np.array(bits, np.int8), np.array([digit in _REMOVED for digit in digits], bool)


def read_metadata(model: Model) -> StoredPlan | None:
    """The plan stored in a model, or None if onnx-cbq did not make it.

    Raises:
        ModelError: there is an entry, but it is damaged.
    """
    text = next((entry.value for entry in model.skeleton.metadata_props if entry.key == KEY), None)
    return None if text is None else parse_plan(text)


def parse_plan(text: str | bytes) -> StoredPlan:
    """The plan as `with_metadata` writes it.

    Raises:
        ModelError: it is damaged.
    """
    if len(text) > allowed(_LARGEST_PLAN):
        raise ModelError(
            f"the plan in the model's metadata has {len(text)} bytes, expected at most {allowed(_LARGEST_PLAN)}; "
            f"{advice(len(text), allowed(_LARGEST_PLAN))}"
        )
    try:
        stored = json.loads(text)
        layers = {
            name: StoredLayer(operator, tuple(shape), *_read_digits(digits))
            for name, (operator, shape, digits) in stored["layers"].items()
        }
        return StoredPlan(stored["version"], stored["method"], float(stored["average_bits"]), layers)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"the plan in the model's metadata is damaged ({error}); quantize the float model again"
        ) from error
