"""Names that settings may take, and how settings are checked."""

from __future__ import annotations

from onnx_cbq.errors import ConfigError

METHODS = ("rate-distortion", "cbq", "differentiable", "uniform")
GRANULARITIES = ("channel", "layer")
ROUNDINGS = ("compensate", "nearest")
# Averages of bits of the trade-off curve.
CURVE = (1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
RANGES = ("mse", "percentile", "minmax")
STORAGES = ("int8", "packed", "archive")
CODERS = ("ans", "huffman")
CODEBOOKS = ("uniform", "kmeans", "hessian-kmeans", "ecsq")
SCOPES = ("layer", "net")
AUGMENTATIONS = ("flip", "shift", "mix", "cut")
MOST_BITS = 8


def check(holds: bool, name: str, expected: str, value: object) -> None:  # noqa: FBT001
    """Refuse a setting that does not hold.

    Raises:
        ConfigError: with its name, what was expected and what it is.
    """
    if not holds:
        raise ConfigError(f"{name}: expected {expected}, got {value}")


def either(names: tuple[str, ...]) -> str:
    """Names that one can choose from, as a message lists them."""
    return " or ".join(names)
