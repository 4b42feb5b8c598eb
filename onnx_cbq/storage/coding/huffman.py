"""Codes of weights by Huffman codes, one for each group of channels, for comparison.

As in Choi et al., "Towards the Limit of Network Quantization", arXiv 1612.01543; a code word has at least one bit, and
no fractions of one.

    varint  bytes of the counts, as they are stored
    -       how often each level occurs, scaled to 16 bits, little-endian, group after group, by zstandard
    -       code words of all layers, channel by channel
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from constriction import symbol

from onnx_cbq.model import Array
from onnx_cbq.storage.coding.ans import CodedLayer
from onnx_cbq.storage.coding.container import Cursor, compress, expand, write_varints
from onnx_cbq.storage.coding.context import Group, stored_counts
from onnx_cbq.storage.coding.damage import Damaged

# Whether codes depend on what is expected of them.
PREDICTS = False


def encode(layers: Sequence[CodedLayer], weights: Sequence[Array], groups: Sequence[Group]) -> bytes:
    """The codes of all layers, each in the shape of its weight."""
    runs = [run for layer, weight in zip(layers, weights, strict=True) for run in _runs(layer, weight, groups)]
    counts = [np.zeros(group.count, np.int64) for group in groups]
    for index, symbols in runs:
        counts[index] += np.bincount(symbols, minlength=groups[index].count)
    scaled = [stored_counts(count).astype("<u2") for count in counts]
    trees = [symbol.huffman.EncoderHuffmanTree(count.astype(np.float64)) for count in scaled]
    coder = symbol.QueueEncoder()
    for index, symbols in runs:
        for level in symbols.tolist():
            coder.encode_symbol(level, trees[index])
    stored = compress(b"".join(count.tobytes() for count in scaled))
    words = np.asarray(coder.get_compressed()[0], "<u4").tobytes()
    return write_varints([len(stored)]) + stored + words


def decode(layers: Sequence[CodedLayer], groups: Sequence[Group], content: bytes) -> Iterator[Array]:
    """The codes of one layer after the other, int16 in the shape of its weight.

    Raises:
        Damaged: the content is no codes of such layers.
    """
    cursor = Cursor(content)
    levels = [group.count for group in groups]
    counts = np.frombuffer(expand(cursor.take(cursor.varint()), 2 * sum(levels)), "<u2").astype(np.float64)
    starts = np.cumsum([0, *levels])
    trees = [
        symbol.huffman.DecoderHuffmanTree(counts[start : start + count])
        for start, count in zip(starts[:-1].tolist(), levels, strict=True)
    ]
    words = cursor.rest()
    if len(words) % 4:
        raise Damaged("the code words are cut short")
    coder = symbol.QueueDecoder(np.frombuffer(words, "<u4").astype(np.uint32))
    for layer in layers:
        geometry = layer.geometry
        rows = np.zeros((geometry.channels, geometry.inputs * geometry.positions), np.int16)
        for channel, index in enumerate(layer.groups.tolist()):
            if index >= 0:
                rows[channel] = _decode_row(coder, trees[index], groups[index], rows.shape[1])
        yield geometry.from_rows(rows)


def _decode_row(coder: symbol.QueueDecoder, tree: symbol.huffman.DecoderHuffmanTree, group: Group, size: int) -> Array:
    try:
        symbols = [coder.decode_symbol(tree) for _ in range(size)]
    except (ValueError, AssertionError):
        raise Damaged("the code words end too early") from None
    return np.array(symbols, np.int16) * group.stride + group.low


def _runs(layer: CodedLayer, weight: Array, groups: Sequence[Group]) -> Iterator[tuple[int, Array]]:
    """Group and symbols of each channel."""
    rows = layer.geometry.rows(weight).astype(np.int64)
    for channel, index in enumerate(layer.groups.tolist()):
        if index >= 0:
            yield index, (rows[channel] - groups[index].low) // groups[index].stride
