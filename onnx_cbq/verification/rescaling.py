"""Channels that a tool has made larger in one layer and smaller by as much in the next (cross-layer equalization).

A tensor between the two is then another one than in the float model, and no error. With f the channels of the file's
tensor over those of the float model, the weights of the layer that reads it say whether it undoes them:
w^[o, c] = g[o] w[o, c] / f[c], where g are the factors of its own output, undone further behind. So layers are looked
at from the last one on. A layer whose scale is merely wrong is undone by none, and keeps its error.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onnx_cbq.graph import pairs as paired
from onnx_cbq.graph.layouts import spread
from onnx_cbq.graph.shapes import Shapes
from onnx_cbq.model import Array, Model
from onnx_cbq.records import Layers
from onnx_cbq.runtime import Feeds, Session
from onnx_cbq.verification.pairing import Pair, Pairs, renamed

# What keeps the channels apart, each for itself.
_KEEPING = frozenset(
    ("Relu", "Clip", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity", "Dropout", "Cast")
    + ("Flatten", "Reshape", "Squeeze", "Unsqueeze", "ReduceMean", "Pad")
)
# Factors count where the weights are nearer with them by 6 dB.
_NEARER = 4.0
# How far apart what weights and tensors say of a factor may be, to be the same.
_SAME = 0.05


@dataclass(frozen=True)
class Factors:
    """What the file's channels are, over those of the float model, at the input and the output of a layer: [channels].

    None where they are the same.
    """

    read: Array | None = None
    made: Array | None = None


def find_factors(pairs: Pairs, example: Feeds, layers: Layers, shapes: Shapes) -> list[Factors]:
    """The factors of every pair, by tensors of the float model and of the file on the same samples.

    `layers` are those of the float model, `shapes` those of its tensors.

    Cost: a run of both, and a pass over the weights and over the tensors.
    """
    values = Session(pairs.model.with_graph(outputs=pairs.tensors), "off").run(example)
    quantized = pairs.file.model
    others = Session(quantized.with_graph(outputs=pairs.file_tensors), "off").run(renamed(example, quantized))
    made: dict[str, Array] = {}
    outputs = {pair.use.output for pair in pairs.pairs}
    followed = {r.layer.name: (p, r) for p in paired.find_pairs(pairs.model, layers, shapes) for r in p.readers}
    found: list[Factors] = []
    for pair in reversed(pairs.pairs):
        own = made.get(pair.use.output)
        read = _undone(
            pairs, pair, _measured(pair, pair.of_inputs(values[pair.use.activation]), others[pair.read]), own
        )
        if read is not None:
            source = _maker(pairs.model, pair.use.activation, outputs)
            if source is not None and len(read) == _channels(pairs, source):
                made.setdefault(source, read)
            elif pair.layer.name in followed:
                made |= {name: made.get(name, value) for name, value in _made(pairs, *followed[pair.layer.name], read)}
        found.append(Factors(read, own))
    return found[::-1]


def _measured(pair: Pair, x: Array, other: Array) -> Array | None:
    """f[c] = sum(x^ x) / sum(x^2), by channel, NaN for one that says nothing; None for tensors of another form.

    A Gemm may stand for a MatMul of more axes, whose last are the same.
    """
    if pair.input_axis == -1 and x.size == other.size and x.shape[-1:] == other.shape[-1:]:
        other = other.reshape(x.shape)
    if x.shape != other.shape or not -x.ndim <= pair.input_axis < x.ndim:
        return None
    one, two = (
        np.moveaxis(part, pair.input_axis, 0).reshape(part.shape[pair.input_axis], -1).astype(np.float64)
        for part in (x, other)
    )
    power = np.square(one).sum(axis=1)
    factors = np.where(power > 0, (one * two).sum(axis=1) / np.where(power > 0, power, 1), np.nan)
    # A channel that is 0 in the file says nothing, and none is turned round.
    return np.where(factors > 0, factors, np.nan)


def _said_by_weights(pairs: Pairs, pair: Pair, channels: int, own: Array | None) -> Array:
    """f[c] = sum_o (g[o] w[o, c])^2 / sum_o g[o] w[o, c] w^[o, c], for channels that were silent; 1 where none fits."""
    rows, groups = pair.rows_of(pairs.weight(pair)), pair.groups
    plain = None if rows is None else expected_rows(pairs, pair, rows, Factors(None, own))
    if rows is None or plain is None or channels % groups or plain.shape[1] % (channels // groups):
        return np.ones(channels)
    # [outputs, weights] -> [groups, outputs of a group, inputs of a group, kernel]
    shape = groups, len(plain) // groups, channels // groups, -1
    both, power = ((plain * other).reshape(shape).sum(axis=(1, 3)).reshape(-1) for other in (rows, plain))
    return np.where(both > 0, power / np.where(both > 0, both, 1), 1.0)


def _undone(pairs: Pairs, pair: Pair, measured: Array | None, own: Array | None) -> Array | None:
    """The factors that the weights of the file make up for; None where they are those of the float model.

    Weights say the same as tensors, and more exactly than those of channels with little signal.
    """
    rows = pair.rows_of(pairs.weight(pair))
    if rows is None or measured is None:
        return None
    said = _said_by_weights(pairs, pair, len(measured), own)
    factors = np.where(np.isnan(measured), said, measured)
    plain, scaled = (expected_rows(pairs, pair, rows, Factors(read, own)) for read in (None, factors))
    if plain is None or scaled is None:
        return None
    if float(np.square(rows - scaled).sum()) * _NEARER >= float(np.square(rows - plain).sum()):
        return None
    return np.where(np.abs(said / factors - 1) < _SAME, said, factors)


def expected_rows(pairs: Pairs, pair: Pair, rows: Array, factors: Factors) -> Array | None:
    """What the rows of a weight in a file would be but for rounding: g[o] w[o, c] / f[c], [channels, weights], float64.

    `rows` are those of the file. Where a batch norm was left unfolded behind them, each has any factor, which is that
    of least squares. None where the factors are those of other channels than the rows have.
    """
    wanted = pair.own_rows(pair.layer.rows(pairs.model.weight(pair.layer.weight))).astype(np.float64)
    if factors.read is not None:
        groups, inputs = pair.groups, len(factors.read) // pair.groups
        fits = pair.layer.operator != "ConvTranspose" and inputs * groups == len(factors.read)
        if not fits or wanted.shape[1] % inputs:
            return None
        # [outputs, inputs of the group] -> one for each weight of a row, positions of the kernel behind inputs.
        of_group = np.repeat(factors.read.reshape(groups, inputs), len(wanted) // groups, axis=0)
        wanted = wanted / np.repeat(of_group, wanted.shape[1] // inputs, axis=1)
    if factors.made is not None:
        if len(factors.made) != len(wanted):
            return None
        wanted = wanted * factors.made[:, None]
    if not pair.is_direct:
        power = np.square(wanted).sum(axis=1, keepdims=True)
        wanted = wanted * np.where(power > 0, (rows * wanted).sum(axis=1, keepdims=True) / np.maximum(power, 1e-30), 1)
    return wanted


def _maker(model: Model, tensor: str, outputs: set[str]) -> str | None:
    """The output of a layer that a tensor comes from, with every channel for itself."""
    while tensor not in outputs:
        node = model.producers.get(tensor)
        if node is None or node.op_type not in _KEEPING:
            return None
        tensor = node.input[0]
    return tensor


def _made(pairs: Pairs, known: paired.Pair, reader: paired.Reader, read: Array) -> Iterator[tuple[str, Array]]:
    """The layer output whose channels a reader reads at last, behind heads and the like, and its factors by these."""
    for pair in pairs.pairs:
        channels = spread(reader.axis, np.arange(*known.channels))
        if pair.layer.name == known.maker.name and len(channels) == len(read):
            factors = np.ones(_channels(pairs, pair.use.output))
            if len(factors) == pair.layer.channels:
                factors[channels] = read
                yield pair.use.output, factors


def _channels(pairs: Pairs, output: str) -> int:
    """How many channels of a layer's output the file has."""
    pair = next(pair for pair in pairs.pairs if pair.use.output == output)
    return pair.use.output_shape[pair.use.channel_axis] if pair.outputs is None else len(pair.outputs)
