"""What x86 without VNNI computes: products of uint8 and int8 added in pairs in 16 bits with saturation.

Nothing of the package is used: it is the oracle for what saturates, on whatever processor the tests run.
"""

from __future__ import annotations

import numpy as np

from onnx_cbq.model import Array

LOWEST, HIGHEST = -32768, 32767


def saturating_product(activations: Array, weights: Array) -> Array:
    """uint8 [m, k] times int8 [k, n] as `vpmaddubsw` and `vpmaddwd` do it, int64 [m, n].

    Numbers 2j and 2j + 1 of the k are added with saturation, the pairs then without.
    """
    k = activations.shape[1]
    padded = k + k % 2
    a = np.zeros((len(activations), padded), np.int64)
    b = np.zeros((padded, weights.shape[1]), np.int64)
    a[:, :k], b[:k] = activations, weights
    # [m, k/2, 2, 1] x [1, k/2, 2, n]
    products = a.reshape(len(a), -1, 2, 1) * b.reshape(1, -1, 2, b.shape[1])
    return np.asarray(np.clip(products.sum(axis=2), LOWEST, HIGHEST).sum(axis=1))


def exact_product(activations: Array, weights: Array) -> Array:
    """The same without saturation."""
    return np.asarray(activations.astype(np.int64) @ weights.astype(np.int64))


def patches(codes: Array, kernel: tuple[int, ...]) -> Array:
    """All windows of stride 1 over uint8 [c, *sizes], channels behind positions: [windows, positions x c]."""
    axes = tuple(range(1, codes.ndim))
    windows = np.lib.stride_tricks.sliding_window_view(codes, kernel, axis=axes)
    # [c, *outputs, *kernel] -> [*outputs, *kernel, c]
    return np.moveaxis(windows, 0, -1).reshape(-1, int(np.prod(kernel)) * codes.shape[0])


def columns(weights: Array) -> Array:
    """Weights of a Conv [o, c, *kernel] in the same order: [positions x c, o]."""
    return np.moveaxis(weights, 1, -1).reshape(len(weights), -1).T
