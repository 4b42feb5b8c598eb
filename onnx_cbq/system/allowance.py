"""How far a file may make a command go: limits that hold before anything is made, and one factor that raises them all.

A limit is relative to the size of the file, with a floor that no real model comes near. Whoever has a model that does
sets the environment variable `ONNX_CBQ_ALLOWANCE`: 10 makes every limit ten times as large.
"""

from __future__ import annotations

import math
import os

from onnx_cbq.errors import ConfigError

FACTOR = "ONNX_CBQ_ALLOWANCE"
_MOST_DOUBLINGS = 20


def allowed(limit: int) -> int:
    """`limit` times the factor that the user gave.

    Raises:
        ConfigError: the environment variable is no number above 0.
    """
    text = os.environ.get(FACTOR, "1")
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not 0 < factor < math.inf:
        raise ConfigError(f"{FACTOR}: expected a number above 0, by which limits are raised, got {text!r}")
    return int(limit * factor)


def advice(needed: int, limit: int) -> str:
    """What to do where `needed` is more than `limit` (which `allowed` gave): the end of a message."""
    doublings = (needed // max(limit, 1)).bit_length()
    if doublings > _MOST_DOUBLINGS:
        return "no machine could do that; export it again"
    return f"set {FACTOR}={2**doublings} if you trust the file"
