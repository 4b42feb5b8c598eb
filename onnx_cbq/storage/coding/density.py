"""Probabilities of codes as tables of integers, the same on every machine.

Coder and decoder must agree on every probability to the last bit. So the tables come from `decimal`, whose exp, ln and
sqrt are correctly rounded everywhere, and what is computed per code from them are sums and differences of integers and
one correctly rounded float32 product. No libm and no sum whose order could differ takes part.

    density   exp(-(|z| k)^beta), z in standard deviations; k makes the variance 1
    CDF[j]    of z = j / STEPS - REACH, as an integer, 0 .. 2 HALF
"""

from __future__ import annotations

from decimal import Context, Decimal, localcontext
from functools import cache

import numpy as np

from onnx_cbq.model import Array

# (beta, k = sqrt(Gamma(3 / beta) / Gamma(1 / beta))): Laplace, two between, and the normal distribution.
SHAPES = (("1", "1.4142"), ("1.3", "0.9881"), ("1.6", "0.8153"), ("2", "0.7071"))
REACH = 8
STEPS = 128
HALF = 1 << 20
# Added to the probability of every code, so that a surprise costs at most 18 bits.
FLOOR = 8
# Sigma and magnitudes are in steps of 1/8 octave.
OCTAVE = 8
SIGMAS = 128
_LOWEST_SIGMA = 40  # the index of sigma = 1 code
UNIT = 64  # predictions are in 1/64 of a code
END = 1 << 22  # an edge, in units, that has all codes on one side
LARGEST_MAGNITUDE = (1 << 14) - 1


@cache
def distribution(shape: int) -> Array:
    """The CDF of a shape at the middle of the steps, float32 [2 REACH STEPS + 1] of whole numbers."""
    with localcontext(Context(prec=20)):
        beta, k = (Decimal(text) for text in SHAPES[shape])
        # (|z| k)^beta by exp and ln, at the middle of each step
        middles = [(Decimal(2 * j + 1) / (2 * STEPS) * k).ln() * beta for j in range(REACH * STEPS)]
        masses = [int((-middle.exp()).exp().scaleb(18)) for middle in middles]
    sums = [0]
    for mass in masses:
        sums.append(sums[-1] + mass)
    half = np.array([HALF * partial // sums[-1] for partial in sums], np.int64)
    return np.concatenate([HALF - half[:0:-1], HALF + half]).astype(np.float32)


@cache
def reciprocals() -> Array:
    """1 / sigma in steps of a CDF per unit of a prediction, by the index of sigma, float32 [SIGMAS]."""
    with localcontext(Context(prec=20)):
        root = Decimal(2).sqrt().sqrt().sqrt()
        return np.array([float(Decimal(STEPS) / UNIT * root ** (_LOWEST_SIGMA - i)) for i in range(SIGMAS)], np.float32)


@cache
def logarithms() -> Array:
    """floor(8 log2 v), int32, for v below 2^14; 0 for 0. v^8 has one more bit than that."""
    return np.array([0, *((v**OCTAVE).bit_length() - 1 for v in range(1, LARGEST_MAGNITUDE + 1))], np.int32)


def probabilities(centre: Array, sigma: Array, edges: Array, shape: int) -> Array:
    """What each code of a row is worth, up to a factor per row: whole numbers, float32 [rows, codes].

    Args:
        centre: the predicted code, in units, float32 [rows] of whole numbers.
        sigma: indices of standard deviations, int [rows].
        edges: between the codes, in units, float32 [codes + 1] or [rows, codes + 1]; up to +-END.
        shape: of the distribution.
    """
    steps = edges - centre[:, None]
    steps *= reciprocals()[sigma][:, None]
    steps += np.float32(REACH * STEPS + 0.5)
    below = np.take(distribution(shape), steps.astype(np.intp), mode="clip")
    return np.asarray(below[:, 1:] - below[:, :-1] + np.float32(FLOOR))
