"""Numbers of few binary digits, of which an archive has next to nothing beyond these: it keeps equal bytes together."""

from __future__ import annotations

import numpy as np

from onnx_cbq.model import Array

# Of a scale, behind the first: it is off by 0.8 % at most.
DIGITS = 6


def few_digits(values: Array, digits: int, *, up: bool = False) -> Array:
    """The nearest float32 values with so many binary digits behind the first one; or the next ones `up`."""
    mantissa, exponent = np.frexp(np.asarray(values, np.float32))
    whole = (np.ceil if up else np.rint)(np.ldexp(mantissa, digits + 1))
    return np.asarray(np.ldexp(whole, exponent - digits - 1), np.float32)


def largest_steps(allowed: Array, units: Array | None = None) -> Array:
    """The largest powers of two up to the steps `allowed`, float64; of `units` that many, at least one of each.

    Where next to nothing is allowed there is no step: 0, or the unit.
    """
    least = float(np.finfo(np.float32).tiny)
    counts = np.asarray(allowed, np.float64) / (1.0 if units is None else np.maximum(units, least))
    powers = np.where(counts > least, np.exp2(np.floor(np.log2(np.maximum(counts, least)))), 0)
    return powers if units is None else np.maximum(powers, 1) * units


def on_steps(values: Array, steps: Array) -> Array:
    """The nearest multiples of `steps`, float32; where a step is 0, the values themselves."""
    safe = np.where(steps > 0, steps, 1)
    return np.asarray(np.where(steps > 0, np.rint(values / safe) * safe + 0.0, values), np.float32)
