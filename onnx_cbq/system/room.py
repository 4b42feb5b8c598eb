"""How much a run may keep in a folder of entries: what others left, and was longest of no use, makes way."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from onnx_cbq.system.store import Store

# Entries that a folder may have: looking at them once takes a run about a tenth of a second.
_MOST_ENTRIES = 10_000
# Where a folder is too large it is made so much smaller that this is seldom done.
_AIM = 0.9
# Share of a disk that stays free: what is kept must not be in the way of what is asked for.
_FREE = 0.05


class Room:
    """The room of one run in a folder.

    Args:
        store: the folder.
        largest: bytes that all entries may take together.
        most: how many there may be.
    """

    def __init__(self, store: Store, largest: float = math.inf, most: int = _MOST_ENTRIES) -> None:
        self._store, self._largest, self._most = store, largest, most
        # Entries that were found or written, and the bytes of the latter, which may be written again.
        self._mine: dict[str, int] = {}
        self._has_looked, self._count, self._total = False, 0, 0

    def uses(self, key: str) -> None:
        """An entry that the run found stays."""
        self._mine.setdefault(key, 0)

    def takes(self, key: str, size: int) -> bool:
        """Whether an entry of so many bytes has room now; if so it counts as written.

        Raises:
            OSError: entries cannot be removed.
        """
        if size > self._largest or not self._disk_has(size):
            return False
        more, bytes_more = int(key not in self._mine), size - self._mine.get(key, 0)
        if self._is_over(more, bytes_more):
            self._store.prune(
                largest=max(_AIM * self._largest - bytes_more, 0),
                most=int(_AIM * self._most) - more,
                spared=self._mine.keys(),
            )
            self._look()
            if self._is_over(more, bytes_more):
                return False
        self._mine[key] = size
        self._count, self._total = self._count + more, self._total + bytes_more
        return True

    def tidy(self) -> None:
        """Make the folder small enough, whoever filled it meanwhile, if this run wrote anything.

        Raises:
            OSError: entries cannot be removed.
        """
        if self._has_looked:
            self._look()
            if self._is_over(0, 0):
                self._store.prune(largest=self._largest, most=self._most, spared=self._mine.keys())

    def _is_over(self, more: int, bytes_more: int) -> bool:
        """Whether so many more entries, and bytes, are too many."""
        if not self._has_looked:
            self._look()
        return self._count + more > self._most or self._total + bytes_more > self._largest

    def _look(self) -> None:
        self._has_looked = True
        self._count, self._total = self._store.taken()

    def _disk_has(self, size: int) -> bool:
        try:
            disk = shutil.disk_usage(_existing(self._store.folder))
        except OSError:  # whoever writes says what is wrong
            return True
        return disk.free - size >= _FREE * disk.total


def _existing(folder: Path) -> Path:
    """The folder, or the nearest around it that there is."""
    return next((path for path in (folder, *folder.absolute().parents) if path.is_dir()), folder)
