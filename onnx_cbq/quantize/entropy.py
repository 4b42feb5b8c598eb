"""Rounding against what a code costs once it is entropy-coded (Choi et al., ICLR 2017, arXiv 1612.01543, section 4).

The codes of a row are whole numbers -127 .. 127 times a spacing s; there are always enough of them, and the spacing
decides the rate. A weight whose value is v, once the others have done their part, takes the code of least

    (v - q s)^2 weight + price bits(q),      bits(q) = -log2 p(q)

where `weight` is what a squared error of that column adds to the row's (see `compensate`) and `price` what a bit is
worth in such units. p are the frequencies of the row's codes in the round before, made alike for q and -q, with a
two-sided geometric distribution of the same mean magnitude for what occurs seldom. Where weights meet in 16-bit lanes,
codes are held within bounds (see `records.lanes`).

Spacings have few binary digits: those that are written take room beside the codes, and codes suit any spacing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnx_cbq.model import Array
from onnx_cbq.quantize.compensate import Box
from onnx_cbq.quantize.digits import DIGITS, few_digits
from onnx_cbq.quantize.fit import Fitted
from onnx_cbq.quantize.grid import Channels
from onnx_cbq.quantize.problem import Problem
from onnx_cbq.quantize.settings import RoundingConfig

LARGEST = 127
# Rounds of compensation, each with the frequencies that the one before left.
_ROUNDS = 2
# How many codes the geometric distribution counts as, beside those of the row.
_PRIOR = 8.0
# A row without any other code than 0 still expects one now and then.
_LEAST_MAGNITUDE = 0.02
_CHUNK_BYTES = 256 << 20


def widths(codes: Array) -> Array:
    """The narrowest width b whose codes -(2^(b-1) - 1) .. 2^(b-1) - 1 hold a row's [channels, n], int8 [channels]."""
    largest = np.abs(codes.astype(np.int16)).max(axis=1, initial=0)
    return np.where(largest > 0, np.ceil(np.log2(largest + 1.0)) + 1, 0).astype(np.int8)


def code_lengths(codes: Array) -> Array:
    """What each code would cost in bits, from the codes that rows have: [..., n] -> float32 [..., 2 LARGEST + 1]."""
    flat = codes.reshape(-1, codes.shape[-1]).astype(np.int64) + LARGEST
    size = 2 * LARGEST + 1
    counts = np.bincount((flat + size * np.arange(len(flat))[:, None]).reshape(-1), minlength=size * len(flat))
    found = counts.reshape(*codes.shape[:-1], size).astype(np.float64)
    alike = (found + found[..., ::-1]) / 2
    mean = np.abs(codes).mean(axis=-1, dtype=np.float64)[..., None] + _LEAST_MAGNITUDE
    expected = (mean / (1 + mean)) ** np.abs(np.arange(-LARGEST, LARGEST + 1))
    expected /= expected.sum(axis=-1, keepdims=True)
    shares = (alike + _PRIOR * expected) / (codes.shape[-1] + _PRIOR)
    return np.asarray(-np.log2(np.maximum(shares, np.finfo(np.float32).tiny)), np.float32)


def code_bits(codes: Array) -> float:
    """Bits of codes [channels, n] if each row were coded with `code_lengths`. Cost: a few passes."""
    return float(np.take_along_axis(code_lengths(codes), codes.astype(np.int64) + LARGEST, 1).sum())


def spacings_within(rows: Array, spacings: Array) -> Array:
    """Spacings [channels] for rows [channels, n]: 4 times the largest weight, where all codes are 0, down to a 127th.

    A row that nothing depends on would have any; and a few weights cost little however fine they are, so that their
    spacings could shrink until every code is the last one.
    """
    largest = np.maximum(np.abs(rows).max(axis=1), np.finfo(np.float32).tiny * LARGEST)
    return np.clip(spacings, largest / LARGEST, 4 * largest)


def fit_entropy(problem: Problem, spacings: Array, prices: Array, config: RoundingConfig) -> Fitted:
    """Round every channel with its spacing and price, both [channels]; the spacings are then refitted to the codes.

    They are brought within what the aims can use (`spacings_within`), and to few digits.

    Cost: some 5 n multiplications per weight.
    """
    groups, rows, size = problem.aim.shape
    chunk = max(_CHUNK_BYTES // (4 * groups * (4 * size + 2 * LARGEST)), 1)
    # Not down: the largest weight would be beyond the last code.
    within = few_digits(spacings_within(problem.aim.reshape(-1, size), spacings), DIGITS, up=True)
    grouped = [np.asarray(part, np.float32).reshape(groups, rows) for part in (within, prices)]
    parts = []
    for start in range(0, rows, chunk):
        s = slice(start, start + chunk)
        parts.append(_fit(problem.rows(s), grouped[0][:, s], grouped[1][:, s], config))
    codes, scale, error = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
    codes = codes.reshape(groups * rows, size)
    return Fitted(Channels(codes, scale.reshape(-1), widths(codes)), error.reshape(-1))


def _fit(problem: Problem, scale: Array, prices: Array, config: RoundingConfig) -> tuple[Array, Array, Array]:
    wanted = problem.aim / scale[:, :, None]
    box = _box(problem, wanted)
    codes = np.clip(np.rint(wanted), *(box or (-LARGEST, LARGEST)))
    for _ in range(_ROUNDS):
        levels = problem.compensate(_Rounder(scale, prices, code_lengths(codes)), box)[0]
        codes = np.rint(levels / scale[:, :, None])
    for _ in range(config.refits):
        lengths = code_lengths(codes)
        scale = few_digits(problem.refitted(levels, scale)[0], DIGITS)
        box = _box(problem, codes)
        levels = problem.descend(codes * scale[:, :, None], _Rounder(scale, prices, lengths), config.sweeps, box)
        codes = np.rint(levels / scale[:, :, None])
    return codes.astype(np.int8), scale, problem.error(levels)


def _box(problem: Problem, codes: Array) -> Box | None:
    """Bounds near `codes` [g, r, n], where the problem has any."""
    if problem.lanes is None and not problem.positive:
        return None
    ends = (np.full(codes.shape, float(end)) for end in (-LARGEST, LARGEST))
    low, high = problem.lanes.box(codes) if problem.lanes is not None else ends
    return np.minimum(np.maximum(low, 0), high) if problem.positive else low, high


@dataclass(frozen=True)
class _Rounder:
    """Chooses codes by error and length: spacing and price of each row [g, r], code lengths [g, r, codes]."""

    scale: Array
    prices: Array
    lengths: Array

    def __call__(self, values: Array, weight: Array, bounds: Box | None = None) -> Array:
        below = np.clip(np.floor(values / self.scale), -LARGEST, LARGEST - 1)
        # The two codes around the value, the next one towards zero, and zero.
        inner = below + np.where(below >= 0, -1, 2)
        candidates = np.stack([below, below + 1, np.where(below == -1, 0, inner), np.zeros_like(below)], axis=2)
        if bounds is not None:
            candidates = np.clip(candidates, *(end[:, :, None] for end in bounds))
        lengths = np.take_along_axis(self.lengths, candidates.astype(np.int64) + LARGEST, 2)
        error = np.square(values[:, :, None] - candidates * self.scale[:, :, None])
        cost = error * np.asarray(weight)[:, :, None] + self.prices[:, :, None] * lengths
        best = np.take_along_axis(candidates, cost.argmin(axis=2)[:, :, None], 2)[:, :, 0]
        return np.asarray(best * self.scale, np.float32)
