"""Arrays in `.npy` files and streams: their headers are checked, and samples read from where they lie.

Rows are read by their position: a file that is cut short meanwhile is an error, and no signal as where it is mapped
into the memory.
"""

from __future__ import annotations

import io
import math
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, ClassVar

import numpy as np

from onnx_cbq.calibration.decoding.decoders import Decoder
from onnx_cbq.calibration.files import reason
from onnx_cbq.calibration.places import size_of
from onnx_cbq.calibration.stores import LARGEST_FILE, File
from onnx_cbq.errors import CalibrationError
from onnx_cbq.model import Array
from onnx_cbq.system.allowance import advice, allowed

# Headers of an array of numbers have a hundred bytes or so.
_LARGEST_HEADER = 10_000
_READERS = {(1, 0): (2, np.lib.format.read_array_header_1_0), (2, 0): (4, np.lib.format.read_array_header_2_0)}


@dataclass(frozen=True)
class Header:
    """What an `.npy` says of itself; its numbers begin at byte `start`."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int

    @property
    def row_bytes(self) -> int:
        """Bytes of the numbers of one sample."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def size(self) -> int:
        """Bytes of all numbers."""
        return math.prod(self.shape) * self.dtype.itemsize


class Rows:
    """Rows of one array, read by position from `start`, where its numbers begin."""

    def __init__(self, file: IO[bytes], header: Header, start: int, where: str) -> None:
        self._file, self._header, self._start, self._where = file, header, start, where
        weakref.finalize(self, self._file.close)
        self._lock = threading.Lock()

    def read(self, indices: Sequence[int]) -> Array:
        """Rows `indices`, [len(indices), *row].

        Raises:
            CalibrationError: the file ends before them.
        """
        size = self._header.row_bytes
        with self._lock:
            data = b"".join(self._read_row(int(index), size) for index in indices)
        if len(data) != size * len(indices):
            raise CalibrationError(f"{self._where} ends early; was the file changed meanwhile?")
        return np.frombuffer(data, self._header.dtype).reshape(len(indices), *self._header.shape[1:])

    def _read_row(self, index: int, size: int) -> bytes:
        self._file.seek(self._start + index * size)
        return self._file.read(size)


def read_header(stream: IO[bytes], where: str) -> Header:
    """The header of an `.npy` stream, which stands behind it afterwards; pickled objects are refused.

    Raises:
        CalibrationError: it is damaged, or not one of an array of numbers or words.
    """
    start = stream.read(8)
    length_bytes, reader = _READERS.get((start[6], start[7]) if len(start) == 8 else (0, 0), (0, None))
    if start[:6] != np.lib.format.MAGIC_PREFIX or reader is None:
        raise CalibrationError(f"{where} is damaged: no header as np.save writes one")
    head = stream.read(length_bytes)
    length = int.from_bytes(head, "little")
    text = stream.read(length) if length <= _LARGEST_HEADER else b""
    if length > len(text):
        raise CalibrationError(f"{where} is damaged: its header claims {length:,} bytes")
    try:
        shape, fortran_order, dtype = reader(io.BytesIO(head + text))
    except Exception as error:  # noqa: BLE001, Python's own parser reads it
        raise CalibrationError(f"{where} is damaged: {reason(error)}") from None
    if dtype.hasobject:
        raise CalibrationError(f"{where} holds pickled Python objects, which are never loaded; save numbers")
    whole = all(type(length) is int and length >= 0 for length in shape)
    if not whole or not dtype.itemsize or dtype.names or dtype.subdtype:
        raise CalibrationError(
            f"{where} is damaged: {reason(ValueError(f'{dtype} of shape {shape}'))}; expected numbers"
        )
    if fortran_order and len(shape) > 1:
        raise CalibrationError(f"{where} is stored column by column; save it with np.ascontiguousarray")
    if len(shape) > 1 and shape[0] and not math.prod(shape[1:]):
        raise CalibrationError(f"{where} has samples without values, {shape[1:]}")
    return Header(tuple(shape), dtype, len(start) + len(head) + len(text))


def read_array(stream: BinaryIO, where: str, most: int) -> Array:
    """An `.npy` of at most `most` bytes (which `allowed` gave) as an array in memory.

    Raises:
        CalibrationError: it is larger, or damaged.
    """
    header, size = checked_header(stream, where), size_of(stream)
    if size > most:
        raise CalibrationError(f"{where} has {size:,} bytes, expected {most:,} at most; {advice(size, most)}")
    return np.frombuffer(stream.read(header.size), header.dtype).reshape(header.shape)


def checked_header(stream: BinaryIO, where: str) -> Header:
    """The header of an `.npy` file, which must tell the file's true size.

    Raises:
        CalibrationError: it does not, or the array is none of numbers, row by row.
    """
    header, size = read_header(stream, where), size_of(stream)
    if size != header.start + header.size:
        raise CalibrationError(f"{where} is damaged: expected {header.start + header.size} bytes, got {size}")
    return header


class Arrays(Decoder):
    """Reads samples that are an `.npy` each, exactly as they are."""

    what: ClassVar[str] = "arrays"
    suffixes: ClassVar[tuple[str, ...]] = (".npy",)
    starts: ClassVar[tuple[bytes, ...]] = (np.lib.format.MAGIC_PREFIX,)

    def decode(self, file: File) -> Array:
        """The array of a file."""
        try:
            with file.open() as stream:
                return read_array(stream, str(file), allowed(LARGEST_FILE))
        except CalibrationError:
            raise
        except Exception as error:  # whatever the system and archives say of what cannot be read
            what = error.strerror if isinstance(error, OSError) and error.strerror else reason(error)
            raise CalibrationError(
                f"{file}: cannot be read ({what}); replace it, or leave such files out with --skip-unreadable"
            ) from error
