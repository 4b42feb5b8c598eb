"""What paired samples tell of several ways to answer them: who is plainly behind, who is tied, whose classes are mixed.

Two ways are compared on the same samples by the sign test (McNemar's, exact): of the samples where one answers better
than the other, either is better in half if there is no difference, so the count follows a binomial distribution.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.special import bdtr, bdtrc, ndtri

from onnx_cbq.model import Array

# Beyond so many different classes among the samples there is nothing to assign within a moment.
_MOST_ASSIGNED = 4000
# Of a sample, in favour of a class's own number where another fits as well.
_OWN = 1e-3


def chance_of_lead(first: Array, second: Array) -> float:
    """How likely `first` would be ahead of `second` on so many samples if it were not better, [samples] each."""
    ahead, behind = int((first > second).sum()), int((first < second).sum())
    if ahead <= behind:
        return 1.0
    return float(bdtrc(ahead - 1, ahead + behind, 0.5))


def chance_of_difference(gained: int, lost: int) -> float:
    """How likely counts this unlike are if neither way is better, the test of both sides, in [0, 1]."""
    return min(1.0, 2 * float(bdtr(min(gained, lost), gained + lost, 0.5))) if gained + lost else 1.0


def not_behind(best: Array, others: Sequence[Array], level: float) -> list[bool]:
    """Which of `others` the best is not ahead of by more than chance, at this level."""
    return [chance_of_lead(best, other) >= level for other in others]


def beats_guessing(right: Array, share: float, level: float) -> bool:
    """Whether answers are right more often than a constant one, which is in this `share`, by more than chance.

    `right` is the share of each sample's answers that are right, [samples]. Where a sample has a single answer the test
    is exact, else by the normal distribution of the mean.
    """
    count = len(right)
    if np.isin(right, (0, 1)).all():
        return bool(bdtrc(int(right.sum()) - 1, count, share) < level)
    return bool(right.mean() - share > -ndtri(level) * right.std() / np.sqrt(count))


def moved_classes(labels: Array, predicted: Array) -> tuple[Array, dict[int, int]] | None:
    """What answers would be worth if classes were numbered otherwise, found on one half and held against the other.

    `labels` and `predicted` are classes of the samples, [samples]. Returns whether each sample is right under the
    one-to-one numbering that fits the other half best, bool [samples], and the numbering that fits both (label ->
    class); None where there are too many classes.
    """
    if len(np.unique(labels)) > _MOST_ASSIGNED:
        return None
    half = _halves(labels)
    right = np.zeros(len(labels), bool)
    for part in (half, ~half):
        numbering = _assigned(labels[part], predicted[part])
        right[~part] = [numbering.get(int(m)) == p for m, p in zip(labels[~part], predicted[~part], strict=True)]
    return right, _assigned(labels, predicted)


def _halves(labels: Array) -> Array:
    """Every other sample of each class, bool [samples]."""
    half = np.zeros(len(labels), bool)
    for m in np.unique(labels):
        half[np.flatnonzero(labels == m)[::2]] = True
    return half


def _assigned(labels: Array, predicted: Array) -> dict[int, int]:
    """The one-to-one numbering of the labels under which most answers are right."""
    rows, columns = np.unique(labels), np.unique(predicted)
    if not len(rows):
        return {}
    counts = np.zeros((len(rows), len(columns)))
    np.add.at(counts, (np.searchsorted(rows, labels), np.searchsorted(columns, predicted)), 1)
    counts += _OWN * (rows[:, None] == columns)
    chosen = zip(*linear_sum_assignment(counts, maximize=True), strict=True)
    return {int(rows[i]): int(columns[j]) for i, j in chosen if counts[i, j] >= 1}
