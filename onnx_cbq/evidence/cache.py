"""Evidence that runs share: kept in a folder under what it was computed from, and never anything but what would be.

A *piece* is kept under the SHA-256 of its name and version, of the packages and the processor (see
`fingerprint.environment`), and of its parts: the model, the samples, and the settings that it depends on. So whoever
finds it would have computed the same bytes. Its version is raised by whoever changes what is computed.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from onnx_cbq.evidence.fingerprint import Digests, UnknownKindError, environment, fingerprint
from onnx_cbq.runtime import CPU
from onnx_cbq.system.room import Room
from onnx_cbq.system.store import DamagedEntryError, Entry, Store, packed
from onnx_cbq.system.user_cache import SIZE

_LOG = logging.getLogger("onnx_cbq")
_T = TypeVar("_T")
# Of a key, in logs and lists.
_SHOWN = 12
# What a piece depends on; asked for only where there is a cache.
Parts = Callable[[], Sequence[object]]


@dataclass(frozen=True)
class Kept(Generic[_T]):
    """How a kind of piece is kept.

    Attributes:
        name: as notes and lists call it.
        version: of what is computed.
        pack, unpack: to arrays and facts, and back; `unpack` raises LookupError, TypeError or ValueError where they do
            not fit.
    """

    name: str
    version: int
    pack: Callable[[_T], Entry]
    unpack: Callable[[Entry], _T]


class Cache:
    """The pieces of one run, in a folder that others may use as well; None keeps nothing.

    It never ends a run: a piece that cannot be read is computed, a folder that cannot be written is left alone.

    Args:
        folder: is made when the first piece is kept.
        provider: what pieces are computed by: another one gives other digits.
        largest: bytes that it may take; what other runs left makes way for the pieces of this one.
    """

    def __init__(self, folder: Path | None = None, provider: str = CPU, largest: float = math.inf) -> None:
        self._provider = provider
        self.digests = Digests()
        self._store = None if folder is None else Store(folder)
        self._room = None if self._store is None else Room(self._store, largest)
        self._writes = folder is not None
        self._refused: dict[str, None] = {}
        self._notes: list[str] = []
        self._taken: Counter[str] = Counter()
        self._made: Counter[str] = Counter()

    def of(self, kept: Kept[_T], parts: Parts, make: Callable[[], _T]) -> _T:
        """A piece as it is kept, else as `make` computes it, which is kept then."""
        found = self.find(kept, parts)
        if found is None:
            found = make()
            self.keep(kept, parts, found)
        return found

    def find(self, kept: Kept[_T], parts: Parts) -> _T | None:
        """A piece as it is kept; None if it is not, or is damaged."""
        if self._store is None:
            return None
        key = self._key(kept, parts)
        if key is None:
            return None
        try:
            entry = self._store.read(key)
            found = None if entry is None else kept.unpack(entry)
        except (DamagedEntryError, LookupError, TypeError, ValueError) as error:
            reason = str(error) if isinstance(error, DamagedEntryError) else "its arrays do not fit"
            self._note(f"an entry of {kept.name} in the cache is damaged ({reason}) and was computed again")
            return None
        except OSError as error:
            self._note(f"the cache {str(self._store.folder)!r} cannot be read: {error.strerror}; it is left alone")
            return None
        if found is not None:
            assert self._room is not None
            self._room.uses(key)
            self._taken[kept.name] += 1
            _LOG.info("%s %s: from the cache", kept.name, key[:_SHOWN])
        return found

    def keep(self, kept: Kept[_T], parts: Parts, value: _T) -> None:
        """Keep a piece that was computed."""
        if self._store is None:
            return
        self._made[kept.name] += 1
        key = self._key(kept, parts)
        if key is None:
            return
        done = self._writes and self._write(key, kept.name, kept.pack(value))
        _LOG.info("%s %s: computed%s", kept.name, key[:_SHOWN], ", and kept in the cache" if done else "")

    def hold(self, kept: Kept[_T], parts: Parts, value: _T) -> None:
        """Keep how far something came, in place of what was held before; nothing is said of it."""
        key = None if self._store is None or not self._writes else self._key(kept, parts)
        if key is not None:
            self._write(key, kept.name, kept.pack(value))

    def drop(self, kept: Kept[_T], parts: Parts) -> None:
        """Remove what was held: it is over."""
        key = None if self._store is None or not self._writes else self._key(kept, parts)
        if key is not None:
            assert self._store is not None
            with self._writing():
                self._store.path(key).unlink(missing_ok=True)

    def tidy(self) -> None:
        """Make the folder small enough: the run is over."""
        if self._room is not None and self._writes:
            with self._writing():
                self._room.tidy()

    @property
    def notes(self) -> tuple[str, ...]:
        """What was taken from the cache, and what was wrong with it."""
        taken = [
            name if not self._made[name] else f"{count} of {count + self._made[name]} {name}"
            for name, count in self._taken.items()
        ]
        refused = [f"not kept, since the cache or its disk is full ({SIZE}): {', '.join(self._refused)}"]
        return (
            *((f"from the cache: {', '.join(taken)}",) if taken else ()),
            *(refused if self._refused else ()),
            *self._notes,
        )

    def _write(self, key: str, name: str, entry: Entry) -> bool:
        """Whether an entry was kept."""
        assert self._store is not None
        assert self._room is not None
        pieces = packed(key, name, entry)
        with self._writing():
            if self._room.takes(key, sum(map(len, pieces))):
                self._store.put(key, pieces)
                return True
            self._refused[name] = None
        return False

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Where that fails nothing more is kept."""
        assert self._store is not None
        try:
            yield
        except OSError as error:
            self._writes = False
            self._note(
                f"the cache {str(self._store.folder)!r} cannot be written: {error.strerror}; nothing more is kept there"
            )

    def _key(self, kept: Kept[_T], parts: Parts) -> str | None:
        """None where something is a part, of whoever extends us, that nothing is known of."""
        try:
            return fingerprint(kept.name, kept.version, environment(), self._provider, parts())
        except UnknownKindError as error:
            self._note(f"not kept in the cache: {kept.name}; {error}")
            return None

    def _note(self, text: str) -> None:
        if text not in self._notes:
            _LOG.warning("%s", text)
            self._notes.append(text)


NO_CACHE = Cache()
