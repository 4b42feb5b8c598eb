"""State the attributes that operators of the standard which are functions of others leave at their default.

onnx's inliner and its checker put such a function in place of the node, and where an attribute is not given they find
no value for what refers to it: HardSigmoid, as torch writes it for 1/6, leaves `beta` out.
"""

from __future__ import annotations

from typing import Any

import onnx
from onnx import NodeProto, defs

from onnx_cbq.graph.shapes import Example
from onnx_cbq.graph.tensors import every_node
from onnx_cbq.model import STANDARD, Model


def state_defaults(model: Model, example: Example) -> Model:
    """Every attribute that has a default in the operator's schema is written out, in branches too."""
    if not any(_missing(node, model.opset) for node in every_node(model.plain_skeleton().graph.node)):
        return model
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(model.plain_skeleton())
    for node in every_node(skeleton.graph.node):
        node.attribute.extend(_missing(node, model.opset))
    return Model.from_skeleton(skeleton, model.weights)


def is_function(operator: str, opset: int) -> bool:
    """Whether the standard defines the operator by others; False for one that it does not have."""
    try:
        schema: Any = defs.get_schema(operator, opset, "")
    except defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)


def _missing(node: NodeProto, opset: int) -> list[onnx.AttributeProto]:
    if node.domain not in STANDARD or not is_function(node.op_type, opset):
        return []
    given = {attribute.name for attribute in node.attribute}
    known = defs.get_schema(node.op_type, opset, "").attributes
    return [a.default_value for name, a in known.items() if name not in given and a.default_value.name]
