"""What a net learns from: the card's samples, perhaps changed at random, and what the float net answers to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from onnx_cbq.calibration.samples import Indices, Samples
from onnx_cbq.training.images import View, augmented, draw_views, views_of


@dataclass(frozen=True)
class TrainingBatch:
    """Inputs by name, and labels [samples, ...].

    Attributes:
        views: those that the float net answers.
        axes: of the channels, for inputs that are images.
    """

    feeds: Mapping[str, Tensor]
    labels: Tensor
    views: tuple[View, ...] = (View(),)
    axes: Mapping[str, int] = field(default_factory=dict)

    def taught(self, teach: Callable[[Mapping[str, Tensor]], Tensor]) -> Tensor:
        """The class scores that are learned, [samples, classes]: the mean of a net's over the views.

        Cost: a pass forward for each of them.
        """
        return torch.stack([teach(self._seen(view)) for view in self.views]).mean(dim=0)

    def _seen(self, view: View) -> dict[str, Tensor]:
        return {
            name: view(value, self.axes[name]) if name in self.axes else value for name, value in self.feeds.items()
        }


@dataclass(frozen=True)
class Batches:
    """Batches of samples in an order that the seed decides.

    Attributes:
        samples: where they are read.
        indices: the samples to learn from.
        size: of a batch.
        augment: "flip" (mirror every second image), "shift" (move images by up to an eighth), "mix" (blend every second
            image with another, which keeps the smaller part) and "cut" (paste a box of another, at most half as large,
            into every second image; Yun et al., CutMix, ICCV 2019).
        views: of an image that the float net answers in a batch, drawn anew for each: mirrored with "flip", moved by a
            little with "shift". What the image shows is the same, and the mean of the answers is right more often than
            a single one. With more than one, batches in order have all of them.
        device: where the tensors go.
    """

    samples: Samples
    indices: Indices
    size: int
    augment: tuple[str, ...]
    views: int
    device: torch.device

    @property
    def per_update(self) -> int:
        """Samples of an endless batch: as many as the model insists on, or as there are."""
        return self.samples.fixed_batch or min(self.size, len(self.indices))

    def endless(self, seed: int, start: int = 0) -> Iterator[TrainingBatch]:
        """Batches for ever, from number `start` on: the same whether or not those in front of it were made."""
        size = self.per_update
        per_epoch = max(len(self.indices) // size, 1)
        update = start
        while True:
            epoch, position = divmod(update, per_epoch)
            order = np.random.default_rng((seed, epoch)).permutation(self.indices)
            chosen = np.resize(order[position * size : (position + 1) * size], size)
            random = np.random.default_rng((seed, epoch, position))
            yield self._batch(chosen, random, draw_views(self.augment, self.views, random))
            update += 1

    def in_order(self) -> Iterator[TrainingBatch]:
        """Every sample once, changed in the same way each time; a fixed batch is filled up with some that count double.

        A float net knows the images that it was trained on by heart, and what learns from it forgets them. On images as
        they are that would look like a loss, where nothing is lost on others.
        """
        views = views_of(self.augment) if self.views > 1 else (View(),)
        size = self.samples.fixed_batch or self.size
        for start in range(0, len(self.indices), size):
            chosen = self.indices[start : start + size]
            if self.samples.fixed_batch:
                chosen = np.resize(chosen, size)
            yield self._batch(chosen, np.random.default_rng(start), views)

    def _batch(self, chosen: Indices, random: np.random.Generator, views: tuple[View, ...]) -> TrainingBatch:
        axes = self.samples.image_axes
        feeds = {name: torch.from_numpy(value) for name, value in self.samples.read(chosen).items()}
        feeds |= {name: augmented(feeds[name], self.augment, axis, random) for name, axis in axes.items()}
        labels = torch.from_numpy(np.asarray(self.samples.truth[chosen], np.int64))
        return TrainingBatch(
            {name: value.to(self.device) for name, value in feeds.items()},
            labels.to(self.device),
            views,
            axes,
        )
