"""Samples from an `.npz`: an array per input, the labels `y`, optionally `class_names`. Pickles are never loaded."""

from __future__ import annotations

import io
import lzma
import shutil
import tempfile
import threading
import weakref
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np

from onnx_cbq.calibration.sources import Source, checked_labels
from onnx_cbq.errors import CalibrationError
from onnx_cbq.model import Array

_COPY_BYTES = 1 << 20
# What zipfile and its decompressors raise where bytes are missing or changed.
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError, ValueError)


class NpzSource(Source):
    """An `.npz` with one array per input, labels `y` and optionally `class_names`; rows are read from the file."""

    def __init__(self, path: Path) -> None:
        self.label = str(path)
        try:
            with zipfile.ZipFile(path) as archive:
                members = {name.removesuffix(".npy"): name for name in archive.namelist()}
                self._require(members)
                labels = _small_array(archive, members["y"], self.label)
                if "class_names" in members:
                    names = _small_array(archive, members["class_names"], self.label)
                    self.class_names = tuple(str(name) for name in np.atleast_1d(names))
                inputs = [key for key in members if key not in ("y", "class_names")]
                self._rows = {key: _Rows(path, archive, members[key], self.label) for key in inputs}
        except _DAMAGED:
            raise CalibrationError(f"{path}: not an .npz file, or cut short; write it with np.savez") from None
        except OSError as error:
            raise CalibrationError(f"{path}: cannot be read: {error.strerror}") from error
        self.inputs = tuple(self._rows)
        self.labels = checked_labels(labels, {key: rows.shape for key, rows in self._rows.items()}, self.label)

    def _require(self, members: Mapping[str, str]) -> None:
        listing = ", ".join(members) or "nothing"
        if "y" not in members:
            raise CalibrationError(f"{self.label}: no array 'y' with the labels; it holds: {listing}")
        if not members.keys() - {"y", "class_names"}:
            raise CalibrationError(f"{self.label}: no array 'x' with the samples; it holds: {listing}")

    def read(self, name: str, indices: Sequence[int]) -> Array:
        """Rows `indices` of array `name`."""
        return self._rows[name].read(indices)


class _Rows:
    """Rows of one array of an `.npz`, read by position; a compressed array is first unpacked to a temporary file."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, member: str, label: str) -> None:
        info = archive.getinfo(member)
        with archive.open(info) as stream:
            self.shape, self.dtype, start = _read_header(stream, member, label)
            expected = start + int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
            if info.file_size != expected:
                raise CalibrationError(
                    f"{label}: array {member!r} is damaged: expected {expected} bytes, got {info.file_size}"
                )
        self._file = path.open("rb") if info.compress_type == zipfile.ZIP_STORED else _unpacked(archive, info)
        if info.compress_type == zipfile.ZIP_STORED:
            start += _data_offset(self._file, info)
        weakref.finalize(self, self._file.close)
        self._lock = threading.Lock()
        self._start = start
        self._row_bytes = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize

    def read(self, indices: Sequence[int]) -> Array:
        """Rows `indices`, [len(indices), *row]."""
        with self._lock:
            data = b"".join(self._read_row(int(index)) for index in indices)
        return np.frombuffer(data, self.dtype).reshape(len(indices), *self.shape[1:])

    def _read_row(self, index: int) -> bytes:
        self._file.seek(self._start + index * self._row_bytes)
        return self._file.read(self._row_bytes)


def _read_header(stream: Any, member: str, label: str) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, type and length of the header of an `.npy` stream; pickled objects are refused."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        version = np.lib.format.read_magic(stream)
        shape, fortran_order, dtype = readers[version](stream)
    except (ValueError, KeyError) as error:
        raise CalibrationError(f"{label}: array {member!r} is damaged: {error}") from None
    if dtype.hasobject:
        raise CalibrationError(
            f"{label}: array {member!r} holds pickled Python objects, which are never loaded; save numbers"
        )
    if fortran_order and len(shape) > 1:
        raise CalibrationError(
            f"{label}: array {member!r} is stored column by column; save it with np.ascontiguousarray"
        )
    return tuple(shape), dtype, stream.tell()


def _small_array(archive: zipfile.ZipFile, member: str, label: str) -> Array:
    with archive.open(member) as stream:
        _read_header(stream, member, label)
    return np.asarray(np.load(io.BytesIO(archive.read(member)), allow_pickle=False))


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
