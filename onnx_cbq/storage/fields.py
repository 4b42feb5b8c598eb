"""Weights that take their bits on disk, decoded by standard operators that runtimes fold when they open the file.

Layout. A *class* is a width b with a grid, code = offset + step u, where u has b bits:

    mid-tread         step 1, offset -(2^(b-1) - 1)         two's complement   step 1, offset -2^(b-1)
    mid-rise          step 2, offset -(2^b - 1)             positions          step 1, offset 0

Layers with equally many weights per channel (and the same type of code) are a *group*; groups are in order of that
number, int8 before uint8. The *row* of a channel is its place in its group when the group is sorted by class, otherwise
in the order of layers in the graph and of channels in a layer.

Numbers are cut into *fields* of 1, 2, 4 and 8 bits as their width is a sum of these, the narrowest field from the
lowest bits: for b = 7, u = f1 + 2 f2 + 8 f4. All fields of one width are one stream for the whole model, the first
field of a byte in its lowest bits, no gaps but after the last. The order in a stream:

1. u of each class that has the field, classes in order of width, step and offset; in a class its groups; in a group the
   channels by row; in a channel its weights.
2. The rows of the channels, in the order of layers and channels, of each group in which they are not 0, 1, 2 and so on,
   as digits of 8 bits, the lowest digit of all first; the last digit is as wide as the largest row needs.

Decoding, in int32. A field is byte / 2^k mod 2^width. A class is decoded at once for the whole model, code = offset +
step u, and cut into its groups. In each group the codes of its classes are joined and cast to the 8 bits of the code;
each channel then fetches its row, if rows are stored.

There are no other operators than these, because a runtime that does not fold one computes the weights on every run and
has no integer kernels for them: OpenVINO 2026.4 does not fold BitShift, CumSum, TopK and ScatterND, onnxruntime 1.31
not NonZero. Cost when a file is opened: about 0.05 s per million weights in onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto, helper

from onnx_cbq.model import Array
from onnx_cbq.settings import MOST_BITS

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
    """The classes in use, each array [classes]."""

    bits: Array
    step: Array
    offset: Array


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


def _digits(values: Array) -> list[tuple[Array, int]]:
    """Numbers from 0 as digits of 8 bits, the lowest first, each digit with its bits, the last with as few as do."""
    if not values.size:
        return []
    width = max(int(values.max()).bit_length(), 1)
    return [((values >> i) & 255, min(width - i, MOST_BITS)) for i in range(0, width, MOST_BITS)]


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
        grids = [np.concatenate([classify(layer.rows, layer.bits) for layer in group]) for group in self._groups]
        classes, found = np.unique(np.concatenate(grids), axis=0, return_inverse=True)
        self._classes = Classes(*classes.T)
        self._class_of = np.split(found.reshape(-1), np.cumsum([len(grid) for grid in grids])[:-1])
        self._units = [self._units_of(group, of) for group, of in zip(self._groups, self._class_of, strict=True)]

    def write(self) -> tuple[list[NodeProto], dict[str, Array]]:
        ranks = [self._ranks(of) for of in self._class_of]
        # What lies in the streams: u of each class, flat, and digits of the channels' rows; with their bits.
        numbers = [(self._units_of_class(i), int(bits)) for i, bits in enumerate(self._classes.bits)]
        numbers += _digits(np.concatenate(ranks))
        names = self._unpack(numbers)
        # For each group its codes, class after class.
        parts: list[list[str]] = [[] for _ in self._groups]
        for i in range(len(self._classes.bits)):
            for index, codes in self._class_codes(i, names[i]):
                parts[index].append(codes)
        rows = self._rows(names[len(self._classes.bits) :], [len(rank) for rank in ranks])
        for group, part, row in zip(self._groups, parts, rows, strict=True):
            self._group(group, part, row)
        return self._nodes, self._constants

    def _units_of(self, group: Sequence[PackedLayer], classes: Array) -> Array:
        """u of every weight of a group, int32 [channels, weights per channel]."""
        rows = np.concatenate([layer.rows for layer in group]).astype(np.int32)
        return np.asarray((rows - self._classes.offset[classes, None]) // self._classes.step[classes, None])

    def _units_of_class(self, index: int) -> Array:
        """u of every weight of a class, flat, group after group."""
        members = zip(self._units, self._class_of, strict=True)
        return np.concatenate([units[of == index].reshape(-1) for units, of in members])

    def _ranks(self, classes: Array) -> Array:
        """The row of each channel of a group when sorted by class; none if they are in order anyway."""
        order = np.argsort(classes, kind="stable")
        return np.argsort(order) if (np.diff(order) < 0).any() else np.zeros(0, np.int64)

    def _unpack(self, numbers: Sequence[tuple[Array, int]]) -> list[str]:
        """Write numbers of so many bits into the streams; returns the tensors, int32, that they come back as."""
        found = ["" for _ in numbers]
        for field in FIELDS:
            having = [i for i, (_, bits) in enumerate(numbers) if bits & field]
            flats = self._stream(field, [numbers[i][0] >> (numbers[i][1] & (field - 1)) for i in having])
            for i, flat in zip(having, flats, strict=True):
                lower = numbers[i][1] & (field - 1)
                found[i] = self._add("Add", [found[i], self._times(flat, 1 << lower)]) if lower else flat
        return found

    def _stream(self, field: int, values: Sequence[Array]) -> list[str]:
        """A stream of the lowest bits of values, cut into fields again: a tensor for each."""
        if not values:
            return []
        stream = pack_fields((np.concatenate(values) & ((1 << field) - 1)).astype(np.uint8), field)
        counts = [value.size for value in values]
        if field == MOST_BITS:
            return self._split(self._add("Cast", [self._constant(stream)], to=TensorProto.INT32), counts)
        whole = self._add("Cast", [self._constant(stream[:, None])], to=TensorProto.INT32)
        powers = self._constant(np.left_shift(1, np.arange(0, 8, field, dtype=np.int32)))
        cut = self._add("Mod", [self._add("Div", [whole, powers]), self._constant(np.array(1 << field, np.int32))])
        flat = self._add("Reshape", [cut, self._constant(np.array([-1]))])
        padding = stream.size * 8 // field - sum(counts)
        return self._split(flat, [*counts, padding] if padding else counts)[: len(counts)]

    def _class_codes(self, index: int, units: str) -> list[tuple[int, str]]:
        """The codes of a class, flat, in parts for the groups that have channels of it: (group, its part)."""
        channels = ((of == index).sum() for of in self._class_of)
        sizes = {
            i: int(n) * group[0].rows.shape[1]
            for i, (n, group) in enumerate(zip(channels, self._groups, strict=True))
            if n
        }
        offset = self._constant(self._classes.offset[index].astype(np.int32))
        if not units:
            codes = self._add("Expand", [offset, self._constant(np.array([sum(sizes.values())]))])
        else:
            codes = self._times(units, int(self._classes.step[index]))
            codes = self._add("Add", [codes, offset]) if self._classes.offset[index] else codes
        return list(zip(sizes, self._split(codes, list(sizes.values())), strict=True))

    def _rows(self, digits: Sequence[str], sizes: Sequence[int]) -> list[str]:
        """For each group the row of each of its channels, or "" where it has none of these sizes."""
        if not digits:
            return ["" for _ in sizes]
        rows = digits[0]
        for i, digit in enumerate(digits[1:], 1):
            rows = self._add("Add", [rows, self._times(digit, 1 << MOST_BITS * i)])
        parts = iter(self._split(rows, [size for size in sizes if size]))
        return [next(parts) if size else "" for size in sizes]

    def _times(self, name: str, factor: int) -> str:
        return name if factor == 1 else self._add("Mul", [name, self._constant(np.array(factor, np.int32))])

    def _group(self, group: Sequence[PackedLayer], parts: Sequence[str], rows: str) -> None:
        """The codes of every layer of a group, whose channels are in these rows, "" for one after the other."""
        flat = parts[0] if len(parts) == 1 else self._add("Concat", parts, axis=0)
        codes = self._add("Cast", [flat], to=helper.np_dtype_to_tensor_dtype(group[0].rows.dtype))
        codes = self._add("Reshape", [codes, self._constant(np.array([-1, group[0].rows.shape[1]]))])
        if rows:
            codes = self._add("Gather", [codes, rows])
        for layer, name in zip(group, self._split(codes, [len(layer.rows) for layer in group]), strict=True):
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
