"""What is known of each class: scores of channels, groups of classes, accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from onnx_cbq.model import Array


@dataclass(frozen=True)
class LayerScores:
    """What the samples of each class say about the channels of one layer; every array is [classes, channels].

    Attributes:
        beta: share of the class's samples for which the channel is critical, in [0, 1]: for a filter that of the
            neuron of its feature map that is critical most often (CBQ, class score).
        saliency: mean over samples and neurons of |z dPhi/dz|.
        gradient_square: mean over samples of the sum over the channel's neurons of (dPhi/dz)^2.
        further_beta, further_saliency: likewise for outputs beside the class scores that count, [outputs, channels].
    """

    layer: str
    beta: Array
    saliency: Array
    gradient_square: Array
    further_beta: Array = field(default_factory=lambda: np.zeros((0, 0)))
    further_saliency: Array = field(default_factory=lambda: np.zeros((0, 0)))

    @property
    def gamma(self) -> Array:
        """How many classes need each channel, in [0, classes]: sum of beta over the classes (CBQ, importance).

        An output beside the class scores counts as much as all classes together.
        """
        classes = self.beta.sum(axis=0)
        if not len(self.further_beta):
            return np.asarray(classes)
        return np.asarray(np.maximum(classes, len(self.beta) * self.further_beta.max(axis=0)))


@dataclass(frozen=True)
class Scores:
    """Class scores of every layer, from `samples[m]` samples of class m; `notes` say what fell short."""

    layers: tuple[LayerScores, ...]
    class_names: tuple[str, ...]
    samples: tuple[int, ...]
    notes: tuple[str, ...] = ()

    def arrays(self) -> dict[str, Array]:
        """Named arrays for an `.npz`: `beta/LAYER` and so on [classes, channels], `gamma/LAYER` [channels]."""
        named: dict[str, Array] = {"class_names": np.array(self.class_names), "samples": np.array(self.samples)}
        for scores in self.layers:
            for kind in ("beta", "gamma", "saliency", "gradient_square"):
                named[f"{kind}/{scores.layer}"] = getattr(scores, kind)
        return named

    @cached_property
    def by_layer(self) -> Mapping[str, LayerScores]:
        """Layer name -> its scores."""
        return {scores.layer: scores for scores in self.layers}


@dataclass(frozen=True)
class Grouping:
    """Classes taken together: what counts is to tell the groups apart.

    Attributes:
        names: of the groups, the names of their classes with + between them.
        of_class: the group of each class, [classes].
    """

    names: tuple[str, ...]
    of_class: Array

    @staticmethod
    def single(names: Sequence[str]) -> Grouping:
        """Every class a group of its own."""
        return Grouping(tuple(names), np.arange(len(names)))

    @staticmethod
    def of(names: Sequence[str], of_class: Array) -> Grouping:
        """Groups by the number of each class's group."""
        members = [[names[m] for m in np.flatnonzero(of_class == g).tolist()] for g in range(int(of_class.max()) + 1)]
        return Grouping(tuple("+".join(group) for group in members), of_class)

    @property
    def is_trivial(self) -> bool:
        """Whether every class is a group of its own."""
        return len(self.names) == len(self.of_class)

    @cached_property
    def members(self) -> Array:
        """1 where a class belongs to a group, float64 [groups, classes]."""
        return np.asarray(np.arange(len(self.names))[:, None] == self.of_class, np.float64)

    def member(self, group: int) -> Array:
        """1 for the classes of a group, float64 [classes]."""
        return np.asarray(self.of_class == group, np.float64)

    def sums(self, per_class: Array) -> Array:
        """Values per class, [..., classes] -> sums per group, [..., groups]."""
        if self.is_trivial:  # a product with a matrix of all classes would take the square of their number
            together = np.empty(np.shape(per_class))
            together[..., self.of_class] = per_class
            return together
        return np.asarray(per_class @ self.members.T)

    def accuracy(self, confusion: Array) -> float:
        """Share of samples, in percent, whose group is predicted, by a confusion matrix [classes, classes]."""
        same = self.of_class[:, None] == self.of_class
        return float(100 * confusion[same].sum() / max(confusion.sum(), 1))


@dataclass(frozen=True)
class Evaluation:
    """What a model does on labelled samples. Accuracies are in percent.

    Attributes:
        top1: share of samples whose largest class score is that of their label; of positions where each has a label; of
            the answers, yes or no for each class, where a sample may have several.
        top5: share whose label is among the five largest; None with 10 classes or fewer.
        per_class: top-1 of each class; None for a class without samples. Where a sample may have several, the mean of
            the shares of right answers for those that have the class and those that have not.
        confusion: samples by (label, prediction), int64 [classes, classes]; where a sample may have several classes,
            for each of them (no or yes, answer), [classes, 2, 2].
        bytes: size of the model's file or files.
        latency_ms: median milliseconds of a run at batch 1 (or at the batch that the model insists on), with its
            standard error.
    """

    top1: float
    top5: float | None
    per_class: tuple[float | None, ...]
    confusion: Array
    bytes: int
    latency_ms: float
    latency_error_ms: float = 0.0

    @property
    def samples(self) -> int:
        """Number of samples, or of positions."""
        return int(self.confusion[0].sum() if self.has_several else self.confusion.sum())

    @property
    def counts(self) -> Array:
        """Samples, or positions, that have each class, [classes]."""
        return np.asarray(self.confusion[:, 1].sum(axis=1) if self.has_several else self.confusion.sum(axis=1))

    @property
    def has_several(self) -> bool:
        """Whether a sample may have several classes, so that answers are yes or no for each."""
        return self.confusion.ndim > 2

    @property
    def worst_class(self) -> int:
        """The class of lowest accuracy."""
        return min(
            (m for m, accuracy in enumerate(self.per_class) if accuracy is not None),
            key=lambda m: self.per_class[m] or 0.0,
        )
