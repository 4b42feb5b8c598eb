"""Codes of weights as symbols of an entropy coder: range coding by ANS, with what `context` expects of each code.

A code on a grid of more than 16 levels is two symbols: which cell of sixteen, and which code of the cell. So a table of
probabilities has at most 16 columns, whatever the width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from constriction import stream

from onnx_cbq.model import Array
from onnx_cbq.storage.coding.context import CELL, Geometry, Group, Predictor, centre, magnitude, sigma
from onnx_cbq.storage.coding.damage import Damaged
from onnx_cbq.storage.coding.density import FLOOR, probabilities

_ROWS = 1 << 14  # codes at a time

# Whether codes depend on what is expected of them.
PREDICTS = True


@dataclass(frozen=True)
class CodedLayer:
    """How a layer is coded: `groups` has the index of each channel's group, -1 for one of zeros, int [channels]."""

    geometry: Geometry
    groups: Array
    predictor: Predictor

    @property
    def codes(self) -> int:
        """How many codes there are besides those of channels of zeros."""
        return int((self.groups >= 0).sum()) * self.geometry.inputs * self.geometry.positions

    @property
    def pieces(self) -> int:
        """How many pieces they are coded in at least."""
        return len(np.unique(self.groups[self.groups >= 0])) * self.geometry.positions


def encode(layers: Sequence[CodedLayer], weights: Sequence[Array], groups: Sequence[Group]) -> bytes:
    """The codes of all layers, each in the shape of its weight, as one string of words."""
    coder = stream.stack.AnsCoder()
    # What is coded last comes out first.
    for layer, weight in zip(reversed(layers), reversed(weights), strict=True):
        planes = centred(layer, layer.geometry.by_position(weight), groups)
        for position in reversed(range(layer.geometry.positions)):
            for piece in reversed(list(_pieces(layer, planes, position, groups))):
                for table, symbols in reversed(_tables(piece, planes[position].reshape(-1)[piece.at])):
                    coder.encode_reverse(symbols, stream.model.Categorical(perfect=False), table)
    return np.asarray(coder.get_compressed(), "<u4").tobytes().rstrip(b"\0")


def decode(layers: Sequence[CodedLayer], groups: Sequence[Group], words: bytes) -> Iterator[Array]:
    """The codes of one layer after the other, int16 in the shape of its weight.

    Raises:
        Damaged: the words are no codes of such layers.
    """
    padded = words + b"\0" * (-len(words) % 4)
    try:
        coder = stream.stack.AnsCoder(np.frombuffer(padded, "<u4").astype(np.uint32))
    except ValueError:
        raise Damaged("the words of the coder end in a zero") from None
    for layer in layers:
        geometry = layer.geometry
        # Channels of zeros have no part in what is expected of the others, and may be nearly all there are.
        coded = np.flatnonzero(layer.groups >= 0)
        some = replace(layer, groups=layer.groups[coded])
        planes = np.zeros((geometry.positions, len(coded), geometry.inputs), np.int16)
        for position in range(geometry.positions if len(coded) else 0):
            for piece in _pieces(some, planes, position, groups):
                planes[position].reshape(-1)[piece.at] = _decode_piece(coder, piece)
        whole = np.zeros((geometry.positions, geometry.channels, geometry.inputs), np.int16)
        whole[:, coded] = planes + _middles(some, groups).astype(np.int16)[:, None]
        yield geometry.whole(whole)
    if not coder.is_empty():
        raise Damaged("words are left over")


def centred(layer: CodedLayer, planes: Array, groups: Sequence[Group]) -> Array:
    """Codes less the middle of their group, int16 [positions, channels, inputs]."""
    return np.asarray(planes.astype(np.int16) - _middles(layer, groups).astype(np.int16)[:, None])


def _middles(layer: CodedLayer, groups: Sequence[Group]) -> Array:
    return _of_groups(layer, [group.middle for group in groups])


def _of_groups(layer: CodedLayer, values: Sequence[int]) -> Array:
    """A number per group -> one per channel, int32 [channels]; 0 for channels of zeros."""
    return np.array([*values, 0], np.int32)[layer.groups]


@dataclass(frozen=True)
class Piece:
    """Codes of one group at one position: where they lie among [channels x inputs], and what is expected of them."""

    group: Group
    at: Array
    centre: Array
    sigma: Array

    def cells(self) -> Array:
        """Probabilities of the cells of 16 codes, float32 [codes, cells]."""
        limits = self.group.limits
        return self._table(np.append(limits[:, 0], limits[-1, -1]))

    def within(self, cells: Array | None) -> Array:
        """Probabilities of the codes in the cell of each code; None if all are in the only one."""
        limits = self.group.limits
        return self._table(limits[0, : self.group.count + 1] if cells is None else limits[cells])

    def _table(self, limits: Array) -> Array:
        if self.group.counts:
            table = np.diff(limits) + np.float32(FLOOR)
            # constriction takes rows as they lie in memory, whatever the strides.
            return np.ascontiguousarray(np.broadcast_to(table, (len(self.at), table.shape[-1])))
        return probabilities(self.centre, self.sigma, limits, self.group.shape)


def _pieces(layer: CodedLayer, planes: Array, position: int, groups: Sequence[Group]) -> Iterator[Piece]:
    """The codes of a position, group by group; only earlier positions of `planes` are read."""
    geometry, predictor = layer.geometry, layer.predictor
    centres = centre(geometry, planes, position, predictor.of_position(geometry, position)).reshape(-1)
    logarithms = magnitude(geometry, planes, position, _of_groups(layer, [group.magnitude for group in groups]))
    added = _of_groups(layer, [group.sigma for group in groups])
    sigmas = sigma(logarithms, int(predictor.sigmas[position]), added).reshape(-1)
    for index in np.unique(layer.groups[layer.groups >= 0]).tolist():
        channels = np.flatnonzero(layer.groups == index)
        every = (channels[:, None] * geometry.inputs + np.arange(geometry.inputs)).reshape(-1)
        for start in range(0, len(every), _ROWS):
            at = every[start : start + _ROWS]
            yield Piece(groups[index], at, centres[at], sigmas[at])


def pieces(layer: CodedLayer, planes: Array, groups: Sequence[Group]) -> Iterator[tuple[int, Piece]]:
    """All codes of a layer with what is expected of them, and their position."""
    for position in range(layer.geometry.positions):
        for piece in _pieces(layer, planes, position, groups):
            yield position, piece


def cost(piece: Piece, values: Array) -> float:
    """Bits that codes (less the middle) will take."""
    bits = 0.0
    for table, chosen in _tables(piece, values):
        share = table[np.arange(len(table)), chosen] / table.sum(axis=1)
        bits -= float(np.log2(share).sum())
    return bits


def _tables(piece: Piece, values: Array) -> list[tuple[Array, Array]]:
    """Probabilities and symbols: of the cells, if there is more than one, and within them."""
    group = piece.group
    symbols = ((values - (group.low - group.middle)) // group.stride).astype(np.int32)
    if group.count <= CELL:
        return [(piece.within(None), symbols)]
    cells = symbols // CELL
    return [(piece.cells(), cells), (piece.within(cells), symbols % CELL)]


def _decode_piece(coder: stream.stack.AnsCoder, piece: Piece) -> Array:
    group, family = piece.group, stream.model.Categorical(perfect=False)
    if group.count <= CELL:
        symbols = coder.decode(family, piece.within(None))
    else:
        cells = coder.decode(family, piece.cells())
        symbols = CELL * cells + coder.decode(family, piece.within(cells))
        if (symbols >= group.count).any():
            raise Damaged("a code is outside its grid")
    return np.asarray(symbols * group.stride + (group.low - group.middle))
