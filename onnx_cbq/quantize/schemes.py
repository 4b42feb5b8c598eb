"""Schemes that need nothing but the weights (Nayak et al., arXiv 1910.04877).

At n bits, with s the scale of a row:

    symmetric      codes -q .. q, q = 2^(n-1) - 1, s = max|w| / q
    asymmetric     codes 0 .. 2^n - 1 less a zero point, s = (max w - min w) / (2^n - 1), the range widened to hold 0
    power-of-two   symmetric, s raised to the next power of two
    log            levels +-max|w| 2^-k, k = 0 .. 2^(n-1) - 2, and 0: dense near zero, keeps the range
    mse            the grid, mid-tread or mid-rise, and the scale of least squared error

A row is a channel, or the whole weight of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from onnx_cbq.model import Array
from onnx_cbq.quantize.grid import Channels, quantize_rows, round_to_grid, row_blocks
from onnx_cbq.records import UNIFORM, Affine, Looked, WeightGrid, largest_code
from onnx_cbq.system.workers import in_threads

LEAST_BITS = 2
# 0, 1, -1, 1/2, -1/2, ... -2^-126: all levels of the log grid of 8 bits; the first 2^n - 1 are those of n bits.
_POWERS = np.exp2(-np.arange(127.0)).astype(np.float32)
LOG_LEVELS: Array = np.concatenate([np.zeros(1, np.float32), np.stack([_POWERS, -_POWERS], axis=1).reshape(-1)])


@dataclass(frozen=True)
class GridStatistics:
    """How well a grid fits the weights of one layer.

    Attributes:
        range: largest value less smallest one that is used, largest over the rows.
        zero_share: share of the weights on the level 0 (local sparsity).
        occupancy: share of the 2^n levels that are used, mean over the rows.
        snr_db: signal-to-noise ratio of the weights in decibels; None without noise.
    """

    range: float
    zero_share: float
    occupancy: float
    snr_db: float | None


def quantize_scheme(rows: Array, bits: int, scheme: str) -> Channels:
    """Quantize rows [rows, n] to `bits` bits by a scheme of `SCHEMES`, "mse" being that of `quantize_rows`."""
    return SCHEMES[scheme](np.asarray(rows, np.float32), bits)


def grid_statistics(rows: Array, quantized: Channels, bits: int) -> GridStatistics:
    """What the paper judges a scheme by: overall range, local sparsity and noise."""
    return statistics_of([(rows, quantized, bits)])


def statistics_of(parts: Iterable[tuple[Array, Channels, int]]) -> GridStatistics:
    """The statistics of a layer whose rows have several widths: rows, what became of them, and their width."""
    sums = [found for rows, quantized, bits in parts for found in in_threads(_Sums.of, _blocks(rows, quantized, bits))]
    return GridStatistics(
        range=max(found.range for found in sums),
        zero_share=sum(found.zeros for found in sums) / sum(found.weights for found in sums),
        occupancy=sum(found.occupancy for found in sums) / sum(found.rows for found in sums),
        snr_db=signal_to_noise(math.fsum(found.signal for found in sums), math.fsum(found.noise for found in sums)),
    )


def signal_to_noise(signal: float, noise: float) -> float | None:
    """Power of the weights over that of what quantization adds, in decibels; None if either is nothing."""
    return 10 * math.log10(signal / noise) if noise and signal else None


@dataclass(frozen=True)
class _Sums:
    """Of a block of rows: counts, the occupancy of all rows added up, and the power of weights and of noise."""

    rows: int
    weights: int
    range: float
    zeros: int
    occupancy: float
    signal: float
    noise: float

    @staticmethod
    def of(block: tuple[Array, Channels, int]) -> _Sums:
        rows, quantized, bits = block
        values = quantized.values
        used = [np.count_nonzero(np.bincount(codes.view(np.uint8), minlength=256)) for codes in quantized.codes]
        signal, noise = (float(np.square(part, dtype=np.float64).sum()) for part in (rows, rows - values))
        return _Sums(
            rows=len(rows),
            weights=rows.size,
            range=float((values.max(axis=1) - values.min(axis=1)).max()),
            zeros=int(np.count_nonzero(values == 0)),
            occupancy=sum(used) / 2**bits,
            signal=signal,
            noise=noise,
        )


def _blocks(rows: Array, quantized: Channels, bits: int) -> Iterator[tuple[Array, Channels, int]]:
    """A few rows at a time, so that what is made of them on the way is small."""
    for block in row_blocks(rows.shape):
        yield rows[block], quantized.some(block), bits


def _symmetric(rows: Array, bits: int) -> Channels:
    top = largest_code(bits, mid_rise=False)
    return _scaled(rows, _positive(np.abs(rows).max(axis=1) / top), bits)


def _power_of_two(rows: Array, bits: int) -> Channels:
    scale = _positive(np.abs(rows).max(axis=1) / largest_code(bits, mid_rise=False))
    return _scaled(rows, np.exp2(np.ceil(np.log2(scale))).astype(np.float32), bits)


def _scaled(rows: Array, scale: Array, bits: int) -> Channels:
    return _channels(round_to_grid(rows, scale, bits, mid_rise=False), scale, bits)


def _channels(codes: Array, scale: Array, bits: int, grid: WeightGrid = UNIFORM) -> Channels:
    return Channels(codes, scale, np.full(len(codes), bits, np.int8), grid)


def _asymmetric(rows: Array, bits: int) -> Channels:
    top = (1 << bits) - 1
    low, high = np.minimum(rows.min(axis=1), 0), np.maximum(rows.max(axis=1), 0)
    scale = _positive((high - low) / top)
    # Codes lie around 0, so that they fit into int8 at any width.
    middle = 1 << (bits - 1)
    zero_point = np.clip(np.rint(-low / scale), 0, top) - middle
    codes = np.clip(np.rint(rows / scale[:, None]) + zero_point[:, None], -middle, top - middle)
    return _channels(codes.astype(np.int8), scale, bits, Affine(zero_point.astype(np.int8)))


def _log(rows: Array, bits: int) -> Channels:
    scale = _positive(np.abs(rows).max(axis=1))
    allowed = np.argsort(LOG_LEVELS[: (1 << bits) - 1])
    levels = LOG_LEVELS[allowed]
    nearest = np.searchsorted((levels[1:] + levels[:-1]) / 2, rows / scale[:, None])
    return _channels(allowed[nearest].astype(np.uint8), scale, bits, Looked(LOG_LEVELS))


def _mse(rows: Array, bits: int) -> Channels:
    return quantize_rows(rows, np.full(len(rows), bits))


def _positive(scale: Array) -> Array:
    return np.where(scale > 0, scale, 1.0).astype(np.float32)


SCHEMES: Mapping[str, Callable[[Array, int], Channels]] = {
    "mse": _mse,
    "symmetric": _symmetric,
    "asymmetric": _asymmetric,
    "power-of-two": _power_of_two,
    "log": _log,
}
