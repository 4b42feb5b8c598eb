"""The rows that a layer's weights multiply: what the layer's output is a linear function of.

For one output position z[c] = sum_k w[c, k] x[k] + b[c], where w[c] is the layer's row of channel c and x the values
under the window (Conv, ConvTranspose) or the vector (Gemm, MatMul; W of a recurrent node, whose R multiplies the hidden
states of the step before). A sample of the positions is enough for moments.
"""

from __future__ import annotations

import math

import numpy as np

from onnx_cbq.model import Array
from onnx_cbq.records import Layer, Use, Windows


def has_rows(layer: Layer) -> bool:
    """Whether the layer's output is a linear function of rows that its channels share, a group at a time.

    Not so for a MatMul with a stack of weight matrices, nor for a ConvTranspose whose groups share their scales, nor
    for a table, which multiplies nothing.
    """
    if layer.kind != "product":
        return layer.kind == "recurrent"
    if layer.operator == "ConvTranspose":
        return layer.repeats == 1 and layer.groups in (1, layer.channels)
    return layer.operator in ("Conv", "Gemm") or len(layer.weight_shape) == 2


def position_count(use: Use, samples: int) -> int:
    """Output positions per sample of one use; those of a table are what it looks up."""
    if use.lookup is not None:
        return math.prod(use.output_shape[: use.channel_axis]) // samples
    return math.prod(use.output_shape) // (use.output_shape[use.channel_axis] * samples)


def input_rows(layer: Layer, use: Use, x: Array, positions: int, random: np.random.Generator) -> Array:
    """The rows under at most `positions` output positions per sample, the same ones for all samples of the batch.

    x as the layer reads it -> [groups, rows, weights per channel], a sample's rows side by side. Cost: the values of
    the result, gathered once.
    """
    if layer.kind == "recurrent":
        return _steps(layer, use, x, positions, random)
    if use.windows is None:
        return _vectors(layer, use, x, positions, random)
    transposed = layer.operator == "ConvTranspose"
    outputs = use.windows.inputs if transposed else use.windows.outputs
    chosen = _choose(math.prod(outputs), positions, random)
    index = _window_index(use.windows, chosen, transposed=transposed)
    count, channels = x.shape[:2]
    values = x.reshape(count, channels, -1)
    # A window position outside of the input reads the zero behind its end.
    padded = np.concatenate([values, np.zeros((count, channels, 1), x.dtype)], axis=2)
    # [N, C, P, K] -> [groups, N P, C / groups * K]
    taken = padded[:, :, index].reshape(count, layer.groups, channels // layer.groups, *index.shape)
    return taken.transpose(1, 0, 3, 2, 4).reshape(layer.groups, count * len(chosen), -1)


def output_rows(layer: Layer, use: Use, z: Array, positions: int, random: np.random.Generator) -> Array:
    """What `z`, of the shape of the use's output, holds at the positions whose rows `input_rows` gives.

    -> [groups, rows, channels per group]. Not of a ConvTranspose or a recurrent node.
    """
    if use.windows is None:
        return _vectors(layer, use, z, positions, random)
    chosen = _choose(math.prod(use.windows.outputs), positions, random)
    taken = z.reshape(len(z), layer.groups, layer.channels // layer.groups, -1)[..., chosen]
    return taken.transpose(1, 0, 3, 2).reshape(layer.groups, len(z) * len(chosen), -1)


def mean_row(layer: Layer, use: Use, x: Array, weights: Array) -> Array:
    """The mean of the rows under all output positions, float64 [groups, weights per channel].

    `weights` say what the samples count, float32 [n]. Cost: a multiplication per value of x, added up over the batch in
    the type of x, since the mean of windows is the window of the mean.
    """
    if use.windows is None:
        matrix = _matrix(layer, use, x)
        return np.asarray((weights @ matrix.mean(axis=1, dtype=np.float64))[None] / weights.sum())
    total = weights.astype(x.dtype, copy=False) @ x.reshape(len(x), -1)
    mean = total.astype(np.float64).reshape(1, *x.shape[1:]) / weights.sum()
    transposed = layer.operator == "ConvTranspose"
    positions = math.prod(use.windows.inputs if transposed else use.windows.outputs)
    return np.asarray(input_rows(layer, use, mean, positions, np.random.default_rng(0)).mean(axis=1))


def mean_output(layer: Layer, use: Use, z: Array, weights: Array) -> Array:
    """The mean of `z`, of the shape of the use's output, over positions, and over samples by their weights [n].

    -> float64 [groups, channels per group].
    """
    if use.windows is None:
        of_samples = _matrix(layer, use, z).mean(axis=1, dtype=np.float64)
        return np.asarray((weights @ of_samples)[None] / weights.sum())
    total = weights.astype(z.dtype, copy=False) @ z.reshape(len(z), -1)
    of_channels = total.reshape(layer.groups, layer.channels // layer.groups, -1).mean(axis=2, dtype=np.float64)
    return np.asarray(of_channels / weights.sum())


def _vectors(layer: Layer, use: Use, x: Array, positions: int, random: np.random.Generator) -> Array:
    """The vectors that a Gemm or MatMul multiplies, [1, rows, n]."""
    matrix = _matrix(layer, use, x)
    if matrix.shape[1] > positions:
        matrix = matrix[:, _choose(matrix.shape[1], positions, random)]
    return matrix.reshape(1, -1, matrix.shape[-1])


def _matrix(layer: Layer, use: Use, x: Array) -> Array:
    """All vectors of each sample, [samples, positions, n]."""
    batch_axis = use.batch_axis
    if use.weight_index == 0:
        x = np.moveaxis(x, -2, -1)
        batch_axis = min(batch_axis, x.ndim - 2)
    # Samples and positions may share an axis, samples first.
    merged = use.output_shape[use.batch_axis] // layer.samples
    samples = x.shape[batch_axis] // merged
    return np.moveaxis(x, batch_axis, 0).reshape(samples, -1, x.shape[-1])


def _steps(layer: Layer, use: Use, x: Array, positions: int, random: np.random.Generator) -> Array:
    """What a recurrent node multiplies at its steps: the input [T, B, I], or the states before them, of [T, D, B, H].

    -> [1, rows, I] or [D, rows, H]. The last state of each direction is read by no step.
    """
    if use.weight_index == 1:
        parts = x[None]
    else:
        last = min(1, len(x) - 1)
        # The second direction begins at the end.
        cut = (x[: len(x) - last, 0], *(x[last:, d] for d in range(1, x.shape[1])))
        parts = np.stack(cut)
    # [D, T, B, n] -> [D, samples, positions, n]
    rows = parts.swapaxes(1, 2)
    merged = use.output_shape[use.batch_axis] // layer.samples
    rows = rows.reshape(len(rows), rows.shape[1] // merged, -1, rows.shape[3])
    if rows.shape[2] > positions:
        rows = rows[:, :, _choose(rows.shape[2], positions, random)]
    return rows.reshape(len(rows), -1, rows.shape[3])


def _choose(total: int, wanted: int, random: np.random.Generator) -> Array:
    return np.arange(total) if total <= wanted else np.sort(random.choice(total, wanted, replace=False))


def _window_index(sizes: Windows, chosen: Array, *, transposed: bool) -> Array:
    """Flat input index under each window position, int64 [positions, kernel size]; the number of inputs if outside."""
    outputs, inputs = (sizes.inputs, sizes.outputs) if transposed else (sizes.outputs, sizes.inputs)
    flat = np.zeros((len(chosen), 1), np.int64)
    inside = np.ones((len(chosen), 1), bool)
    for axis, position in enumerate(np.unravel_index(chosen, outputs)):
        steps = np.arange(sizes.kernel[axis]) * sizes.dilations[axis] - sizes.before[axis]
        stride = sizes.strides[axis]
        if transposed:
            # Input i reaches output o = i stride + k dilation - before.
            index, rest = np.divmod(position[:, None] - steps, stride)
            valid = rest == 0
        else:
            index = position[:, None] * stride + steps
            valid = np.ones(index.shape, bool)
        valid &= (index >= 0) & (index < inputs[axis])
        flat = (flat[:, :, None] * inputs[axis] + index[:, None, :]).reshape(len(chosen), -1)
        inside = (inside[:, :, None] & valid[:, None, :]).reshape(len(chosen), -1)
    return np.where(inside, flat, math.prod(inputs))
