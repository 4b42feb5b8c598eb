"""Spacings of entropy-coded grids: the same slope of loss over rate for every channel.

Let the loss be a_c times the squared error of channel c's row, and u_c the mean over its weights of what a squared
error costs once the others make up for it. With spacing s the error of a weight is uniform, s^2 / 12 on average, and
halving the spacing costs one bit per weight (high rate). Loss plus lambda times rate is least where

    a_c u_c s_c^2 ln 2 / 6 = lambda         so      s_c = tau / sqrt(a_c u_c),     lambda = tau^2 ln 2 / 6

and tau alone decides the rate. Where codes are chosen by their length, too, a bit is worth `SHARE` of lambda: at low
rates the high-rate lambda overestimates what a bit buys.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from onnx_cbq.model import Array

SHARE = 0.25
# A channel whose loss was estimated as next to nothing counts as this share of its layer's mean.
LEAST_SENSITIVITY = 0.1
_BISECTIONS = 30


def spacings_and_prices(sensitivity: Array, weights: Array, tau: float) -> tuple[Array, Array]:
    """Spacings s_c and prices of a bit in units of the row's squared error, [channels].

    Args:
        sensitivity: a_c, what a row's squared error costs, [channels].
        weights: u_c [channels].
        tau: decides the rate.
    """
    tiny = np.finfo(np.float64).tiny
    cost = np.maximum(sensitivity, max(LEAST_SENSITIVITY * float(sensitivity.mean()), tiny))
    price = SHARE * tau**2 * np.log(2) / 6
    spacings = tau / np.sqrt(np.maximum(cost * weights, tiny))
    # Rows of zeros would have next to none, and float32 no number for it.
    return np.maximum(spacings, np.finfo(np.float32).tiny), price / cost


def find_tau(rate: Callable[[float], float], wanted: float, start: float) -> float:
    """The tau at which a falling `rate` reaches what is wanted, to a few parts in a thousand."""
    low = high = start
    while rate(low) < wanted and low > start * 1e-12:
        low /= 4
    while rate(high) > wanted and high < start * 1e12:
        high *= 4
    for _ in range(_BISECTIONS):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if rate(middle) > wanted else (low, middle)
        if high / low < 1.002:
            break
    return high


def reference_tau(sensitivity: Sequence[Array], weights: Sequence[Array], spreads: Sequence[Array]) -> float:
    """A tau of about two bits per weight: spacings as large as the standard deviation of the weights, `spreads`."""
    cost = np.concatenate([a * u * np.square(s) for a, u, s in zip(sensitivity, weights, spreads, strict=True)])
    return float(np.sqrt(max(float(cost.mean()), np.finfo(np.float64).tiny)))
