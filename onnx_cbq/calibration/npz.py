"""Samples from an `.npz`: an array per input, the labels `y`, optionally `class_names`. Pickles are never loaded.

Everything in such a file may be wrong or a trap. Headers are bounded and checked before anything is read by them, what
is unpacked is bounded by the size of the file, and stored arrays must lie where the archive has room for them.
"""

from __future__ import annotations

import bisect
import errno
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import IO, ClassVar

import numpy as np

from onnx_cbq.calibration.card import Card
from onnx_cbq.calibration.decoding.npy import Header, Rows, read_header
from onnx_cbq.calibration.files import reason
from onnx_cbq.calibration.places import Place, size_of
from onnx_cbq.calibration.sources import PlacedSource, checked_labels
from onnx_cbq.errors import CalibrationError
from onnx_cbq.model import Array
from onnx_cbq.system.allowance import advice, allowed

_COPY_BYTES = 1 << 20
_MOST_ARRAYS = 1000
# Labels and names are held in memory, samples in a temporary file. Each may take so much, or so many times the file.
_SMALL_BYTES, _SMALL_TIMES = 16 << 20, 4
_UNPACKED_BYTES, _UNPACKED_TIMES = 512 << 20, 100
# Checksums of stored arrays are held against their bytes up to this size, in less than a second.
_CHECKED_BYTES = 1 << 30


class NpzSource(PlacedSource):
    """An `.npz` with one array per input, labels `y` and optionally `class_names`; rows are read from the file."""

    endings: ClassVar[tuple[str, ...]] = (".npz",)

    def __init__(self, places: Sequence[Place], card: Card, *, skip_unreadable: bool) -> None:
        del card, skip_unreadable
        (place,) = places
        self.label = path = place.label
        try:
            file = place.open()
        except OSError as error:
            raise CalibrationError(f"{path}: cannot be read: {error.strerror}") from error
        try:
            with file, zipfile.ZipFile(file) as archive:
                self._read(_Archive(place, size_of(file), archive))
        except (CalibrationError, MemoryError):
            raise
        except Exception as error:  # whatever zipfile and decompressors raise where bytes are missing or changed
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # places before the file's start
                raise CalibrationError(f"{path}: cannot be read: {error.strerror or reason(error)}") from error
            raise CalibrationError(f"{path}: not an .npz file, or cut short; write it with np.savez") from None

    def _read(self, archive: _Archive) -> None:
        members = {info.filename.removesuffix(".npy"): info for info in archive.zip.infolist()}
        self._require(members)
        labels = archive.small_array(members["y"])
        headers = {key: archive.header(info) for key, info in members.items() if key not in ("y", "class_names")}
        self.labels = checked_labels(labels, {key: header.shape for key, header in headers.items()}, self.label)
        self.inputs = tuple(headers)
        if "class_names" in members:
            self.class_names = _names(archive.small_array(members["class_names"]), self.label)
        archive.check_sizes([members[key] for key in headers])
        self._rows = {key: _rows(archive, members[key], header) for key, header in headers.items()}

    def _require(self, members: Mapping[str, object]) -> None:
        listing = ", ".join(list(members)[:10]) or "nothing"
        if "y" not in members:
            raise CalibrationError(f"{self.label}: no array 'y' with the labels; it holds: {listing}")
        if len(members) > _MOST_ARRAYS:
            raise CalibrationError(f"{self.label}: {len(members):,} arrays; expected one for each input of a model")
        if not members.keys() - {"y", "class_names"}:
            raise CalibrationError(f"{self.label}: no array 'x' with the samples; it holds: {listing}")

    def read(self, name: str, indices: Sequence[int]) -> Array:
        """Rows `indices` of array `name`."""
        return self._rows[name].read(indices)


@dataclass(frozen=True)
class _Archive:
    """An open archive, where it is and how many bytes it has."""

    place: Place
    size: int
    zip: zipfile.ZipFile

    @property
    def path(self) -> str:
        """What messages call it."""
        return self.place.label

    @cached_property
    def _edges(self) -> list[int]:
        """Where members begin, and the directory behind them."""
        return sorted({*(info.header_offset for info in self.zip.infolist()), self.zip.start_dir})

    def end_of(self, info: zipfile.ZipInfo) -> int:
        """Where the place of a member ends."""
        following = bisect.bisect_right(self._edges, info.header_offset)
        return self._edges[following] if following < len(self._edges) else 0

    def header(self, info: zipfile.ZipInfo) -> Header:
        """The header of a member, which must tell its true size.

        Raises:
            CalibrationError: it does not, or the array is none of numbers, row by row.
        """
        with self.zip.open(info) as stream:
            header = read_header(stream, f"{self.path}: array {info.filename!r}")
        if info.file_size != header.start + header.size:
            raise CalibrationError(
                f"{self.path}: array {info.filename!r} is damaged: expected {header.start + header.size} bytes, got "
                f"{info.file_size}"
            )
        return header

    def small_array(self, info: zipfile.ZipInfo) -> Array:
        """A member as an array in memory.

        Raises:
            CalibrationError: it is damaged, or larger than labels or names can be.
        """
        header, most = self.header(info), allowed(max(_SMALL_BYTES, _SMALL_TIMES * self.size))
        if header.size > most:
            raise CalibrationError(
                f"{self.path}: array {info.filename!r} takes {header.size:,} bytes of a file of {self.size:,}, "
                f"expected {most:,} at most; {advice(header.size, most)}"
            )
        with self.zip.open(info) as stream:
            data = stream.read()[header.start :]
        return np.frombuffer(data, header.dtype).reshape(header.shape)

    def check_sizes(self, infos: Sequence[zipfile.ZipInfo]) -> None:
        """Hold what would be unpacked against the size of the file.

        Raises:
            CalibrationError: it is too much.
        """
        total = sum(info.file_size for info in infos if info.compress_type != zipfile.ZIP_STORED)
        most = allowed(max(_UNPACKED_BYTES, _UNPACKED_TIMES * self.size))
        if total > most:
            raise CalibrationError(
                f"{self.path}: the samples take {total:,} bytes once unpacked from a file of {self.size:,}, expected "
                f"{most:,} at most; {advice(total, most)}"
            )


def _rows(archive: _Archive, info: zipfile.ZipInfo, header: Header) -> Rows:
    """Rows of one array; a compressed one is first unpacked to a temporary file.

    Raises:
        CalibrationError: it is damaged.
    """
    where = f"{archive.path}: array {info.filename!r}"
    if info.compress_type != zipfile.ZIP_STORED:
        return Rows(_unpacked(archive.zip, info), header, header.start, where)
    with ExitStack() as closed_on_error:
        file = closed_on_error.enter_context(archive.place.open())
        offset = _data_offset(file, info)
        _check_place(file, info, (offset, archive.end_of(info)), where)
        closed_on_error.pop_all()
    return Rows(file, header, header.start + offset, where)


def _check_place(file: IO[bytes], info: zipfile.ZipInfo, place: tuple[int, int], where: str) -> None:
    """Hold a stored array's place in the file against what follows, and its bytes against their checksum."""
    offset, end = place
    if end - offset < info.file_size:
        raise CalibrationError(f"{where} is damaged: expected {info.file_size} bytes, there is room for {end - offset}")
    if info.file_size > _CHECKED_BYTES:
        return
    file.seek(offset)
    found, left = 0, info.file_size
    while left and (piece := file.read(min(left, _COPY_BYTES))):
        found, left = zlib.crc32(piece, found), left - len(piece)
    if left or found != info.CRC:
        raise CalibrationError(f"{where} is damaged: its checksum is another one; copy or write it again")


def _names(names: Array, label: str) -> tuple[str, ...]:
    """Names of classes, from text or bytes.

    Raises:
        CalibrationError: they are no list.
    """
    names = np.atleast_1d(names)
    if names.ndim != 1:
        raise CalibrationError(f"{label}: 'class_names' has shape {names.shape}; expected one name per class")
    return tuple(
        name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else str(name) for name in names.tolist()
    )


def _unpacked(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    """A member's bytes in a temporary file that has no name and vanishes with the process."""
    with ExitStack() as closed_on_error:
        file = closed_on_error.enter_context(tempfile.TemporaryFile())
        with archive.open(info) as stream:
            shutil.copyfileobj(stream, file, _COPY_BYTES)
        closed_on_error.pop_all()
        return file


def _data_offset(file: IO[bytes], info: zipfile.ZipInfo) -> int:
    """Where a stored member's bytes begin: behind its local header of 30 bytes, its name and its extra field."""
    file.seek(info.header_offset + 26)
    name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
    return info.header_offset + 30 + name + extra
