"""Where the numbers lie in the bytes of an ONNX file, found by walking protobuf's wire format.

A *gap* is the raw data of an initializer that is coded apart from the rest: 32-bit floats and integers, and int8 or
uint8 of two axes or more, which are what weights look like. The bytes without the gaps are the *frame*. A frame alone
says where its gaps are, because it keeps each one's type, shape and length; so an archive need not.

    ModelProto    7 graph, 14 metadata_props       StringStringEntryProto  1 key, 2 value
    GraphProto    5 initializer                    TensorProto  1 dims, 2 data_type, 9 raw_data, 14 data_location
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from onnx import TensorProto

from onnx_cbq.storage.coding.damage import Damaged
from onnx_cbq.system.allowance import allowed

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT = 10
_WIDE = (TensorProto.FLOAT, TensorProto.INT32)
_NARROW = (TensorProto.INT8, TensorProto.UINT8)
_MOST_AXES = 16
# Each takes a microsecond or two, and a hostile file may consist of nothing else.
_MOST_FIELDS = 1_000_000


@dataclass(frozen=True)
class Gap:
    """The raw data of one initializer: `position` in the frame, `length` in bytes."""

    data_type: int
    shape: tuple[int, ...]
    position: int
    length: int

    @property
    def is_narrow(self) -> bool:
        """Whether the elements are int8 or uint8."""
        return self.data_type in _NARROW


@dataclass(frozen=True)
class Anatomy:
    """The gaps of a file in order, its metadata entries, and whether an initializer lies in another file."""

    gaps: tuple[Gap, ...]
    metadata: dict[bytes, bytes]
    has_external_data: bool


def dissect(content: bytes) -> tuple[bytes, list[bytes], Anatomy]:
    """Frame, contents of the gaps, and anatomy of a whole file.

    Raises:
        Damaged: it is not a protobuf message.
    """
    anatomy = _Walk(content, len(content), hollow=False).run()
    pieces: list[bytes] = []
    contents: list[bytes] = []
    start = in_gaps = 0
    for gap in anatomy.gaps:
        end = gap.position + in_gaps
        pieces.append(content[start:end])
        contents.append(content[end : end + gap.length])
        in_gaps += gap.length
        start = end + gap.length
    return b"".join([*pieces, content[start:]]), contents, anatomy


def examine(frame: bytes, size: int) -> Anatomy:
    """The anatomy of the file of `size` bytes that `frame` belongs to.

    Raises:
        Damaged: no file of that size has such a frame.
    """
    return _Walk(frame, size, hollow=True).run()


def assemble(frame: bytes, gaps: tuple[Gap, ...], contents: list[bytes]) -> bytes:
    """The inverse of `dissect`."""
    starts = [0, *(gap.position for gap in gaps)]
    ends = [*(gap.position for gap in gaps), len(frame)]
    pieces = [frame[start:end] for start, end in zip(starts, ends, strict=True)]
    return b"".join(piece for pair in zip(pieces, [*contents, b""], strict=True) for piece in pair)


class _Walk:
    """Goes through the bytes once. Ends of messages count in the whole file, `self._at` in the bytes at hand."""

    def __init__(self, content: bytes, size: int, *, hollow: bool) -> None:
        self._content = content
        self._size = size
        self._hollow = hollow
        self._at = 0
        self._in_gaps = 0  # bytes of the gaps so far
        self._gaps: list[Gap] = []
        self._metadata: dict[bytes, bytes] = {}
        self._external = False
        self._numbers_left = allowed(_MOST_FIELDS)

    def run(self) -> Anatomy:
        for field, end in self._fields(self._size):
            if field == 7:
                self._graph(end)
            elif field == 14:
                self._entry(end)
        if self._at != len(self._content) or self._place != self._size:
            raise Damaged("the parts do not add up to the whole")
        return Anatomy(tuple(self._gaps), self._metadata, self._external)

    @property
    def _place(self) -> int:
        """The position in the whole file."""
        return self._at + (self._in_gaps if self._hollow else 0)

    def _fields(self, end: int) -> Iterator[tuple[int, int]]:
        """Number and end of each field that holds bytes; what the caller leaves of one is skipped."""
        for field, kind, value in self._entries(end):
            if kind == _BYTES:
                yield field, value

    def _entries(self, end: int) -> Iterator[tuple[int, int, int]]:
        """Number, kind, and value of a varint or end of bytes, for each field up to `end`."""
        while self._place < end:
            tag = self._varint()
            field, kind = tag >> 3, tag & 7
            if kind == _VARINT:
                yield field, kind, self._varint()
                continue
            if kind == _BYTES:
                length = self._varint()
            elif kind in (_FIXED32, _FIXED64):
                length = 4 if kind == _FIXED32 else 8
            else:
                raise Damaged(f"a field of kind {kind}")
            field_end = self._place + length
            if field_end > end:
                raise Damaged("a field is longer than what holds it")
            yield field, kind, field_end
            self._skip(field_end - self._place)
        if self._place != end:
            raise Damaged("a field is longer than what holds it")

    def _graph(self, end: int) -> None:
        for field, field_end in self._fields(end):
            if field == 5:
                self._tensor(field_end)

    def _tensor(self, end: int) -> None:
        shape: list[int] = []
        data_type = 0
        for field, kind, value in self._entries(end):
            if field == 1 and kind == _VARINT:
                shape.append(value)
            elif field == 1 and kind == _BYTES:
                while self._place < value:
                    shape.append(self._varint())
            elif field == 2 and kind == _VARINT:
                data_type = value
            elif field == 14 and kind == _VARINT:
                self._external |= value == TensorProto.EXTERNAL
            elif field == 9 and kind == _BYTES and _is_gap(data_type, shape, value - self._place):
                self._add(Gap(data_type, tuple(shape), self._frame_position(), value - self._place))

    def _frame_position(self) -> int:
        return self._at if self._hollow else self._at - self._in_gaps

    def _add(self, gap: Gap) -> None:
        self._gaps.append(gap)
        if not self._hollow:
            self._skip(gap.length)
        self._in_gaps += gap.length

    def _entry(self, end: int) -> None:
        texts = {1: b"", 2: b""}
        for field, field_end in self._fields(end):
            if field in texts:
                length = field_end - self._place
                texts[field] = self._content[self._at : self._at + length]
        self._metadata[texts[1]] = texts[2]

    def _skip(self, length: int) -> None:
        if length < 0 or self._at + length > len(self._content):
            raise Damaged("cut short")
        self._at += length

    def _varint(self) -> int:
        self._numbers_left -= 1
        if self._numbers_left < 0:
            raise Damaged(f"more than {allowed(_MOST_FIELDS)} fields")
        value = 0
        for i in range(_LONGEST_VARINT):
            if self._at >= len(self._content):
                raise Damaged("cut short")
            byte = self._content[self._at]
            self._at += 1
            value |= (byte & 0x7F) << (7 * i)
            if byte < 0x80:
                return value
        raise Damaged("a number of more than 64 bits")


def _is_gap(data_type: int, shape: list[int], length: int) -> bool:
    if length == 0 or len(shape) > _MOST_AXES:
        return False
    if data_type in _WIDE:
        return 4 * math.prod(shape) == length
    return data_type in _NARROW and len(shape) > 1 and math.prod(shape) == length
