"""Changes of images that training can make, and how many views of an image they allow."""

from __future__ import annotations

import math

from onnx_cbq.settings import check, either

AUGMENTATIONS = ("flip", "shift", "mix", "cut")
# How many views of an image these allow: mirrored or not, and moved along a diagonal or not.
_VIEWS = {"flip": 2, "shift": 5}


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
