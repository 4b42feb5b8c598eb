"""What is done to images before a net learns from them, and the views that the float net answers.

Images are tensors of four axes, samples first; `axis` is that of their channels, 1 or 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onnx_cbq.model import Array

# Images to learn from are shifted by at most this share of their height and width, views by this much.
_SHIFT, _STEP = 1 / 8, 1 / 32
# Along both diagonals, those nearest to the middle first.
_MOVES = ((0, 0), (1, 1), (-1, -1), (1, -1), (-1, 1))


@dataclass(frozen=True)
class View:
    """An image as it might have been taken as well: moved by so many thirty-seconds of its size, perhaps mirrored."""

    down: int = 0
    right: int = 0
    mirrored: bool = False

    def __call__(self, images: Tensor, axis: int) -> Tensor:
        """The images in this view."""
        height, width = _spatial(axis)
        if self.mirrored:
            images = images.flip(width)
        for along, steps in ((height, self.down), (width, self.right)):
            if steps:
                images = _moved(images, along, steps * max(round(images.shape[along] * _STEP), 1))
        return images


def views_of(augment: tuple[str, ...]) -> tuple[View, ...]:
    """All views that "flip" and "shift" allow; the first one is the image as it is."""
    moves = _MOVES if "shift" in augment else _MOVES[:1]
    sides = (False, True) if "flip" in augment else (False,)
    return tuple(View(*move, mirrored=side) for side in sides for move in moves)


def draw_views(augment: tuple[str, ...], count: int, random: np.random.Generator) -> tuple[View, ...]:
    """Some of them, as many mirrored as not; a single one is the image as it is."""
    views = views_of(augment)
    if count == 1:
        return views[:1]
    shuffled = [views[i] for i in random.permutation(len(views))]
    sides = [[view for view in shuffled if view.mirrored is side] for side in (False, True)]
    taken = (count + 1) // 2 if sides[1] else count
    return (*sides[0][:taken], *sides[1][: count - taken])


def augmented(images: Tensor, augment: tuple[str, ...], axis: int, random: np.random.Generator) -> Tensor:
    """Images changed at random, as `augment` says, in the order of `CHANGES`."""
    for name, change in CHANGES.items():
        images = change(images, axis, random) if name in augment else images
    return images


def _flip(images: Tensor, axis: int, random: np.random.Generator) -> Tensor:
    """Every second image mirrored."""
    mirrored = torch.from_numpy(random.random(len(images)) < 0.5)
    return torch.where(mirrored[:, None, None, None], images.flip(_spatial(axis)[1]), images)


def _shift(images: Tensor, axis: int, random: np.random.Generator) -> Tensor:
    """All images moved by up to an eighth."""
    for along in _spatial(axis):
        reach = round(images.shape[along] * _SHIFT)
        images = _moved(images, along, int(random.integers(0, 2 * reach + 1)) - reach)
    return images


def _mix(images: Tensor, axis: int, random: np.random.Generator) -> Tensor:  # noqa: ARG001
    """Every second image blended with another, which keeps the smaller part."""
    count = len(images)
    parts = np.where(random.random(count) < 0.5, 0.0, random.uniform(0, 0.5, count))
    others = torch.from_numpy(random.permutation(count))
    part = torch.from_numpy(parts.astype(np.float32))[:, None, None, None]
    return (1 - part) * images + part * images[others]


def _cut(images: Tensor, axis: int, random: np.random.Generator) -> Tensor:
    """A box of another image pasted into every second one."""
    count, (height, width) = len(images), _spatial(axis)
    boxes = torch.from_numpy(_boxes(count, images.shape[height], images.shape[width], random))
    others = torch.from_numpy(random.permutation(count))
    return torch.where(boxes.unsqueeze(axis), images[others], images)


# What `--augment` takes (`records.augmentation`), in the order in which images are changed.
CHANGES: Mapping[str, Callable[[Tensor, int, np.random.Generator], Tensor]] = {
    "flip": _flip,
    "shift": _shift,
    "mix": _mix,
    "cut": _cut,
}


def _spatial(axis: int) -> tuple[int, int]:
    """The axes of height and width."""
    return (2, 3) if axis == 1 else (1, 2)


def _moved(images: Tensor, along: int, by: int) -> Tensor:
    """Images moved along an axis against its direction; what comes in repeats the edge."""
    size = images.shape[along]
    return images.index_select(along, (torch.arange(size, device=images.device) + by).clamp(0, size - 1))


def _boxes(count: int, height: int, width: int, random: np.random.Generator) -> Array:
    """A box of the image's shape in every second one, bool [count, height, width], of at most half its area."""
    side = np.sqrt(np.where(random.random(count) < 0.5, 0.0, random.uniform(0, 0.5, count)))
    inside = []
    for size in (height, width):
        extent = np.floor(side * size)
        start = np.floor(random.random(count) * (size - extent + 1))[:, None]
        inside.append((np.arange(size) >= start) & (np.arange(size) < start + extent[:, None]))
    return np.asarray(inside[0][:, :, None] & inside[1][:, None, :])
