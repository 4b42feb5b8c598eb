"""Choose what an archive expects of its codes: groups of channels, and the numbers that predict a code from its kernel.

The predictor of a layer is the least-squares solution for the codes in units of their group's mean magnitude. Nothing
here need be repeated to read an archive: the numbers chosen are written into it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnx_cbq.model import Array
from onnx_cbq.storage.coding import ans, context
from onnx_cbq.storage.coding.ans import CodedLayer, Piece
from onnx_cbq.storage.coding.context import FRACTION, RANGE, RISE, TREAD, Geometry, Group, Predictor, grid
from onnx_cbq.storage.coding.density import OCTAVE, SHAPES, SIGMAS

# What a coefficient and a count cost in the archive; where they gain less, there are none.
_COEFFICIENT_BITS = 4
_COUNT_BITS = 16
_RIDGE = 1e-3
_KERNELS = 1 << 16  # of a layer, at most, that its predictor is fitted to
_CODES = 1 << 14  # of a group, at most, that its distribution is fitted to


@dataclass(frozen=True)
class StoredCodes:
    """The codes of a layer as they stand in the file, and the width of each channel."""

    codes: Array
    bits: Array


def fit(stored: Sequence[StoredCodes]) -> tuple[list[CodedLayer], list[Group]]:
    """How to code these layers."""
    geometries = [_geometry(layer) for layer in stored]
    kinds = [_kinds(g, layer) for g, layer in zip(geometries, stored, strict=True)]
    keys = sorted({key for layer in kinds for key in layer if key is not None})
    channels: dict[tuple[int, int], list[Array]] = {key: [] for key in keys}
    for geometry, layer, found in zip(geometries, stored, kinds, strict=True):
        planes = geometry.by_position(layer.codes)
        for channel, key in enumerate(found):
            if key is not None:
                channels[key].append(planes[:, channel].reshape(-1))
    groups = [_group(*key, np.concatenate(channels[key])) for key in keys]
    index: dict[tuple[int, int] | None, int] = {None: -1} | {key: i for i, key in enumerate(keys)}
    layers = [
        CodedLayer(g, np.array([index[key] for key in found]), Predictor.empty(g))
        for g, found in zip(geometries, kinds, strict=True)
    ]
    layers = [_with_predictor(layer, s.codes, groups) for layer, s in zip(layers, stored, strict=True)]
    return layers, _with_distributions(layers, stored, groups)


def _geometry(layer: StoredCodes) -> Geometry:
    """The axis of the channels; where two have their number, that along which more channels are on a grid."""
    shape = layer.codes.shape
    axes = [axis for axis in range(len(shape)) if shape[axis] == len(layer.bits)]
    fitting = [sum(key is None or key[1] != RANGE for key in _kinds(Geometry(shape, a), layer)) for a in axes]
    return Geometry(shape, axes[int(np.argmax(fitting))])


def _kinds(geometry: Geometry, layer: StoredCodes) -> list[tuple[int, int] | None]:
    """Width and kind of each channel's grid; None for a channel of zeros."""
    rows = geometry.rows(layer.codes).astype(np.int16)
    largest = np.abs(rows).max(axis=1)
    even = np.count_nonzero(rows % 2 == 0, axis=1).tolist()
    signed = layer.codes.dtype == np.int8  # others are positions in a table
    kinds: list[tuple[int, int] | None] = []
    for channel, width in enumerate(layer.bits.tolist()):
        if not largest[channel]:
            kinds.append(None)
            continue
        kind = RANGE
        if signed and not even[channel] and largest[channel] <= -grid(width, RISE)[0]:
            kind = RISE
        elif signed and largest[channel] <= -grid(width, TREAD)[0]:
            kind = TREAD
        kinds.append((width, kind))
    return kinds


def _group(width: int, kind: int, values: Array) -> Group:
    low, count, middle = *grid(width, kind), 0
    if kind == RANGE:
        low, middle = int(values.min()), int(np.rint(values.mean()))
        count = max(int(values.max()) - low + 1, 2)
    magnitude = round(16 * float(np.abs(values.astype(np.int16) - middle).mean()))
    return Group(width, kind, low, count, middle, max(magnitude, 1))


def _with_predictor(layer: CodedLayer, codes: Array, groups: Sequence[Group]) -> CodedLayer:
    """The layer with its least-squares coefficients and what deviation they leave."""
    geometry = layer.geometry
    coded = np.flatnonzero(layer.groups >= 0)
    if not coded.size:
        return layer
    size = np.array([group.magnitude / 16 for group in groups])[layer.groups[coded]]
    planes = ans.centred(layer, geometry.by_position(codes), groups)[:, coded]
    prior = np.rint(16 * size).astype(np.int32)
    kernels = planes.reshape(len(planes), -1) / np.repeat(size, geometry.inputs)
    kernels = kernels[:, :: -(-kernels.shape[1] // _KERNELS)]
    covariance = kernels @ kernels.T / kernels.shape[1]
    coefficients, sigmas = [], []
    for k, near in enumerate(map(list, geometry.neighbours)):
        inner = covariance[np.ix_(near, near)]
        ridge = _RIDGE * np.trace(covariance) / len(planes) * np.eye(len(near))
        solved = np.linalg.solve(inner + ridge, covariance[near, k]) if near else np.zeros(0)
        left = covariance[k, k] - 2 * solved @ covariance[near, k] + solved @ inner @ solved
        gain = planes[k].size / 2 * np.log2(max(covariance[k, k], 1e-9) / max(left, 1e-9))
        if gain < _COEFFICIENT_BITS * len(near):
            solved = np.zeros(len(near))
        rounded = np.clip(np.rint(solved * FRACTION), -127, 127).astype(np.int8)
        coefficients.append(rounded)
        expected = context.centre(geometry, planes, k, rounded) / 64
        spread = 2.0 ** (context.magnitude(geometry, planes, k, prior) / OCTAVE) / 16 * size[:, None]
        deviation = float(np.mean((planes[k] - expected) ** 2 / spread))
        sigmas.append(np.clip(round(OCTAVE / 2 * np.log2(max(deviation, 1e-9))), -127, 127))
    return replace(layer, predictor=Predictor(np.concatenate(coefficients), np.array(sigmas, np.int8)))


def _with_distributions(
    layers: Sequence[CodedLayer], stored: Sequence[StoredCodes], groups: Sequence[Group]
) -> list[Group]:
    """The groups with the deviation and the shape that make their codes shortest."""
    # A deviation is the geometric mean of the group's and the kernel's magnitude, both in 1/16 of a code.
    start = [round(OCTAVE + OCTAVE / 2 * np.log2(group.magnitude)) for group in groups]
    groups = [replace(group, sigma=sigma) for group, sigma in zip(groups, start, strict=True)]
    found: dict[Group, list[tuple[Piece, Array]]] = {group: [] for group in groups}
    for layer, entry in zip(layers, stored, strict=True):
        planes = ans.centred(layer, layer.geometry.by_position(entry.codes), groups)
        for position, piece in ans.pieces(layer, planes, groups):
            found[piece.group].append((piece, planes[position].reshape(-1)[piece.at]))
    return [_best_distribution(group, samples) for group, samples in found.items()]


def _best_distribution(group: Group, samples: Sequence[tuple[Piece, Array]]) -> Group:
    centres = np.concatenate([piece.centre for piece, _ in samples])
    sigmas = np.concatenate([piece.sigma for piece, _ in samples])
    values = np.concatenate([value for _, value in samples])
    some = slice(None, None, -(-len(values) // _CODES))

    def bits(added: int, shape: int) -> float:
        shifted = np.clip(sigmas[some] + added, 0, SIGMAS - 1)
        piece = Piece(replace(group, shape=shape), values[some], centres[some], shifted)
        return ans.cost(piece, values[some])

    plain = replace(group, counts=_counts(group, values))
    best = (np.inf, 0, 0)
    for shape in range(len(SHAPES)):
        added = best[1]
        lowest = bits(added, shape)
        for step in (1, -1):
            # What is added to the index is stored as a byte, however narrow the codes are.
            while 0 <= group.sigma + added + step < SIGMAS and (found := bits(added + step, shape)) < lowest:
                lowest, added = found, added + step
        best = min(best, (lowest, added, shape))
    counted = len(values) * _entropy(plain.counts) + _COUNT_BITS * group.count
    if counted < best[0] * len(values) / len(values[some]):
        return plain
    return replace(group, sigma=group.sigma + best[1], shape=best[2])


def _counts(group: Group, values: Array) -> tuple[int, ...]:
    """How often each code occurs, the most frequent 65,535 times; one that occurs has at least 1."""
    symbols = (values.astype(np.int64) - (group.low - group.middle)) // group.stride
    counts = np.bincount(symbols, minlength=group.count)
    return tuple(context.stored_counts(counts).tolist())


def _entropy(counts: tuple[int, ...]) -> float:
    """Bits per code."""
    share = np.array([count for count in counts if count]) / sum(counts)
    return float(-(share * np.log2(share)).sum())
