"""A folder of entries, each a file of named arrays and small facts under a key; several processes may share it.

    magic, 16 bytes | version, u32 | bytes of the header, u32 | SHA-256 of header and arrays | header | arrays

Numbers are little-endian. The header is JSON: the key, what kind of entry it is, its facts, and of each array its type,
its shape, and how many bytes it has here; they lie behind it one after another, as in memory or, where that takes less,
compressed by zstandard. An entry is written under another name and renamed once it is complete. It is not forced to the
disk: what a power cut leaves of it fails its checksum.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import struct
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import zstandard

from onnx_cbq.system.allowance import allowed
from onnx_cbq.system.temporary import temporary_file

VERSION = 1
MAGIC = b"onnx-cbq entry\r\n"
ENDING = ".evidence"
_START = struct.Struct("<16sII32s")
_KEY = re.compile(r"[0-9a-f]{64}")
_NAME, _FOLDER = re.compile(rf"[0-9a-f]{{64}}{re.escape(ENDING)}"), re.compile(r"[0-9a-f]{2}")
_LEFT = re.compile(r"\.[0-9a-f]{40}\.[a-z0-9_]{8}\.onnx-cbq")  # of a run that was killed
_MOST_HEADER = 64 << 20
# Arrays take so many bytes in memory at most, or so many times the file.
_MOST_BYTES, _MOST_TIMES = 2 << 30, 20
# Arrays of so many bytes are compressed, if that leaves at most this share of them.
_LEAST_PACKED, _WORTH = 4096, 0.9
_TYPE = re.compile(r"[<|][biufU][1-9]\d{0,8}")
# Of a file.
Piece = bytes | memoryview
# An unfinished file so old is nobody's any more.
_LEFT_SECONDS = 24 * 3600.0


class DamagedEntryError(Exception):
    """An entry is cut, changed, of another version or another's; the message says which."""


@dataclass(frozen=True)
class Entry:
    """Named arrays, and facts that JSON knows."""

    arrays: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Listed:
    """A file of the folder: what kind of entry it is, its bytes, and seconds since it was last of use.

    `kind` is "" where that cannot be read, and "unfinished" for what a killed run left.
    """

    path: Path
    kind: str
    bytes: int
    age: float


@dataclass(frozen=True)
class _Described:
    """An array as the header of an entry has it: its bytes in memory, and those in the file."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    size: int
    stored: int

    def array(self, content: bytes) -> npt.NDArray[Any]:
        """The array, from its bytes in the file.

        Raises:
            DamagedEntryError: they give another size.
        """
        if self.stored < self.size:
            try:
                found = zstandard.get_frame_parameters(content).content_size
                content = zstandard.ZstdDecompressor().decompress(content) if found == self.size else b""
            except zstandard.ZstdError:
                content = b""
        if len(content) != self.size:
            raise DamagedEntryError("an array has another size")
        return np.frombuffer(content, self.dtype).reshape(self.shape)


@dataclass(frozen=True)
class Store:
    """Entries in a folder, which is made when the first is written."""

    folder: Path

    def path(self, key: str) -> Path:
        """Where an entry lies."""
        assert _KEY.fullmatch(key)
        return self.folder / key[:2] / f"{key}{ENDING}"

    def read(self, key: str) -> Entry | None:
        """The entry of a key; None if there is none. It counts as used now.

        Raises:
            DamagedEntryError: it is not as it was written.
            OSError: it cannot be read.
        """
        try:
            with self.path(key).open("rb") as file:
                entry = _read(file, key)
                if os.utime in os.supports_fd:
                    _touch(file.fileno())
                return entry
        except FileNotFoundError:
            return None

    def write(self, key: str, kind: str, entry: Entry) -> None:
        """Keep an entry, in place of the one of that key if there is one.

        Raises:
            OSError: the folder cannot be written, or is full.
        """
        self.put(key, packed(key, kind, entry))

    def put(self, key: str, pieces: Sequence[Piece]) -> None:
        """Keep what `packed` made of an entry.

        Raises:
            OSError: the folder cannot be written, or is full.
        """
        path = self.path(key)
        for tries_left in (1, 0):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with temporary_file(path) as temporary:
                    with temporary.open("wb") as file:
                        for piece in pieces:
                            file.write(piece)
                    temporary.replace(path)
            except FileNotFoundError:  # another process has just removed the folder, which was empty
                if not tries_left:
                    raise
            else:
                return

    def entries(self) -> Iterator[Listed]:
        """Every file that is ours, whatever else lies in the folder."""
        now = time.time()
        for folder in sorted(_scan(self.folder)):
            if not _FOLDER.fullmatch(folder.name) or folder.is_symlink():
                continue
            for path in sorted(_scan(folder)):
                named = _NAME.fullmatch(path.name) and path.name.startswith(folder.name)
                if not named and not _LEFT.fullmatch(path.name):
                    continue
                try:
                    found = path.lstat()
                    kind = _kind(path) if named else "unfinished"
                except OSError:  # just removed by another process
                    continue
                if kind is not None:
                    yield Listed(path, kind, found.st_size, max(now - found.st_mtime, 0.0))

    def taken(self) -> tuple[int, int]:
        """How many files are named as ours, and their bytes; none of them is opened."""
        count = total = 0
        for folder in _scan(self.folder):
            if not _FOLDER.fullmatch(folder.name) or folder.is_symlink():
                continue
            with suppress(OSError), os.scandir(folder) as found:
                for file in found:
                    if _NAME.fullmatch(file.name) or _LEFT.fullmatch(file.name):
                        with suppress(FileNotFoundError):
                            total += file.stat(follow_symlinks=False).st_size
                            count += 1
        return count, total

    def prune(
        self,
        oldest: float = math.inf,
        largest: float = math.inf,
        most: float = math.inf,
        spared: Set[str] = frozenset(),
    ) -> list[Listed]:
        """Remove entries that were of no use for `oldest` seconds, then the oldest until few and small ones are left.

        Args:
            oldest: seconds.
            largest: bytes that may be left.
            most: entries that may be left.
            spared: keys of entries that stay, and count.

        Raises:
            OSError: one cannot be removed.
        """
        found = sorted(self.entries(), key=lambda entry: (entry.path.stem not in spared, entry.age))
        removed, total, count = [], 0, 0
        for entry in found:
            left = entry.kind == "unfinished"
            if left and entry.age < _LEFT_SECONDS and largest > 0:
                continue
            over = left or entry.age >= oldest or total + entry.bytes > largest or count + 1 > most
            if over and entry.path.stem not in spared:
                entry.path.unlink(missing_ok=True)
                removed.append(entry)
            else:
                total, count = total + entry.bytes, count + 1
        for folder in {entry.path.parent for entry in removed}:
            with suppress(OSError):  # it is not empty
                folder.rmdir()
        return removed


def packed(key: str, kind: str, entry: Entry) -> list[Piece]:
    """The bytes of an entry's file, piece after piece."""
    arrays = {name: np.asarray(value, value.dtype.newbyteorder("<"), order="C") for name, value in entry.arrays.items()}
    stored = [_stored(value) for value in arrays.values()]
    described = [
        [name, value.dtype.str, list(value.shape), len(content)]
        for (name, value), content in zip(arrays.items(), stored, strict=True)
    ]
    header = json.dumps({"key": key, "kind": kind, "facts": dict(entry.facts), "arrays": described}).encode()
    checksum = hashlib.sha256()
    for piece in (header, *stored):
        checksum.update(piece)
    return [_START.pack(MAGIC, VERSION, len(header), checksum.digest()), header, *stored]


def _scan(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _touch(descriptor: int) -> None:
    """An entry that cannot be changed keeps its time."""
    try:
        os.utime(descriptor)
    except OSError:
        return


def _kind(path: Path) -> str | None:
    """What kind of entry a file is, "" where it is damaged; None for a file that only has such a name."""
    if path.is_symlink() or not path.is_file():
        return None
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            return None
        file.seek(0)
        try:
            return str(_header(file, path.stem, os.fstat(file.fileno()).st_size)[1]["kind"])
        except DamagedEntryError:
            return ""


def _header(file: IO[bytes], key: str, size: int) -> tuple[bytes, dict[str, Any], bytes]:
    """The checksum, the header, and its bytes."""
    start = file.read(_START.size)
    if len(start) < _START.size or not start.startswith(MAGIC):
        raise DamagedEntryError("no entry, or cut short")
    _, version, length, checksum = _START.unpack(start)
    if version != VERSION:
        raise DamagedEntryError(f"of version {version}, expected {VERSION}")
    if length > min(_MOST_HEADER, size - _START.size):
        raise DamagedEntryError(f"a header of {length:,} bytes in a file of {size:,}")
    content = file.read(length)
    try:
        header = json.loads(content)
        if header["key"] != key:
            raise DamagedEntryError("of another key")
        header["arrays"] = [_described(*described) for described in header["arrays"]]
        if not isinstance(header["facts"], dict) or not isinstance(header["kind"], str):
            raise DamagedEntryError("its header is damaged")
    except (ValueError, TypeError, KeyError, RecursionError):
        raise DamagedEntryError("its header is damaged") from None
    return checksum, header, content


def _stored(value: npt.NDArray[Any]) -> Piece:
    """The bytes of an array, or these compressed, where it pays. Scores are mostly zeros, and of few digits."""
    if not value.size:
        return b""
    plain = value.reshape(-1).view(np.uint8).data
    packed = zstandard.ZstdCompressor(level=1).compress(plain) if value.nbytes >= _LEAST_PACKED else plain
    return packed if len(packed) < _WORTH * value.nbytes else plain


def _described(name: object, kind: object, shape: object, stored: object) -> _Described:
    """Name, type and shape of an array as a header has them, its bytes in memory, and those in the file.

    Raises:
        TypeError: they are none.
    """
    if not isinstance(name, str) or not isinstance(kind, str) or not isinstance(shape, list):
        raise TypeError(name)
    if type(stored) is not int or stored < 0:
        raise TypeError(name)
    if not _TYPE.fullmatch(kind) or any(type(n) is not int or n < 0 for n in shape):
        raise TypeError(name)
    dtype = np.dtype(kind)
    return _Described(name, dtype, tuple(shape), dtype.itemsize * math.prod(shape), stored)


def _read(file: IO[bytes], key: str) -> Entry:
    size = os.fstat(file.fileno()).st_size
    wanted, header, content = _header(file, key, size)
    described: list[_Described] = header["arrays"]
    stored, rest = sum(one.stored for one in described), size - _START.size - len(content)
    if stored != rest or any(one.stored > one.size for one in described):
        raise DamagedEntryError(f"arrays of {stored:,} bytes, there are {rest:,}")
    if sum(one.size for one in described) > allowed(max(_MOST_BYTES, _MOST_TIMES * rest)):
        raise DamagedEntryError(f"arrays that would take {sum(one.size for one in described):,} bytes")
    checksum, contents = hashlib.sha256(content), []
    for one in described:
        contents.append(file.read(one.stored))
        checksum.update(contents[-1])
    if checksum.digest() != wanted:
        raise DamagedEntryError("its checksum is another one")
    arrays = {one.name: one.array(data) for one, data in zip(described, contents, strict=True)}
    return Entry(arrays, header["facts"])
