"""Labels in the form that answers are judged by: names become numbers, and every sample has a class to draw it by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from onnx_cbq.errors import CalibrationError
from onnx_cbq.model import Array
from onnx_cbq.records.answers import IGNORED, Kind


@dataclass(frozen=True)
class Labels:
    """The labels of all samples.

    Attributes:
        truth: as `Kind` takes them: int64 [n], [n, ...] for positions, 0 or 1 for each class [n, classes].
        kind: what they say.
    """

    truth: Array
    kind: Kind

    @cached_property
    def counts(self) -> Array:
        """Samples that have each class, [classes]."""
        if self.kind.several:
            return np.asarray(self.truth.sum(axis=0))
        return np.bincount(np.concatenate(self._held), minlength=self.kind.classes)

    @cached_property
    def drawn_by(self) -> Array:
        """A class of every sample, [n]: of several the one that the fewest samples are drawn by so far.

        A sample without any goes to the class that most are drawn by.
        """
        if self.truth.ndim == 1:
            return self.truth
        sizes = np.zeros(self.kind.classes, np.int64)
        found = np.empty(len(self.truth), np.int64)
        for number, held in enumerate(self._held):
            found[number] = held[sizes[held].argmin()] if len(held) else sizes.argmax()
            sizes[found[number]] += 1
        return found

    @cached_property
    def _held(self) -> list[Array]:
        """The classes of each sample."""
        if self.kind.several:
            return [np.flatnonzero(row) for row in self.truth]
        rows = (np.unique(row) for row in self.truth.reshape(len(self.truth), -1))
        return [row[row >= 0] for row in rows]


def is_one_hot(labels: Array) -> bool:
    """Whether labels [n, classes] are 0 but for a single 1 in each row: another way to write a class."""
    if labels.ndim != 2 or labels.shape[1] < 2 or labels.dtype.kind not in "iub":
        return False
    return bool(((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all())


def are_in_another_order(names: Sequence[str], keys: Sequence[str | int]) -> bool:
    """Whether `names` are what a model calls its classes, `keys`, each once and not in its order."""
    return list(names) != list(keys) and sorted(names) == sorted(map(str, keys)) and len(set(keys)) == len(keys)


def reordered(labels: Array, names: Sequence[str], own: Sequence[str], kind: Kind) -> Array:
    """Labels that count by `names` as they count by `own`, the same names; labels that are names stay.

    Numbers [n, ...] are moved, and of labels that say 0 or 1 for each class [n, classes] the columns.
    """
    place = np.array([own.index(name) for name in names])
    if labels.dtype.kind in "US":
        return labels
    if kind.several:
        return labels[:, np.argsort(place)] if labels.shape[1:] == (len(own),) else labels
    inside = (labels >= 0) & (labels < len(own))
    return np.where(inside, place[np.where(inside, labels, 0)], labels)


def read_labels(labels: Array, kind: Kind, names: Sequence[str], keys: Sequence[str | int], source: str) -> Labels:
    """Labels as numbers 0 .. classes - 1.

    Args:
        labels: numbers or names [n, ...].
        kind: of the answers.
        names: of the classes as the samples have them; empty if they have none.
        keys: what the model itself calls its classes; empty if it does not say.
        source: what messages call the samples.

    Raises:
        CalibrationError: a label is no class.
    """
    if labels.dtype.kind in "US":
        labels = _numbers(labels, list(names) or [str(key) for key in keys], kind.classes, source)
    elif keys and not kind.several and all(isinstance(key, int) for key in keys):
        labels = _positions_of(labels, [int(key) for key in keys])
    labels = labels.astype(np.int64)
    if int(np.prod(labels.shape[1:])) == 1:
        labels = labels.ravel()
    if kind.several:
        outside = (labels < 0) | (labels > 1)
        expected = "0 or 1 for each class"
    else:
        outside = (labels < 0) | (labels >= kind.classes)
        outside &= (labels != IGNORED) | (labels.ndim == 1)
        expected = f"0..{kind.classes - 1}" + (f", or {IGNORED} where none counts" if labels.ndim > 1 else "")
    if outside.any():
        where = np.argwhere(outside)[0]
        raise CalibrationError(
            f"{source}: label {labels[tuple(where)]} of sample {where[0]} is outside {expected}; the model has "
            f"{kind.classes} classes"
        )
    if not (labels > 0 if kind.several else labels != IGNORED).any():
        raise CalibrationError(f"{source}: no sample has a label; expected at least two classes with samples")
    return Labels(labels, kind)


def _numbers(labels: Array, names: Sequence[str], classes: int, source: str) -> Array:
    """Names of classes as their numbers; without a list of names in the order that sorting gives."""
    found = labels.astype(np.str_)
    listed = list(names) or np.unique(found).tolist()
    unknown = np.setdiff1d(found, listed)
    if unknown.size or len(listed) != classes:
        what = (
            f"label {str(unknown[0])!r} is no class"
            if unknown.size
            else f"the labels are {len(listed)} different names"
        )
        raise CalibrationError(
            f"{source}: {what}; the model has {classes} classes: list their names in the order of its outputs, under "
            f"classes in the card or as class_names in the .npz"
        )
    several = [name for name, count in Counter(listed).items() if count > 1]
    doubled = found[np.isin(found, several)] if several else found[:0]
    if doubled.size:
        raise CalibrationError(
            f"{source}: label {str(doubled[0])!r} is the name of several classes; give numbers as labels"
        )
    order = np.argsort(listed)
    return np.asarray(order[np.searchsorted(np.array(listed)[order], found)])


def _positions_of(labels: Array, keys: Sequence[int]) -> Array:
    """Labels that are the model's own numbers of its classes as positions; others as they are."""
    order = np.argsort(keys)
    known = np.isin(labels, keys)
    if not known.all():
        return labels
    return np.asarray(order[np.searchsorted(np.array(keys)[order], labels)])
