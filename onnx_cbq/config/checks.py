"""Names that settings may take, and how settings are checked."""

from __future__ import annotations

import math

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
# How many views of an image these allow: mirrored or not, and moved along a diagonal or not.
_VIEWS = {"flip": 2, "shift": 5}
MOST_BITS = 8


def check(holds: bool, name: str, expected: str, value: object) -> None:  # noqa: FBT001
    """Refuse a setting that does not hold.

    Raises:
        ConfigError: with its name, what was expected and what it is.
    """
    if not holds:
        raise ConfigError(f"{name}: expected {expected}, got {value}")


def most_views(augment: tuple[str, ...]) -> int:
    """How many views of an image a net can be asked for, if these changes leave what it shows."""
    return math.prod(_VIEWS.get(name, 1) for name in set(augment))


def check_augmentation(augment: tuple[str, ...], views: int) -> None:
    """Refuse unknown changes of images, and more views than they allow.

    Raises:
        ConfigError: with what was expected and what it is.
    """
    for name in augment:
        check(name in AUGMENTATIONS, "--augment", either(AUGMENTATIONS), name)
    most, given = most_views(augment), " and ".join(f"--augment {name}" for name in augment if name in _VIEWS)
    expected = f"1 to {most} with {given}" if given else "1 without --augment flip or shift"
    check(1 <= views <= most, "--views", expected, views)


def either(names: tuple[str, ...]) -> str:
    """Names that one can choose from, as a message lists them."""
    return " or ".join(names)
