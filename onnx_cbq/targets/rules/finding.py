"""What a rule says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from onnx_cbq.targets.reading import QdqFile
from onnx_cbq.targets.target import Fact, Target


@dataclass(frozen=True)
class Finding:
    """A fact that does not hold: where, what was expected, and what is there."""

    fact: Fact
    node: str
    tensor: str
    expected: str
    found: str


Rule = Callable[[QdqFile, Target], Iterator[Finding]]
