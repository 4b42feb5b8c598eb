"""Weights that take their bits on disk, decoded by standard operators that onnxruntime folds when it opens the file.

Layout. A *class* is a width b with a grid, code = offset + step u, where u has b bits:

    mid-tread         step 1, offset -(2^(b-1) - 1)         two's complement   step 1, offset -2^(b-1)
    mid-rise          step 2, offset -(2^b - 1)             positions          step 1, offset 0

u is cut into *fields* of 1, 2, 4 and 8 bits as b is a sum of these, the narrowest field from the lowest bits: for
b = 7, u = f1 + 2 f2 + 8 f4. All fields of one width are one stream for the whole model, the first field of a byte in
its lowest bits, no gaps but after the last. The order in a stream: layers with equally many weights per channel (and
the same type of code) are a *group*; groups in order of that number, in a group the layers in order of the graph, in a
layer the channels that have the field, in a channel its weights. A byte per channel names its class, in that order.

Decoding. Two shifts cut bytes into fields: left so far that the higher fields drop out, then right. For the channels of
a group, row -(number of channels from here on that have the field) of a stream's rows, counted from the end, is the
channel's own; channels without the field read any row, times 0. Then

    code = offset[class] + sum over fields of coefficient[class, field] field

in int32, cast to the 8 bits of the code. Cost when a file is opened: about 0.1 s per million weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto, helper

from onnx_cbq.config import MOST_BITS
from onnx_cbq.model import Array

FIELDS = (1, 2, 4, 8)


@dataclass(frozen=True)
class PackedLayer:
    """Codes to pack.

    Attributes:
        name: of the tensor that holds the codes in the graph.
        rows: int8 or uint8 [channels, weights per channel].
        bits: int8 [channels].
        shape: of the tensor.
        axis: its axis along which the channels lie.
    """

    name: str
    rows: Array
    bits: Array
    shape: tuple[int, ...]
    axis: int


@dataclass(frozen=True)
class Classes:
    """The classes in use, each array [classes], and coefficients int32 [classes, fields]."""

    bits: Array
    step: Array
    offset: Array

    @property
    def coefficients(self) -> Array:
        """What a unit of each field adds to the code; 0 for a field that the class has not."""
        found = np.zeros((len(self.bits), len(FIELDS)), np.int32)
        weight = self.step.astype(np.int32)
        for i, field in enumerate(FIELDS):
            has = (self.bits & field) > 0
            found[:, i] = np.where(has, weight, 0)
            weight = np.where(has, weight << field, weight)
        return found


def classify(rows: Array, bits: Array) -> Array:
    """Bits, step and offset of the grid that each channel's codes lie on, int32 [channels, 3].

    Raises:
        ValueError: the codes of a channel have more than its bits.
    """
    codes, width = rows.astype(np.int32), bits.astype(np.int32)
    low, high = codes.min(axis=1, initial=0), codes.max(axis=1, initial=0)
    half, zero = np.left_shift(1, np.maximum(width - 1, 0)), width == 0
    odd = (codes % 2 != 0).all(axis=1) & (width > 0) & (width < MOST_BITS)
    most = np.left_shift(1, width) - 1
    tread = (np.maximum(-low, high) <= half - 1) & (width != 1)
    rise = odd & (np.maximum(-low, high) <= most)
    complement = (low >= -half) & (high <= half - 1) & ~zero
    positions = (low >= 0) & (high <= most) & ~zero
    if rows.dtype == np.uint8:
        tread &= zero
        rise, complement = np.zeros_like(rise), np.zeros_like(complement)
    else:
        positions = np.zeros_like(positions)
    if not (tread | rise | complement | positions).all():
        raise ValueError("codes do not fit the bits of their channel")
    offset = np.select([tread, rise, complement], [1 - half, -most, -half], 0)
    return np.stack([width, np.where(~tread & rise, 2, 1), np.where(zero, 0, offset)], axis=1)


def pack_fields(values: Array, field: int) -> Array:
    """Fields of 1, 2, 4 or 8 bits, uint8 [n] -> bytes, uint8 [ceil(n field / 8)]."""
    per_byte = 8 // field
    padded = np.concatenate([values, np.zeros(-len(values) % per_byte, np.uint8)]).reshape(-1, per_byte)
    shifts = np.arange(0, 8, field, dtype=np.uint8)
    return np.asarray(np.bitwise_or.reduce(padded << shifts, axis=1), np.uint8)


def unpacking_graph(
    layers: Sequence[PackedLayer], fresh: Callable[[str], str]
) -> tuple[list[NodeProto], dict[str, Array]]:
    """Nodes and constants that compute the tensor of every layer's codes.

    Args:
        layers: in the order of the graph.
        fresh: makes an unused name from a suggestion.
    """
    return _Writer(layers, fresh).write()


class _Writer:
    """Collects nodes; a method per stage of the decoding."""

    def __init__(self, layers: Sequence[PackedLayer], fresh: Callable[[str], str]) -> None:
        self._fresh = fresh
        self._nodes: list[NodeProto] = []
        self._constants: dict[str, Array] = {}
        self._pool: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        keys = sorted({(layer.rows.shape[1], layer.rows.dtype.str) for layer in layers})
        self._groups = [[x for x in layers if (x.rows.shape[1], x.rows.dtype.str) == key] for key in keys]
        found = [classify(layer.rows, layer.bits) for group in self._groups for layer in group]
        classes, self._class = np.unique(np.concatenate(found), axis=0, return_inverse=True)
        self._class = self._class.reshape(-1)
        self._classes = Classes(*classes.T)
        self._sizes = [sum(len(layer.rows) for layer in group) for group in self._groups]

    def write(self) -> tuple[list[NodeProto], dict[str, Array]]:
        coefficients = self._classes.coefficients
        index = self._add("Cast", [self._constant(self._class.astype(np.min_scalar_type(len(coefficients))))], to=6)
        offsets = self._per_group(index, self._classes.offset.astype(np.int32)[:, None])
        # For each group, what its channels take from each field: (rows of the stream, own row, coefficient).
        parts: list[list[tuple[str, str, str]]] = [[] for _ in self._groups]
        for i, field in enumerate(FIELDS):
            has = (coefficients[:, i] > 0)[self._class]
            if not has.any():
                continue
            streams = self._streams(field, has)
            rows = self._per_group(index, -(coefficients[:, i] > 0).astype(np.int32))
            factors = self._per_group(index, coefficients[:, i, None])
            for part, stream, row, factor in zip(parts, streams, rows, factors, strict=True):
                if stream:
                    own = self._add("CumSum", [row, self._constant(np.array(0, np.int32))], reverse=1)
                    part.append((stream, own, factor))
        for group, part, offset in zip(self._groups, parts, offsets, strict=True):
            self._group(group, part, offset)
        return self._nodes, self._constants

    def _streams(self, field: int, has: Array) -> list[str]:
        """A stream, cut into fields: for each group its rows [channels that have the field, n], or "" for none."""
        pieces, counts, start = [], [], 0
        for group, size in zip(self._groups, self._sizes, strict=True):
            chosen = has[start : start + size]
            classes = self._class[start : start + size][chosen]
            rows = np.concatenate([layer.rows for layer in group])[chosen].astype(np.int32)
            units = (rows - self._classes.offset[classes, None]) // self._classes.step[classes, None]
            lower = self._classes.bits[classes] & (field - 1)
            pieces.append((units >> lower[:, None] & ((1 << field) - 1)).astype(np.uint8).reshape(-1))
            counts.append(pieces[-1].size)
            start += size
        stream = pack_fields(np.concatenate(pieces), field)
        if field == MOST_BITS:
            fields = self._constant(stream)
        else:
            shifts = np.arange(8 - field, -1, -field, dtype=np.uint8)
            cut = self._add("BitShift", [self._constant(stream[:, None]), self._constant(shifts)], direction="LEFT")
            right = self._constant(np.array(8 - field, np.uint8))
            cut = self._add("BitShift", [cut, right], direction="RIGHT")
            fields = self._add("Reshape", [cut, self._constant(np.array([-1]))])
        flat = self._add("Cast", [fields], to=TensorProto.INT32)
        counts.append(stream.size * 8 // field - sum(counts))
        split = iter(self._split(flat, [count for count in counts if count]))
        return [
            self._add("Reshape", [next(split), self._constant(np.array([-1, group[0].rows.shape[1]]))]) if count else ""
            for group, count in zip(self._groups, counts, strict=False)
        ]

    def _group(self, group: Sequence[PackedLayer], parts: Sequence[tuple[str, str, str]], offset: str) -> None:
        """The codes of every layer of a group."""
        shape = (sum(len(layer.rows) for layer in group), group[0].rows.shape[1])
        total = offset
        for stream, own, factor in parts:
            field = self._add("Mul", [self._add("Gather", [stream, own]), factor])
            total = self._add("Add", [total, field])
        if not parts:
            total = self._add("Expand", [total, self._constant(np.array(shape))])
        kind = helper.np_dtype_to_tensor_dtype(group[0].rows.dtype)
        codes = self._split(self._add("Cast", [total], to=kind), [len(layer.rows) for layer in group])
        for layer, name in zip(group, codes, strict=True):
            self._place(layer, name)

    def _place(self, layer: PackedLayer, codes: str) -> None:
        """Rows of channels to the shape of the weight."""
        moved = [layer.shape[layer.axis], *np.delete(layer.shape, layer.axis)]
        shape = self._constant(np.array(moved, np.int64))
        if layer.axis == 0:
            self._nodes.append(helper.make_node("Reshape", [codes, shape], [layer.name]))
            return
        rest = list(range(1, len(moved)))
        order = [*rest[: layer.axis], 0, *rest[layer.axis :]]
        codes = self._add("Reshape", [codes, shape])
        self._nodes.append(helper.make_node("Transpose", [codes], [layer.name], perm=order))

    def _per_group(self, index: str, table: Array) -> list[str]:
        """An entry of the table [classes, ...] for every channel, a tensor for each group."""
        return self._split(self._add("Gather", [self._constant(table), index]), self._sizes)

    def _split(self, name: str, sizes: Sequence[int]) -> list[str]:
        if len(sizes) == 1:
            return [name]
        outputs = [self._fresh("part") for _ in sizes]
        self._nodes.append(helper.make_node("Split", [name, self._constant(np.array(sizes, np.int64))], outputs))
        return outputs

    def _add(self, operator: str, inputs: Sequence[str], **attrs: int | str) -> str:
        output = self._fresh("code")
        node = helper.make_node(operator, list(inputs), [output])
        node.attribute.extend(helper.make_attribute(name, value) for name, value in attrs.items())
        self._nodes.append(node)
        return output

    def _constant(self, value: Array) -> str:
        """A constant, written once however often it is used."""
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._pool:
            self._pool[key] = self._fresh("packed")
            self._constants[self._pool[key]] = value
        return self._pool[key]
