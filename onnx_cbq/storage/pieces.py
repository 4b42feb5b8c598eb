"""A model's file piece by piece: protobuf would hold all weights three times to make bytes of them.

A message is its fields in the order of their numbers, each a tag, for a message the length, and the content. So what
protobuf writes of a model without weights is cut where they belong, and the arrays go into the gap as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
from google.protobuf.message import Message
from onnx import GraphProto, ModelProto, TensorProto, helper

from onnx_cbq.model import Array, Model

_Message = TypeVar("_Message", bound=Message)
_LENGTH_DELIMITED = 2


def pieces(model: Model) -> Iterator[bytes | memoryview]:
    """What `model.to_proto().SerializeToString()` gives, in pieces."""
    proto = model.plain_skeleton()
    graph_field, tensor_field = _number(ModelProto, "graph"), _number(GraphProto, "initializer")
    inner: list[bytes | memoryview] = [_part(proto.graph, below=tensor_field)]
    for tensor in proto.graph.initializer:
        value = model.weights.get(tensor.name)
        content = [tensor.SerializeToString()] if value is None else _tensor(tensor.name, value)
        inner += [_head(tensor_field, sum(map(_size, content))), *content]
    inner.append(_part(proto.graph, above=tensor_field))
    yield _part(proto, below=graph_field)
    yield _head(graph_field, sum(map(_size, inner)))
    yield from inner
    yield _part(proto, above=graph_field)


def _tensor(name: str, value: Array) -> list[bytes | memoryview]:
    """An initializer, its numbers in `raw_data`, which is the last of its fields."""
    tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(value.dtype), dims=value.shape)
    content = np.ascontiguousarray(value, value.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data
    return [tensor.SerializeToString(), _head(_number(TensorProto, "raw_data"), content.nbytes), content]


def _part(message: _Message, below: int = 1 << 30, above: int = 0) -> bytes:
    """The fields of a message with numbers between two, as protobuf writes them."""
    part = type(message)()
    for field, value in message.ListFields():
        if above < field.number < below:
            if field.is_repeated:
                getattr(part, field.name).extend(value)
            elif field.message_type is not None:
                getattr(part, field.name).CopyFrom(value)
            else:
                setattr(part, field.name, value)
    return bytes(part.SerializeToString())


def _number(kind: type[Message], field: str) -> int:
    return int(kind.DESCRIPTOR.fields_by_name[field].number)


def _head(field: int, size: int) -> bytes:
    """What stands in front of a field's content: its number, and how long it is."""
    return _varint(field << 3 | _LENGTH_DELIMITED) + _varint(size)


def _varint(value: int) -> bytes:
    """Seven bits in each byte, the lowest first; the eighth says that more follow."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _size(piece: bytes | memoryview) -> int:
    return memoryview(piece).nbytes
