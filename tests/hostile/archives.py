"""Change archives at random: their bytes, their header, what is in their sections, the model that they hold."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from onnx import ModelProto

from onnx_cbq.storage.archive import archive
from onnx_cbq.storage.coding.container import Cursor, pack, unpack, write_varints
from onnx_cbq.storage.coding.damage import Damaged
from onnx_cbq.storage.coding.wire import dissect
from tests.hostile.messages import INTEGERS, mutated

_HEAD = 6  # bytes before the sizes
_CHECK = 4


def archives_of(model: ModelProto) -> tuple[bytes, ...]:
    """With either coder."""
    return tuple(archive(model, coder).content for coder in ("ans", "huffman"))


def damaged(bases: Sequence[bytes], model: ModelProto, random: np.random.Generator) -> bytes:
    """One of `bases` after a change; `model` is what they hold. Most have a right checksum."""
    content = bytearray(bases[int(random.integers(len(bases)))])
    kind = int(random.integers(8))
    if kind == 0:  # as it happens on the way
        _flip(content, random)
        return bytes(content)
    if kind == 1:
        return bytes(content[: int(random.integers(len(content)))])
    body = content[:-_CHECK]
    if kind == 2:
        _flip(body, random)
    elif kind == 3:
        other = bases[int(random.integers(len(bases)))]
        at, start = int(random.integers(len(body))), int(random.integers(len(other)))
        body[at:] = other[start:-_CHECK]
    elif kind == 4:
        body = _with_sizes(bytes(body), random)
    elif kind == 5:
        at = int(random.integers(len(body)))
        body[at:at] = bytes(random.integers(0, 256, int(random.integers(1, 40))).tolist())
    else:
        return _in_sections(bytes(content), model, random, whole_frame=kind == 7)
    return bytes(body) + zlib.crc32(body).to_bytes(_CHECK, "little")


def _flip(content: bytearray, random: np.random.Generator) -> None:
    for place in random.integers(0, len(content), int(random.integers(1, 6))):
        content[place] = int(random.integers(256))


def _with_sizes(body: bytes, random: np.random.Generator) -> bytearray:
    """Another length in the header."""
    cursor = Cursor(body, _HEAD)
    sizes = [cursor.varint() for _ in range(6)]
    at = int(random.integers(6))
    large = [number for number in INTEGERS if 0 <= number < 1 << 35]
    choices = [*large, sizes[at] + 1, max(sizes[at] - 1, 0), 2 * sizes[at], 100 * sizes[at]]
    sizes[at] = choices[int(random.integers(len(choices)))]
    return bytearray(body[:_HEAD] + write_varints(sizes) + cursor.rest())


def _in_sections(content: bytes, model: ModelProto, random: np.random.Generator, *, whole_frame: bool) -> bytes:
    """Sections changed before they are packed, or the frame of another model."""
    sections = unpack(content)
    try:
        if whole_frame:
            changed = mutated(model, random)
            return pack(replace(sections, frame=dissect(changed)[0], size=len(changed))).content
        name = ("frame", "parameters", "numbers", "words")[int(random.integers(4))]
        section = bytearray(getattr(sections, name))
        _flip(section, random)
        if random.random() < 0.3:
            del section[int(random.integers(len(section))) :]
        size = sections.size + int(random.integers(-3, 4)) * int(random.random() < 0.2)
        changed_fields: dict[str, Any] = {name: bytes(section), "size": size}
        return pack(replace(sections, **changed_fields)).content
    except Damaged:  # no archive could hold it
        return content
