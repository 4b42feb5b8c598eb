"""Names that nothing else in a graph has."""

from __future__ import annotations

import re
from collections.abc import Iterable


class FreshNames:
    """Makes short names that are not yet in use."""

    def __init__(self, used: Iterable[str]) -> None:
        self._used = set(used)
        self._next: dict[str, int] = {}

    def __call__(self, base: str) -> str:
        """`base` itself if it is free, else `base_1`, `base_2` and so on."""
        name = base
        while name in self._used:
            self._next[base] = self._next.get(base, 0) + 1
            name = f"{base}_{self._next[base]}"
        self._used.add(name)
        return name


def is_generated_name(name: str) -> bool:
    """Whether an exporter made the name up, so that it says nothing to a reader."""
    return not name or re.fullmatch(r"(onnx::\w+|_?val_\d+|v?_?\d+|[a-z]+_\d+_folded)", name) is not None
