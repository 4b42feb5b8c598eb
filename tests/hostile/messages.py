"""Change a protobuf message at random, knowing its fields: what a careless or hostile exporter could have written."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto

INTEGERS = (0, 1, 2, 3, 7, -1, -2, 255, 10**5, 10**9, 2**31 - 1, 2**31, -(2**31), 2**32, 2**62, 2**63 - 1, -(2**63))
FLOATS = (0.0, -1.0, 0.5, 1e-30, 3e38, math.inf, -math.inf, math.nan)
TEXTS = (
    "",
    "x",
    "[/red]",
    "ü\u202e\n",
    "a\0b",
    "n" * 300,
    "../../etc/passwd",
    "com.microsoft",
    "ai.onnx.ml",
    "ai.onnx",
)
OPERATORS = tuple(sorted({schema.name for schema in onnx.defs.get_all_schemas()}))


def mutated(model: ModelProto, random: np.random.Generator) -> bytes:
    """The bytes of a model after one to three changes, sometimes of its bytes as well."""
    copy = ModelProto()
    copy.CopyFrom(model)
    for _ in range(int(random.choice((1, 1, 1, 2, 3)))):
        _change(copy, random)
    content = bytearray(copy.SerializeToString())
    kind = random.random()
    if not content:
        return b""
    if kind < 0.10:
        for place in random.integers(0, len(content), int(random.integers(1, 6))):
            content[place] ^= 1 << int(random.integers(8))
    elif kind < 0.15:
        del content[int(random.integers(len(content))) :]
    return bytes(content)


def _change(model: ModelProto, random: np.random.Generator) -> None:
    if random.random() < 0.3:
        _rewire(model, random)
        return
    by_kind: dict[str, list[Any]] = {}
    for message in _messages(model):
        by_kind.setdefault(message.DESCRIPTOR.name, []).append(message)
    # Kinds first: otherwise nearly all changes would hit attributes.
    message = _one(by_kind[_one(sorted(by_kind), random)], random)
    if not message.DESCRIPTOR.fields:  # where protobuf keeps extensions
        return
    filled = [field for field, _ in message.ListFields()]
    fields = filled if filled and random.random() < 0.8 else list(message.DESCRIPTOR.fields)
    _change_field(message, _one(fields, random), model, random)


def _change_field(message: Any, field: Any, model: ModelProto, random: np.random.Generator) -> None:
    if not field.is_repeated:
        if random.random() < 0.2:
            message.ClearField(field.name)
        elif field.message_type is not None:
            _replace(getattr(message, field.name), model, random)
        else:
            setattr(message, field.name, _value(field, getattr(message, field.name), model, random))
        return
    items = getattr(message, field.name)
    place = int(random.integers(len(items))) if len(items) else 0
    action = _one(("drop", "double", "swap", "clear", "change", "change"), random)
    if not len(items) or action == "double":
        if field.message_type is not None:
            items.add().CopyFrom(items[place]) if len(items) > 1 else items.add()
        else:
            items.append(items[place] if len(items) else _value(field, None, model, random))
    elif action == "drop":
        del items[place]
    elif action == "clear":
        message.ClearField(field.name)
    elif action == "swap":
        order = list(items)
        random.shuffle(order)
        copies = [type(item).FromString(item.SerializeToString()) for item in order] if field.message_type else order
        message.ClearField(field.name)
        getattr(message, field.name).extend(copies)
    elif field.message_type is not None:
        _replace(items[place], model, random)
    else:
        items[place] = _value(field, items[place], model, random)


def _rewire(model: ModelProto, random: np.random.Generator) -> None:
    """What only graphs can have wrong with them: cycles, names twice, inputs that nothing makes, other operators."""
    graphs = [m for m in _messages(model) if m.DESCRIPTOR.name == "GraphProto" and m.node]
    if not graphs:
        return
    graph = _one(graphs, random)
    node = _one(graph.node, random)
    action = int(random.integers(6))
    if action == 0 and node.input:
        node.input[int(random.integers(len(node.input)))] = _one(_names(model), random)
    elif action == 1 and node.output:
        node.output[0] = _one(_names(model), random)
    elif action == 2:
        node.op_type = _one(OPERATORS, random)
    elif action == 3:
        node.input.append(_one(_names(model), random))
    elif action == 4 and graph.output:
        _one(graph.output, random).name = _one(_names(model), random)
    elif graph.initializer:
        tensor = _one(graph.initializer, random)
        tensor.dims[:] = [int(_one(INTEGERS, random)) for _ in range(int(random.integers(5)))]


def _messages(message: Any) -> Iterator[Any]:
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if field.is_repeated else [value]:
                yield from _messages(inner)


def _replace(message: Any, model: ModelProto, random: np.random.Generator) -> None:
    """By another of its kind, or by nothing."""
    others = [other for other in _messages(model) if other.DESCRIPTOR is message.DESCRIPTOR]
    content = _one(others, random).SerializeToString() if others and random.random() < 0.8 else b""
    # One that holds the other would grow without end.
    if len(content) < 1 << 16:
        message.ParseFromString(content)


def _names(model: ModelProto) -> list[str]:
    nodes = [message for message in _messages(model) if message.DESCRIPTOR.name == "NodeProto"]
    return [*TEXTS, *(name for node in nodes for name in (*node.input, *node.output))]


def _value(field: Any, old: Any, model: ModelProto, random: np.random.Generator) -> Any:
    if field.type == field.TYPE_STRING:
        return _one([*_names(model), *OPERATORS[:: max(len(OPERATORS) // 20, 1)]], random)
    if field.type == field.TYPE_BYTES:
        return _one((b"", b"\0", b"\xff\xfe", (old or b"")[:-1], (old or b"")[1:] + b"\0", (old or b"") * 2), random)
    if field.type == field.TYPE_ENUM:
        return _one([value.number for value in field.enum_type.values], random)
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return _one(FLOATS, random)
    if field.name in ("elem_type", "data_type"):
        return int(random.integers(-1, 27))
    least, most = _RANGES.get(field.type, (-(2**63), 2**63 - 1))
    return min(max(_one((*INTEGERS, (old or 0) + 1, (old or 0) - 1), random), least), most)


# By the numbers of protobuf's types: int32, uint32, uint64.
_RANGES = {5: (-(2**31), 2**31 - 1), 13: (0, 2**32 - 1), 4: (0, 2**64 - 1)}


def _one(choices: Any, random: np.random.Generator) -> Any:
    return choices[int(random.integers(len(choices)))]
