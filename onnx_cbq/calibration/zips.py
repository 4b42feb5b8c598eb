"""Samples in `.zip` files. Their directory is read up front, each file when its turn comes; nothing is extracted."""

from __future__ import annotations

import io
import weakref
import zipfile
from array import array
from functools import partial
from typing import BinaryIO, ClassVar

from onnx_cbq.calibration.file_source import ArchiveSource, unreadable
from onnx_cbq.calibration.files import named
from onnx_cbq.calibration.places import Place, size_of
from onnx_cbq.calibration.stores import LARGEST_FILE, File, Store
from onnx_cbq.errors import CalibrationError
from onnx_cbq.system.allowance import advice, allowed

# All files together may unpack to so much, or so many times the archive: each is unpacked alone, but it takes time.
_UNPACKED_BYTES, _UNPACKED_TIMES = 512 << 20, 100
# What it takes to read a file, besides its name.
_ENTRY = ("header_offset", "compress_size", "file_size", "compress_type", "flag_bits", "CRC")
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class ZipStore(Store):
    """The files of one archive. Of several with one name the last counts."""

    def __init__(self, place: Place) -> None:
        self.label = place.label
        try:
            stream = place.open()
            weakref.finalize(self, stream.close)
            self._archive = zipfile.ZipFile(stream)
            self._list(size_of(stream))
        except CalibrationError:
            raise
        except Exception as error:  # noqa: BLE001, whatever zipfile raises where bytes are missing or changed
            raise unreadable(self.label, error, "not a .zip file") from None

    def file(self, number: int) -> File:
        """The file of that number."""
        info = zipfile.ZipInfo(self.names[number])
        for key, values in self._entries.items():
            setattr(info, key, values[number])
        return File(named(f"{self.label}/{info.filename}"), partial(self._read, info), info.compress_size)

    def _read(self, info: zipfile.ZipInfo) -> BinaryIO:
        if info.compress_type not in _METHODS:
            raise ValueError("packed in another way than deflate")
        if info.file_size > allowed(LARGEST_FILE):
            raise ValueError(f"{info.file_size:,} bytes; {advice(info.file_size, allowed(LARGEST_FILE))}")
        return io.BytesIO(self._archive.read(info))

    def _list(self, size: int) -> None:
        infos = list(self._archive.NameToInfo.values())
        total = sum(info.file_size for info in infos)
        most = allowed(max(_UNPACKED_BYTES, _UNPACKED_TIMES * size))
        if total > most:
            raise CalibrationError(
                f"{self.label}: its files take {total:,} bytes once unpacked from {size:,}, expected {most:,} at most; "
                f"{advice(total, most)}"
            )
        self.names = [info.orig_filename for info in infos]
        self._entries = {key: array("q", (getattr(info, key) for info in infos)) for key in _ENTRY}
        # They take ten times as much.
        self._archive.NameToInfo.clear()
        self._archive.filelist.clear()


class ZipSource(ArchiveSource):
    """A `.zip` with a folder of files for each class, or with a label beside each file."""

    endings: ClassVar[tuple[str, ...]] = (".zip",)

    @classmethod
    def store(cls, place: Place) -> Store:
        """One archive."""
        return ZipStore(place)
