"""Groups of classes (Nayak et al., arXiv 1910.04877): to tell groups apart takes fewer bits than to tell all classes.

Groups come from a list, or from how the float model confuses the classes: with C[m, n] the mean probability that it
gives to class n on samples of class m, classes are as far apart as 1 - (C[m, n] + C[n, m]) / 2, and average linkage
joins them until the number asked for is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from scipy.cluster.hierarchy import cut_tree, linkage
from scipy.spatial.distance import squareform
from scipy.special import softmax

from onnx_cbq.calibration.draw import Draw
from onnx_cbq.calibration.files import read_text
from onnx_cbq.calibration.samples import Indices
from onnx_cbq.errors import ConfigError
from onnx_cbq.evidence.scoring import batch_size
from onnx_cbq.evidence.tensors import Tensors, TensorWork
from onnx_cbq.evidence.workload import Workload
from onnx_cbq.graph.logits import Logits
from onnx_cbq.model import Array
from onnx_cbq.records import Grouping
from onnx_cbq.records.names import class_indices, split_names

_LARGEST_FILE = 4 << 20


def find_groups(work: Workload, drawn: Draw, clusters: int | tuple[tuple[str, ...], ...] | None) -> Grouping:
    """The groups that the settings ask for; each class is its own if they ask for none.

    Raises:
        ConfigError: more groups than classes, a single group, an unknown class, or one in two groups.
    """
    names = work.class_names
    if clusters is None:
        return Grouping.single(names)
    if work.logits.kind.independent:
        raise ConfigError("--clusters: each class of this model has a probability of its own; leave it out")
    if isinstance(clusters, tuple):
        return _listed(names, clusters)
    if clusters > len(names):
        raise ConfigError(f"--clusters {clusters}: the model has {len(names)} classes; expected at most as many groups")
    return by_confusion(names, _confusion(work, drawn), clusters)


def by_confusion(names: Sequence[str], confusion: Array, count: int) -> Grouping:
    """`count` groups of classes by a confusion matrix [classes, classes] whose rows sum to 1."""
    distance = 1 - (confusion + confusion.T) / 2
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), "average")
    # Not fcluster: where distances tie it gives fewer groups, for a model that confuses nothing a single one.
    labels = cut_tree(tree, count).ravel()
    # Groups in the order of their first class.
    order = {label: i for i, label in enumerate(dict.fromkeys(labels.tolist()))}
    return Grouping.of(names, np.array([order[label] for label in labels.tolist()]))


def read_groups(path: Path) -> tuple[tuple[str, ...], ...]:
    """Groups from a text file: a line per group, class names with commas between them, in quotes if they hold one.

    Raises:
        ConfigError: the file cannot be read, or is empty.
    """
    try:
        lines = read_text(path, _LARGEST_FILE).splitlines()
    except (OSError, ValueError):
        raise ConfigError(
            f"--clusters {path}: no such text file; give a number, or a file with a line of class names per group"
        ) from None
    groups = tuple(names for line in lines if (names := split_names(line, f"--clusters {path}")))
    if not groups:
        raise ConfigError(f"--clusters {path}: the file is empty; expected a line of class names per group")
    return groups


def _listed(names: Sequence[str], groups: tuple[tuple[str, ...], ...]) -> Grouping:
    """Groups as listed; classes that are not listed stay alone."""
    of_class = np.full(len(names), -1)
    for number, group in enumerate(groups):
        for m in class_indices(names, group, "--clusters"):
            if of_class[m] >= 0:
                raise ConfigError(f"--clusters: class {names[m]!r} stands in two groups; name it once")
            of_class[m] = number
    alone = np.flatnonzero(of_class < 0)
    of_class[alone] = len(groups) + np.arange(len(alone))
    if of_class.max() == 0:
        raise ConfigError("--clusters: all classes are in one group; expected at least 2, or nothing is told apart")
    return Grouping.of(names, of_class)


def _confusion(work: Workload, drawn: Draw) -> Array:
    """Mean probabilities by class, [classes, classes]."""
    logits = work.logits
    sums = np.zeros((logits.classes, logits.classes))
    chunks = work.samples.chunks(drawn.indices, batch_size(work.layers))
    with work.engine.crew(TensorWork.of(work.model, [logits.tensor], work.samples), chunks) as crew:
        for labels, shares in crew.each(_Shares(logits)):
            np.add.at(sums, labels[labels >= 0], shares[labels >= 0])
    return np.asarray(sums / np.maximum(sums.sum(axis=1, keepdims=True), 1e-30))


@dataclass(frozen=True)
class _Shares:
    """Labels [samples, positions], and probabilities [samples, positions, classes]."""

    logits: Logits
    leaves: ClassVar[bool] = False

    def on(self, held: Tensors) -> Callable[[Sequence[Indices]], Iterator[tuple[Array, Array]]]:
        """Of every batch."""

        def run(chunks: Sequence[Indices]) -> Iterator[tuple[Array, Array]]:
            for batch, values in held.batches(chunks):
                rows = self.logits.phi.rows(values[self.logits.tensor])[: batch.count]
                shares = softmax(rows, axis=-1)
                yield batch.labels.reshape(shares.shape[:2]), shares

        return run
