"""How class scores are read from a tensor, and what a prediction, a hit and a divergence are for each kind of them.

Scores are turned into logits [samples, positions, classes]: one position where a sample has one label, many where each
token or pixel has its own. Two kinds of probability stand behind them:

- exclusive: p = softmax over the classes; the divergence is sum p log(p / q)
- independent: p = sigmoid of each class by itself; the divergence is the sum of those of the classes

A single number z for two classes is the exclusive kind with the logits (-z/2, z/2), whose softmax is sigmoid(z).
Labels are whole numbers [samples, positions], `IGNORED` where a position does not count, or, where a sample has several
classes, 0 or 1 for each class [samples, classes].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit, log_expit, log_softmax, softmax

from onnx_cbq.model import Array
from onnx_cbq.records.classes import Grouping

# The label of a position that does not count, as PyTorch's losses and Hugging Face have it.
IGNORED = -100
_PAIR = np.array([-0.5, 0.5])
# Logarithms of probabilities end here, so that a class that is masked with -inf adds nothing.
_LEAST = float(np.log(np.finfo(np.float64).tiny))


@dataclass(frozen=True)
class Reading:
    """Where the scores are in a tensor.

    Attributes:
        batch: axis of the samples.
        classes: axis of the classes; None where one number tells two classes apart.
        threshold: above which a score that stands by itself says yes.
        keys: of the classes, where onnxruntime gives a dictionary for each sample (ZipMap).
    """

    batch: int = 0
    classes: int | None = 1
    threshold: float = 0.0
    keys: tuple[str | int, ...] = ()

    def rows(self, values: Any, dtype: type[np.floating[Any]] = np.float64) -> Array:
        """The scores less the threshold, [samples, positions, classes]."""
        if isinstance(values, list):
            values = np.array([[row[key] for key in self.keys] for row in values])
        moved = np.moveaxis(np.asarray(values, dtype), self.batch, 0)
        if self.classes is None:
            return np.asarray((moved.reshape(len(moved), -1, 1) - self.threshold) * _PAIR, dtype)
        moved = np.moveaxis(moved, self.class_axis, -1)
        return np.asarray(moved.reshape(len(moved), -1, moved.shape[-1]) - self.threshold)

    def gradient(self, rows: Array, shape: Sequence[int]) -> Array:
        """The gradient of a tensor of this shape, float32, from that of its logits [samples, positions, classes]."""
        others = np.delete(np.array(shape), self.batch).tolist()
        if self.classes is None:
            moved = (rows @ _PAIR).reshape(len(rows), *others)
        else:
            size = others.pop(self.class_axis - 1)
            moved = np.moveaxis(rows.reshape(len(rows), *others, size), -1, self.class_axis)
        return np.asarray(np.moveaxis(moved, 0, self.batch), np.float32)

    @property
    def class_axis(self) -> int:
        """The axis of the classes once the samples come first."""
        assert self.classes is not None
        return self.classes + (self.classes < self.batch)


# As most models have them: [samples, classes].
PLAIN = Reading()


@dataclass(frozen=True)
class Kind:
    """What labels say and what probabilities stand behind the scores.

    Attributes:
        classes: their number.
        independent: every class has a probability of its own.
        several: a sample may have several classes: labels are 0 or 1 for each.
    """

    classes: int
    independent: bool = False
    several: bool = False

    def log_shares(self, logits: Array, groups: Grouping) -> Array:
        """Logarithms of the probabilities: exclusive [samples, positions, groups], independent [..., classes, 2]."""
        if self.independent:
            pair = np.stack([log_expit(-logits), log_expit(logits)], axis=-1)
            return np.asarray(np.maximum(pair, _LEAST))
        # A sample whose scores are all -inf has no probabilities; the check of the outputs says so.
        with np.errstate(invalid="ignore"):
            shares = np.maximum(log_softmax(logits, axis=-1), _LEAST)
        if groups.is_trivial:
            return np.asarray(shares)
        return np.asarray(np.log(np.maximum(groups.sums(np.exp(shares)), np.finfo(np.float64).tiny)))

    def divergences(self, reference: Array, found: Array, labels: Array) -> Array:
        """The divergence from the reference, both as `log_shares` gives them, by the class of the label.

        In nats, [samples, classes]; what a sample adds in all its positions.
        """
        each = (np.exp(reference) * (reference - found)).sum(axis=-1)
        if self.several:
            return np.asarray(each.sum(axis=1))
        if self.independent:
            each = each.sum(axis=-1)
        return self._by_class(each, labels)

    def counts(self, labels: Array) -> Array:
        """What the divergences of `divergences` are to be divided by: positions by class, [samples, classes].

        Where a sample has several classes they add up, so that each counts 1 / classes.
        """
        if self.several:
            return np.full((len(labels), self.classes), 1 / self.classes)
        return self._by_class(np.ones(_flat(labels).shape), labels)

    def hits(self, scores: Array, labels: Array, groups: Grouping | None = None) -> tuple[Array, Array]:
        """Answers by the class of the label, and how many of them are right, both [classes]."""
        truth = _flat(labels)
        if self.several:
            right = (scores[:, 0] > 0) == (truth > 0)
            return np.full(self.classes, float(len(truth))), right.sum(axis=0).astype(np.float64)
        known = truth >= 0
        truth, found = truth[known], self.predictions(scores)[known]
        same = found == truth if groups is None else groups.of_class[found] == groups.of_class[truth]
        counted = np.bincount(truth, minlength=self.classes).astype(np.float64)
        return counted, np.bincount(truth, same, self.classes)

    def predictions(self, scores: Array) -> Array:
        """The class of every position [samples, positions], or 0 or 1 for each class [samples, classes]."""
        return np.asarray((scores[:, 0] > 0).astype(np.int64) if self.several else scores.argmax(axis=-1))

    def seed(self, labels: Array, groups: Grouping, group: int) -> Array:
        """dPhi/dlogits for a group of classes: Phi is the mean logit of its classes, and of the positions that have it.

        [samples, positions, classes]; 0 for samples and positions of other groups.
        """
        if self.several:
            return np.asarray(labels * groups.member(group))[:, None, :]
        truth = _flat(labels)
        chosen = (truth >= 0) & (groups.of_class[np.maximum(truth, 0)] == group)
        share = chosen / np.maximum(chosen.sum(axis=1, keepdims=True), 1)
        row = groups.member(group)
        row = row / row.sum()
        return np.asarray(share[..., None] * row)

    def direction(self, logits: Array, labels: Array, groups: Grouping, random: np.random.Generator) -> Array:
        """Seeds s with E s s^T = the Fisher information of the mean over the positions, [samples, positions, classes].

        Exclusive: s = sqrt(p) e - p (sqrt(p) . e) with random signs e has E s s^T = diag p - p p^T. For a group G,
        e_G sqrt(P_G) (p restricted to G) / P_G stands in place of sqrt(p) e. Independent: s = sqrt(p (1 - p)) e.
        """
        if self.independent:
            shares = expit(logits)
            found = np.sqrt(shares * (1 - shares)) * random.choice(np.array([-1.0, 1.0]), shares.shape)
        else:
            shares = softmax(logits, axis=-1)
            together = groups.sums(shares)
            signed = np.sqrt(together) * random.choice(np.array([-1.0, 1.0]), together.shape)
            within = signed / np.maximum(together, np.finfo(np.float64).tiny)
            found = shares * (within[..., groups.of_class] - signed.sum(axis=-1, keepdims=True))
        if self.several:
            return np.asarray(found)
        known = _flat(labels) >= 0
        return np.asarray(found * (known / np.sqrt(np.maximum(known.sum(axis=1, keepdims=True), 1)))[..., None])

    def sample_weights(self, labels: Array, class_weights: Array) -> Array:
        """What a sample counts: the mean weight of its classes, [samples]."""
        if self.several:
            held = labels @ class_weights / np.maximum(labels.sum(axis=1), 1)
            return np.asarray(np.where(labels.any(axis=1), held, class_weights.mean()))
        truth = _flat(labels)
        known = truth >= 0
        return np.asarray((class_weights[np.maximum(truth, 0)] * known).sum(axis=1) / np.maximum(known.sum(axis=1), 1))

    def position_weights(self, labels: Array, class_weights: Array) -> Array:
        """What the positions of samples count, [samples, positions, 1]; where a sample has several classes, each."""
        if self.several:
            return np.broadcast_to(class_weights, (len(labels), 1, self.classes))
        truth = _flat(labels)
        return np.asarray((class_weights[np.maximum(truth, 0)] * (truth >= 0))[..., None])

    def having(self, labels: Array, groups: Grouping, group: int) -> Array:
        """Which samples have a class of the group, bool [samples]."""
        if self.several:
            return np.asarray((labels * groups.member(group)).any(axis=1))
        truth = _flat(labels)
        return np.asarray(((truth >= 0) & (groups.of_class[np.maximum(truth, 0)] == group)).any(axis=1))

    def _by_class(self, each: Array, labels: Array) -> Array:
        """Values of positions summed by the class of their label, [samples, positions] -> [samples, classes]."""
        truth = _flat(labels)
        known = truth >= 0
        found = np.zeros((len(truth), self.classes))
        np.add.at(found, (np.nonzero(known)[0], truth[known]), each[known])
        return found


def _flat(labels: Array) -> Array:
    """Labels [samples, ...] -> [samples, positions]."""
    return labels.reshape(len(labels), -1)
