"""Samples in `.tar` files. A pass over the headers finds where files lie; nothing is extracted.

A compressed one (`.tar.gz`, `.tgz`) cannot be read from the middle: it is first unpacked to a temporary file.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import tempfile
import threading
import weakref
from array import array
from contextlib import ExitStack
from functools import partial
from typing import IO, BinaryIO, ClassVar, cast

from onnx_cbq.calibration.file_source import ArchiveSource, unreadable
from onnx_cbq.calibration.files import named
from onnx_cbq.calibration.places import FOLDER, Place, size_of
from onnx_cbq.calibration.stores import LARGEST_FILE, File, Store
from onnx_cbq.errors import CalibrationError
from onnx_cbq.system.allowance import advice, allowed

_COMPRESSED = (".gz", ".tgz")
_UNPACKED_BYTES, _UNPACKED_TIMES = 512 << 20, 100
_COPY_BYTES = 1 << 20
# Long names and other attributes lie before a file; a header may claim that they have any size.
_LARGEST_ATTRIBUTES = 1 << 20


class TarStore(Store):
    """The plain files of one archive; links, devices and files with holes are left out. Of one name the last counts."""

    def __init__(self, place: Place) -> None:
        self.label = place.label
        try:
            self._stream = _unpacked(place) if place.ending.endswith(_COMPRESSED) else place.open()
            weakref.finalize(self, self._stream.close)
            self._lock = threading.Lock()
            self._list()
        except CalibrationError:
            raise
        except Exception as error:  # noqa: BLE001, whatever tarfile and decompressors raise where bytes are missing or changed
            raise unreadable(self.label, error, "not a .tar file") from None

    def file(self, number: int) -> File:
        """The file of that number."""
        return File(named(f"{self.label}/{self.names[number]}"), partial(self._read, number))

    def _list(self) -> None:
        size, places = size_of(cast(BinaryIO, self._stream)), dict[str, tuple[int, int]]()
        with tarfile.open(fileobj=_Guarded(self._stream), mode="r:") as archive:
            while (info := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # they would grow with the archive
                if info.isdir():
                    places[info.name.rstrip(FOLDER) + FOLDER] = 0, 0
                elif info.isreg() and not info.issparse():
                    if not 0 <= info.size <= size - info.offset_data:
                        raise ValueError(f"{info.size:,} bytes are claimed where the archive ends")
                    places[info.name] = info.offset_data, info.size
            self._stream.seek(archive.offset)
            if any(self._stream.read(tarfile.BLOCKSIZE)):  # tarfile ends in silence where a header is damaged
                raise ValueError(f"no header at byte {archive.offset:,}")
        self.names = list(places)
        self._starts = array("q", (start for start, _ in places.values()))
        self._sizes = array("q", (size for _, size in places.values()))

    def _read(self, number: int) -> BinaryIO:
        size = self._sizes[number]
        if size > allowed(LARGEST_FILE):
            raise ValueError(f"{size:,} bytes; {advice(size, allowed(LARGEST_FILE))}")
        with self._lock:
            self._stream.seek(self._starts[number])
            content = self._stream.read(size)
        if len(content) != size:
            raise ValueError("the archive ends early; was it changed meanwhile?")
        return io.BytesIO(content)


class _Guarded(io.RawIOBase):
    """The stream that headers are read from: no header makes anyone ask for gigabytes."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        """So many bytes."""
        if not 0 <= size <= _LARGEST_ATTRIBUTES:
            raise ValueError(f"a header of {size:,} bytes, expected {_LARGEST_ATTRIBUTES:,} at most")
        return self._stream.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position."""
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        """The position."""
        return self._stream.tell()

    def close(self) -> None:
        """Leaves the stream open: files are read from it later."""


def _unpacked(place: Place) -> IO[bytes]:
    """The bytes of a compressed archive in a temporary file that has no name and vanishes with the process.

    Raises:
        CalibrationError: they are more than an archive of its size should hold.
    """
    with ExitStack() as closed_on_error, place.open() as packed:
        most, total = allowed(max(_UNPACKED_BYTES, _UNPACKED_TIMES * size_of(packed))), 0
        file = closed_on_error.enter_context(tempfile.TemporaryFile())
        with gzip.open(packed) as stream:
            while piece := stream.read(_COPY_BYTES):
                total += len(piece)
                if total > most:
                    raise CalibrationError(
                        f"{place.label}: unpacks to more than {most:,} bytes; {advice(2 * most, most)}"
                    )
                file.write(piece)
        file.seek(0)
        closed_on_error.pop_all()
        return file


class TarSource(ArchiveSource):
    """A `.tar` with a folder of files for each class, or with a label beside each file."""

    endings: ClassVar[tuple[str, ...]] = (".tar", ".tar.gz", ".tgz")

    @classmethod
    def store(cls, place: Place) -> Store:
        """One archive."""
        return TarStore(place)
