"""Which layer of one model is which of another: by names where they have kept them, else by kind, shape and order.

Tools rename nodes and tensors, leave nodes out and put others between. What they keep is the order of the layers and
the shapes of their weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher


@dataclass(frozen=True)
class Site:
    """A place where a model multiplies with a constant weight.

    Attributes:
        node: name of the node, "" for none; `output` is its tensor.
        operator: of a Conv or ConvTranspose; Gemm and MatMul are one kind.
        shape: of the weight.
    """

    node: str
    output: str
    operator: str
    shape: tuple[int, ...]

    @property
    def kind(self) -> Hashable:
        """What layers that may be the same have in common; a matrix may be stored transposed."""
        matrix = self.operator in ("Gemm", "MatMul")
        return ("matrix", tuple(sorted(self.shape))) if matrix else (self.operator, self.shape)

    def may_have_become(self, other: Site) -> bool:
        """Whether a node of the same name can be this one: of the same kind, or without some of its channels."""
        if self.kind == other.kind:
            return True
        fewer = len(self.shape) == len(other.shape) and all(
            b <= a for a, b in zip(self.shape, other.shape, strict=True)
        )
        return self.operator == other.operator and fewer


def match_sites(first: Sequence[Site], second: Sequence[Site]) -> list[tuple[int, int]]:
    """Pairs of positions, ascending in both: sites of one name and kind, and between them those of one kind in order.

    A name that both models have more than once says nothing. Cost: the square of the number of sites at worst.
    """
    named = _by_name(first, second)
    pairs: list[tuple[int, int]] = []
    start = 0, 0
    for one, other in (*_ascending(named), (len(first), len(second))):
        pairs += _in_order(first, second, start, (one, other))
        if one < len(first):
            pairs.append((one, other))
        start = one + 1, other + 1
    return pairs


def _by_name(first: Sequence[Site], second: Sequence[Site]) -> list[tuple[int, int]]:
    found: dict[int, int] = {}
    for attribute in ("node", "output"):
        mine, theirs = (_unique([getattr(site, attribute) for site in sites]) for sites in (first, second))
        for name, position in mine.items():
            other = theirs.get(name)
            if other is None:
                continue
            # Numbers that exporters give tensors are soon those of others.
            one, two = first[position], second[other]
            if one.may_have_become(two) if attribute == "node" else one.kind == two.kind:
                found.setdefault(position, other)
    return sorted(found.items())


def _unique(names: Sequence[str]) -> dict[str, int]:
    """Name -> its position, for names that stand there once."""
    counts = Counter(names)
    return {name: position for position, name in enumerate(names) if name and counts[name] == 1}


def _ascending(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The pairs whose second positions rise with the first ones."""
    kept: list[tuple[int, int]] = []
    for pair in pairs:
        if not kept or pair[1] > kept[-1][1]:
            kept.append(pair)
    return kept


def _in_order(
    first: Sequence[Site], second: Sequence[Site], start: tuple[int, int], end: tuple[int, int]
) -> list[tuple[int, int]]:
    """The longest runs of equal kinds between two pairs that are known."""
    mine = [site.kind for site in first[start[0] : end[0]]]
    theirs = [site.kind for site in second[start[1] : end[1]]]
    if mine == theirs:
        blocks = [(0, 0, len(mine))]
    else:
        blocks = [(m.a, m.b, m.size) for m in SequenceMatcher(None, mine, theirs, autojunk=False).get_matching_blocks()]
    return [(start[0] + a + i, start[1] + b + i) for a, b, size in blocks for i in range(size)]
