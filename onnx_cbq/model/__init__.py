"""A model as every stage sees it: a skeleton of protobuf, its weights beside it as read-only arrays."""

from onnx_cbq.model.model import (
    INLINE_BYTES,
    STANDARD,
    Array,
    InputSpec,
    Model,
    attributes,
    can_stand_outside,
    is_weight,
    opset_version,
    read_only,
    stub,
)
from onnx_cbq.model.names import FreshNames, is_generated_name

__all__ = [
    "INLINE_BYTES",
    "STANDARD",
    "Array",
    "FreshNames",
    "InputSpec",
    "Model",
    "attributes",
    "can_stand_outside",
    "is_generated_name",
    "is_weight",
    "opset_version",
    "read_only",
    "stub",
]
