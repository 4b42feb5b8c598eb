"""The bytes of what is known about the codes: groups of channels, and for each layer its axis, grids and predictor.

    1        number of groups; for each:
    1 1 2 1  width, kind, magnitude, sigma; the shape of the distribution is in the upper four bits of the kind
    2 2 2    low, count, middle: only of kind RANGE
    2 each   counts of the codes: only if the shape is 15
    -        the axis of every layer, a byte each
    -        for every channel of every layer, a byte: 0 for a channel of zeros, else one more than the kind of its grid
    -        the coefficients of every layer, a byte each
    -        the sigmas of every layer, a byte for each position

The width of a channel is in the file's own metadata.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnx_cbq.model import Array
from onnx_cbq.storage.coding.ans import CodedLayer
from onnx_cbq.storage.coding.container import Cursor
from onnx_cbq.storage.coding.context import LARGEST_CODE, RANGE, RISE, TREAD, Geometry, Group, Predictor, grid
from onnx_cbq.storage.coding.damage import Damaged
from onnx_cbq.storage.coding.density import SHAPES, SIGMAS

_COUNTS = 15
_LARGEST_MAGNITUDE = 16 * LARGEST_CODE


def write_parameters(layers: Sequence[CodedLayer], groups: Sequence[Group]) -> bytes:
    """The parameters as bytes."""
    kinds = np.array([*(group.kind + 1 for group in groups), 0], np.uint8)
    pieces = [bytes([len(groups)]), *map(_write_group, groups)]
    pieces.append(bytes(layer.geometry.axis for layer in layers))
    pieces.extend(kinds[layer.groups].tobytes() for layer in layers)
    pieces.extend(layer.predictor.coefficients.tobytes() for layer in layers)
    pieces.extend(layer.predictor.sigmas.tobytes() for layer in layers)
    return b"".join(pieces)


def read_parameters(
    content: bytes, shapes: Sequence[tuple[int, ...]], bits: Sequence[Array]
) -> tuple[list[CodedLayer], list[Group]]:
    """The inverse, for weights of these shapes whose channels have these bits.

    Raises:
        Damaged: the parameters do not fit the weights.
    """
    cursor = Cursor(content)
    groups = [_read_group(cursor) for _ in range(cursor.byte())]
    index = {(group.width, group.kind + 1): i for i, group in enumerate(groups)}
    geometries = []
    for shape, widths, axis in zip(shapes, bits, cursor.take(len(shapes)), strict=True):
        if axis >= len(shape) or shape[axis] != len(widths):
            raise Damaged("the channels of a weight lie along an axis that it does not have")
        geometries.append(Geometry(shape, axis))
    members = []
    for widths in bits:
        kinds = cursor.take(len(widths))
        found = [index.get((w, k)) if k else -1 for w, k in zip(widths.tolist(), kinds, strict=True)]
        if None in found:
            raise Damaged("a channel belongs to no group")
        members.append(np.array(found, np.int64))
    coefficients = [_signed(cursor, sum(map(len, geometry.neighbours))) for geometry in geometries]
    sigmas = [_signed(cursor, geometry.positions) for geometry in geometries]
    cursor.end()
    layers = [
        CodedLayer(geometry, channels, Predictor(a, s))
        for geometry, channels, a, s in zip(geometries, members, coefficients, sigmas, strict=True)
    ]
    return layers, groups


def _signed(cursor: Cursor, count: int) -> Array:
    return np.frombuffer(cursor.take(count), np.int8)


def _write_group(group: Group) -> bytes:
    shape = _COUNTS if group.counts else group.shape
    fixed = bytes([group.width, group.kind | shape << 4]) + group.magnitude.to_bytes(2, "little")
    span = b""
    if group.kind == RANGE:
        span = b"".join(n.to_bytes(2, "little", signed=True) for n in (group.low, group.count, group.middle))
    return fixed + bytes([group.sigma]) + span + np.array(group.counts, "<u2").tobytes()


def _read_group(cursor: Cursor) -> Group:
    width, kind = cursor.byte(), cursor.byte()
    shape, kind = kind >> 4, kind & 15
    magnitude, sigma = cursor.integer(2, signed=False), cursor.byte()
    if (
        kind not in (TREAD, RISE, RANGE)
        or shape not in (*range(len(SHAPES)), _COUNTS)
        or sigma >= SIGMAS
        or magnitude > _LARGEST_MAGNITUDE
    ):
        raise Damaged("a group of channels has an unknown grid or distribution")
    low, count, middle = *grid(width, kind), 0
    if kind == RANGE:
        low, count, middle = (cursor.integer(2, signed=True) for _ in range(3))
    if not (-LARGEST_CODE <= low <= middle < low + count <= LARGEST_CODE + 1 and count > 1):
        raise Damaged("a group of channels has codes beyond eight bits")
    if shape != _COUNTS:
        return Group(width, kind, low, count, middle, magnitude, sigma, shape)
    counts = np.frombuffer(cursor.take(2 * count), "<u2").tolist()
    return Group(width, kind, low, count, middle, magnitude, sigma, counts=tuple(counts))
