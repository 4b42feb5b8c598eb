"""Which samples are drawn: evenly from the classes, and some of each held back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from onnx_cbq.calibration.samples import Indices, Samples
from onnx_cbq.errors import CalibrationError
from onnx_cbq.model import Array

# How many samples are drawn unless a number is asked for: so many, or so many of each class if that is more.
AUTO: Literal["auto"] = "auto"
AUTO_SAMPLES, AUTO_PER_CLASS = 1000, 2
# As many classes too small for their share still hold a sample back each.
_FEW_CLASSES = 100
# What learns from all samples holds at most so many back: more say little more of a net, and every look takes longer.
MOST_HELD = 2000


@dataclass(frozen=True)
class Draw:
    """Samples drawn evenly from the classes: `by_class[m]` are the indices of class m; `notes` say what fell short."""

    by_class: tuple[Indices, ...]
    notes: tuple[str, ...] = ()

    @property
    def indices(self) -> Indices:
        """All drawn samples, in the order of the source."""
        return np.sort(np.concatenate(self.by_class))

    def by_group(self, of_class: Array) -> tuple[Indices, ...]:
        """The samples of each group, by the group of each class [classes]."""
        groups = range(int(of_class.max()) + 1)
        return tuple(np.concatenate([self.by_class[m] for m in np.flatnonzero(of_class == g)]) for g in groups)

    def split(self, share: float, most: int | None = None) -> tuple[Draw, Draw]:
        """Two draws, the second with `share` of every class; neither is empty while there are two samples.

        Where that would be more than `most` samples, all classes give less, so that it is about as many.
        A class too small for that gives one of its two samples; of more than a hundred such classes, and of those with
        a single sample, as many give one as it takes for `share` of their samples, spread over all of them.
        """
        sizes = np.array([len(part) for part in self.by_class])
        if most is not None:
            share = min(share, most / max(int(sizes.sum()), 1))
        held = np.maximum(np.minimum(np.round(sizes * share).astype(np.int64), sizes - 1), 0)
        held[_small_givers(sizes, held, share)] = 1
        first = tuple(part[: len(part) - n] for part, n in zip(self.by_class, held, strict=True))
        second = tuple(part[len(part) - n :] for part, n in zip(self.by_class, held, strict=True))
        return replace(self, by_class=first), Draw(second)


def _small_givers(sizes: Indices, held: Indices, share: float) -> Indices:
    """Classes too small to hold `share` of their samples back that hold one back all the same."""
    small = np.flatnonzero((sizes > 0) & (held == 0))
    pairs, singles = small[sizes[small] > 1], small[sizes[small] == 1]
    count = max(round(share * int(sizes[small].sum())), min(len(pairs), _FEW_CLASSES))
    if not held.any() and not count:
        count = 1
    of_singles = min(max(count - len(pairs), 0), len(singles), int((sizes - held).sum()) - len(pairs) - 1)
    return np.concatenate([_spread(pairs, count), _spread(singles, of_singles)])


def _spread(values: Indices, count: int) -> Indices:
    """So many of the values, evenly spread, at most all."""
    count = min(max(count, 0), len(values))
    return values[np.arange(count) * len(values) // max(count, 1)]


def draw(
    samples: Samples,
    names: Sequence[str],
    count: int | Literal["auto"] | None,
    seed: int,
    among: Sequence[int] | None = None,
) -> Draw:
    """`count` samples (None: all, up to the card's limit), as evenly as the classes allow, shuffled within each class.

    "auto" are `AUTO_SAMPLES`, or more where there are many classes. With `among`, only those classes are drawn from. A
    class that has fewer than its share gives all it has; the rest is not made up by others, and a note says so.
    Classes without samples have no share.

    Raises:
        CalibrationError: `count` is less than one sample per class.
    """
    classes, limit = len(names), samples.data.card.limit
    chosen = np.setdiff1d(np.arange(classes) if among is None else np.asarray(among), samples.empty_classes(names))
    notes: tuple[str, ...] = ()
    if count == AUTO:
        count = max(AUTO_SAMPLES, AUTO_PER_CLASS * len(chosen))
        if count > AUTO_SAMPLES:
            each = f"{AUTO_PER_CLASS} of each of {len(chosen):,} classes"
            notes = (f"{count:,} calibration samples were wanted, {each}; --samples asks for another number",)
    if count is not None and count < len(chosen):
        raise CalibrationError(
            f"--samples {count}: there are {len(chosen)} classes; expected at least one of each, "
            f"--samples {len(chosen)} or more"
        )
    random = np.random.default_rng(seed)
    wanted = np.zeros(classes, np.int64)
    wanted[chosen] = len(samples.labels) if count is None else count // len(chosen)
    if count is not None:
        wanted[random.permutation(chosen)[: count % len(chosen)]] += 1
    if limit is not None:
        wanted = np.minimum(wanted, limit)
    order = random.permutation(len(samples.labels))
    by_class = [order[samples.labels[order] == m][: wanted[m]] for m in range(classes)]
    if count is not None:
        notes += _shortage(names, by_class, wanted)
    if samples.set_aside:
        by_class = [part[~np.isin(part, list(samples.set_aside))] for part in by_class]
    return Draw(tuple(by_class), notes)


def everything(samples: Samples, names: Sequence[str]) -> Indices:
    """All samples, up to the card's limit: what models are evaluated on."""
    return draw(replace(samples, set_aside=frozenset()), names, None, seed=0).indices


def thinned(indices: Indices, most: int) -> Indices:
    """Every so many of the samples that at most `most` are left."""
    return indices[:: max(-(-len(indices) // most), 1)]


def _shortage(names: Sequence[str], by_class: Sequence[Indices], wanted: Indices) -> tuple[str, ...]:
    short = [m for m, part in enumerate(by_class) if len(part) < wanted[m]]
    if len(short) == int((wanted > 0).sum()):
        return (f"only {sum(map(len, by_class))} of the {wanted.sum()} samples wanted: no class has its share",)
    notes = [f"class {names[m]!r} has only {len(by_class[m])} of the {wanted[m]} samples wanted" for m in short[:5]]
    more = len(short) - len(notes)
    return (*notes, f"{more} more classes have fewer samples than wanted") if more else tuple(notes)
