"""Nodes held against what their operators say of themselves: how many inputs and outputs, and of what type attributes.

onnxruntime asks the same, but only where a graph is run; whoever reads a graph before that counts on it.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from onnx import AttributeProto, ModelProto, NodeProto
from onnx.defs import OpSchema, SchemaError, get_schema

from onnx_cbq.errors import ModelError
from onnx_cbq.graph.tensors import every_node


def check_nodes(proto: ModelProto, label: str) -> None:
    """Hold every node of an operator that onnx knows against its schema.

    Raises:
        ModelError: one has too few or too many inputs or outputs, or an attribute of another type.
    """
    versions = {_plain(entry.domain): int(entry.version) for entry in proto.opset_import}
    for node in every_node(proto.graph.node):
        schema = _schema(node.op_type, versions.get(_plain(node.domain), 0), _plain(node.domain))
        wrong = None if schema is None else _what_is_wrong(node, schema)
        if wrong:
            name = node.name or next(iter(filter(None, node.output)), "")
            raise ModelError(f"{label}: node {name!r} ({node.op_type}) has {wrong}; export the model again")


def _what_is_wrong(node: NodeProto, schema: OpSchema) -> str | None:
    for what, names, least, most in (
        ("inputs", node.input, schema.min_input, schema.max_input),
        ("outputs", node.output, schema.min_output, schema.max_output),
    ):
        if not least <= len(names) <= most:
            return f"{len(names)} {what}, expected {least if least == most else f'{least} to {most}'}"
    return _wrong_attribute(node.attribute, schema)


def _wrong_attribute(attributes: Iterable[AttributeProto], schema: OpSchema) -> str | None:
    for attribute in attributes:
        known = schema.attributes.get(attribute.name)
        # One that takes its value from a function's has no type of its own.
        if known is None or attribute.ref_attr_name:
            continue
        expected = _number_of(known.type)
        if attribute.type != expected:
            names = [AttributeProto.AttributeType.Name(number) for number in (attribute.type, expected)]
            return f"attribute {attribute.name!r} of type {names[0]}, expected {names[1]}"
    return None


def _number_of(kind: Any) -> int:
    return int(kind.value)


@lru_cache(maxsize=1024)
def _schema(operator: str, version: int, domain: str) -> OpSchema | None:
    try:
        return get_schema(operator, version, domain)
    except SchemaError:
        return None


def _plain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain
