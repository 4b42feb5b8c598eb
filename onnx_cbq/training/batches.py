"""What a net learns from: the card's samples, perhaps mirrored or shifted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from onnx_cbq.calibration.samples import Indices, Samples
from onnx_cbq.model import Array

# Images are shifted by at most this share of their height and width.
_SHIFT = 1 / 8


@dataclass(frozen=True)
class TrainingBatch:
    """Inputs by name, and labels [samples]."""

    feeds: Mapping[str, Tensor]
    labels: Tensor


@dataclass(frozen=True)
class Batches:
    """Batches of samples in an order that the seed decides.

    Attributes:
        samples: where they are read.
        indices: the samples to learn from.
        size: of a batch.
        augment: "flip" (mirror every second image), "shift" (move images by up to an eighth), "mix" (blend every second
            image with another, which keeps the smaller part) and "cut" (paste a box of another, at most half as large,
            into every second image; Yun et al., CutMix, ICCV 2019), for inputs [samples, channels, height, width].
        device: where the tensors go.
    """

    samples: Samples
    indices: Indices
    size: int
    augment: tuple[str, ...]
    device: torch.device

    def endless(self, seed: int, start: int = 0) -> Iterator[TrainingBatch]:
        """Batches for ever, from number `start` on: the same whether or not those in front of it were made."""
        size = self.samples.fixed_batch or min(self.size, len(self.indices))
        per_epoch = max(len(self.indices) // size, 1)
        step = start
        while True:
            epoch, position = divmod(step, per_epoch)
            order = np.random.default_rng((seed, epoch)).permutation(self.indices)
            chosen = np.resize(order[position * size : (position + 1) * size], size)
            yield self._batch(chosen, np.random.default_rng((seed, epoch, position)))
            step += 1

    def in_order(self) -> Iterator[TrainingBatch]:
        """Every sample once, as it is; with a fixed batch the last one is filled up and counts double."""
        size = self.samples.fixed_batch or self.size
        for start in range(0, len(self.indices), size):
            chosen = self.indices[start : start + size]
            if self.samples.fixed_batch:
                chosen = np.resize(chosen, size)
            yield self._batch(chosen, None)

    def _batch(self, chosen: Indices, random: np.random.Generator | None) -> TrainingBatch:
        feeds = {name: torch.from_numpy(value) for name, value in self.samples.read(chosen).items()}
        if random is not None:
            feeds = {name: self._augmented(value, random) for name, value in feeds.items()}
        labels = torch.from_numpy(np.asarray(self.samples.labels[chosen], np.int64))
        return TrainingBatch({name: value.to(self.device) for name, value in feeds.items()}, labels.to(self.device))

    def _augmented(self, images: Tensor, random: np.random.Generator) -> Tensor:
        if images.dim() != 4:
            return images
        if "flip" in self.augment:
            mirrored = torch.from_numpy(random.random(len(images)) < 0.5)
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        if "shift" in self.augment:
            height, width = images.shape[2:]
            reach = round(height * _SHIFT), round(width * _SHIFT)
            padded = functional.pad(images, (reach[1], reach[1], reach[0], reach[0]), mode="replicate")
            top, left = (int(random.integers(0, 2 * r + 1)) for r in reach)
            images = padded[:, :, top : top + height, left : left + width]
        if "mix" in self.augment:
            parts = np.where(random.random(len(images)) < 0.5, 0.0, random.uniform(0, 0.5, len(images)))
            others = torch.from_numpy(random.permutation(len(images)))
            part = torch.from_numpy(parts.astype(np.float32))[:, None, None, None]
            images = (1 - part) * images + part * images[others]
        if "cut" in self.augment:
            boxes = torch.from_numpy(_boxes(images.shape[0], images.shape[2], images.shape[3], random))
            others = torch.from_numpy(random.permutation(len(images)))
            images = torch.where(boxes[:, None], images[others], images)
        return images


def _boxes(count: int, height: int, width: int, random: np.random.Generator) -> Array:
    """A box of the image's shape in every second one, bool [count, height, width], of at most half its area."""
    side = np.sqrt(np.where(random.random(count) < 0.5, 0.0, random.uniform(0, 0.5, count)))
    inside = []
    for size in (height, width):
        extent = np.floor(side * size)
        start = np.floor(random.random(count) * (size - extent + 1))[:, None]
        inside.append((np.arange(size) >= start) & (np.arange(size) < start + extent[:, None]))
    return np.asarray(inside[0][:, :, None] & inside[1][:, None, :])
