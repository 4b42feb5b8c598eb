"""Samples in Parquet files, as image and audio sets are published on the Hugging Face hub.

A column holds the files, a struct with `bytes` (or the bytes alone), another one the labels. Labels are read up front,
groups of rows when one of their samples is asked for; some groups are kept, as neighbours are asked for together.
"""

from __future__ import annotations

import bisect
import io
import json
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any, BinaryIO, ClassVar

import numpy as np

from onnx_cbq.calibration.card import Card
from onnx_cbq.calibration.decoding.kinds import DECODERS
from onnx_cbq.calibration.file_source import FileSource, unreadable
from onnx_cbq.calibration.files import named, shown
from onnx_cbq.calibration.layouts import LABEL_KEYS, Listing, as_labels, checked
from onnx_cbq.calibration.places import Place, size_of
from onnx_cbq.calibration.stores import File, Files, Store
from onnx_cbq.errors import CalibrationError
from onnx_cbq.model import Array
from onnx_cbq.system.allowance import advice, allowed
from onnx_cbq.system.extras import extra

_LABELS = (*LABEL_KEYS, "labels")
_BYTES, _NOT = "bytes", "not a .parquet file"
# Groups of rows that are kept in memory, all together, and one alone.
_KEPT_BYTES, _LARGEST_GROUP = 256 << 20, 1 << 30
# Rows take a byte of the file at least, unless they all say the same.
_MOST_ROWS = 1 << 20


class TableStore(Store):
    """The files in one column of a Parquet file, a row each.

    Attributes:
        column: of the labels.
        class_names: in the order of the labels, if the file says them.
    """

    def __init__(self, place: Place, card: Card, kept: _Kept) -> None:
        self.label, self.names, self._kept = place.label, (), kept
        parquet = extra("pyarrow.parquet", "parquet", place.label)
        try:
            stream = place.open()
            weakref.finalize(self, stream.close)
            size, schema = size_of(stream), parquet.read_schema(stream)
            features = _features(schema)
            self._leaf = _leaf(schema, self.label)
            self.column = _label_column(schema, features, card.labels, self.label)
            # A value that many rows share is then held once.
            self._table = parquet.ParquetFile(stream, read_dictionary=[self._leaf], pre_buffer=False)
            self._check(size)
            self._lock = threading.Lock()
        except CalibrationError:
            raise
        except Exception as error:  # noqa: BLE001, whatever pyarrow raises where bytes are missing or changed
            raise unreadable(self.label, error, _NOT) from None
        self.class_names = _class_names(features.get(self.column))

    def file(self, number: int) -> File:
        """The file in that row."""
        return File(named(f"{self.label}: row {number}"), partial(self._open, number))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _check(self, size: int) -> None:
        metadata = self._table.metadata
        groups = [metadata.row_group(g) for g in range(metadata.num_row_groups)]
        self._starts = np.cumsum([0, *(group.num_rows for group in groups)]).tolist()
        most = allowed(max(_MOST_ROWS, size))
        if len(self) > most or any(group.num_rows < 0 for group in groups):
            raise CalibrationError(
                f"{self.label}: {len(self):,} rows in {size:,} bytes, expected {most:,} at most; "
                f"{advice(len(self), most)}"
            )
        largest = max((group.total_byte_size for group in groups), default=0)
        if largest > allowed(_LARGEST_GROUP):
            raise CalibrationError(
                f"{self.label}: a group of rows takes {largest:,} bytes, expected {allowed(_LARGEST_GROUP):,} at most; "
                f"write it in smaller ones, or {advice(largest, allowed(_LARGEST_GROUP))}"
            )

    def labels(self) -> list[int | str]:
        """The labels of all rows, numbers or names, as the column has them.

        Raises:
            CalibrationError: one is missing, or they are damaged.
        """
        values: list[int | str] = []
        for group in range(self._table.num_row_groups):
            try:
                column = self._table.read_row_group(group, columns=[self.column]).column(0)
            except Exception as error:  # noqa: BLE001, as above
                raise unreadable(self.label, error, _NOT) from None
            start = len(values)
            values += [
                checked(value, f"{self.label}: row {start + i}: {self.column!r}")
                for i, value in enumerate(column.to_pylist())
            ]
        return values

    def _open(self, number: int) -> BinaryIO:
        group = bisect.bisect_right(self._starts, number) - 1
        value = self._kept.get((id(self), group), partial(self._group, group))[number - self._starts[group]].as_py()
        content = value.get(_BYTES) if isinstance(value, dict) else value
        if content is None:
            raise ValueError("there are no bytes in this row")
        return io.BytesIO(content)

    def _group(self, group: int) -> Any:
        with self._lock:
            return self._table.read_row_group(group, columns=[self._leaf]).column(0)


class _Kept:
    """The groups of rows that were read last, up to some bytes and one at least; one thread reads, others wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._groups: OrderedDict[tuple[int, int], Any] = OrderedDict()

    def get(self, key: tuple[int, int], read: partial[Any]) -> Any:
        """A group, read if it is not there."""
        with self._lock:
            if key not in self._groups:
                self._groups[key] = read()
                while len(self._groups) > 1 and sum(one.nbytes for one in self._groups.values()) > _KEPT_BYTES:
                    self._groups.popitem(last=False)
            self._groups.move_to_end(key)
            return self._groups[key]


class ParquetSource(FileSource):
    """`.parquet` files with a column of image or audio files and one of labels."""

    endings: ClassVar[tuple[str, ...]] = (".parquet",)
    several: ClassVar[bool] = True

    def listing(self, places: Sequence[Place], card: Card) -> Listing:
        """Every row, in the order of the files."""
        kept = _Kept()
        stores = [TableStore(place, card, kept) for place in places]
        names = stores[0].class_names
        for store in stores:
            if (store.class_names, store.column) != (names, stores[0].column):
                raise CalibrationError(
                    f"{store.label}: has other classes than {stores[0].label}; name files of one set"
                )
        values = [value for store in stores for value in store.labels()]
        labels, names = _numbered(as_labels(values, card, self.label), names, card)
        files = Files(stores, ((s, row) for s, store in enumerate(stores) for row in range(len(store))))
        kind = _kind(files[0]) if len(files) else DECODERS[0]
        return Listing(files, labels, kind(card), names)


def _numbered(labels: Array, names: tuple[str, ...] | None, card: Card) -> tuple[Array, tuple[str, ...] | None]:
    """Labels that count by the names of the file as they count by those of the card, if they are the same names."""
    if names is None or card.classes is None or sorted(names) != sorted(card.classes) or labels.dtype.kind != "i":
        return labels, names
    place = np.array([card.classes.index(name) for name in names])
    inside = (labels >= 0) & (labels < len(names))
    return np.where(inside, place[np.where(inside, labels, 0)], labels), card.classes


def _kind(file: File) -> type[Any]:
    """What the first file is, by its first bytes."""
    try:
        with file.open() as stream:
            start = stream.read(16)
    except Exception:  # noqa: BLE001, the file is named when it is decoded
        return DECODERS[0]
    return next((kind for kind in DECODERS if start.startswith(kind.starts)), DECODERS[0])


def _features(schema: Any) -> dict[str, Any]:
    """What the `datasets` library says of each column; nothing if it did not write the file."""
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _class_names(feature: Any) -> tuple[str, ...] | None:
    names = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
    return tuple(map(str, names)) if isinstance(names, list) and names else None


def _leaf(schema: Any, label: str) -> str:
    """The path of the only column with bytes of files.

    Raises:
        CalibrationError: there is none, or there are several.
    """
    found = []
    for field in schema:
        inner = [one for one in field.type if one.name == _BYTES] if _is(field.type, "struct") else []
        if inner and _is(inner[0].type, "binary", "large_binary"):
            found.append(f"{field.name}.{_BYTES}")
        elif _is(field.type, "binary", "large_binary"):
            found.append(field.name)
    if len(found) != 1:
        raise CalibrationError(
            f"{label}: {len(found)} columns hold files, expected one of bytes, or of a struct with {_BYTES!r}; it has "
            f"{shown(schema.names)}"
        )
    return found[0]


def _label_column(schema: Any, features: dict[str, Any], wanted: str | None, label: str) -> str:
    """The column of the labels: the one that the card names, else the only one that can be meant.

    Raises:
        CalibrationError: there is none, or there are several.
    """
    plain = [field.name for field in schema if _is(field.type, "int", "uint", "string", "large_string")]
    if wanted is not None:
        found = [name for name in plain if name == wanted]
    else:
        ways = (
            [name for name in plain if _class_names(features.get(name))],
            [name for name in plain if name in _LABELS],
            plain,
        )
        found = next((way for way in ways if way), [])
    if len(found) != 1:
        meant = (
            f"{wanted!r} is no column of numbers or names" if wanted else f"{len(found)} columns may hold the labels"
        )
        raise CalibrationError(f'{label}: {meant}; set labels = "..." in the card to one of {shown(plain)}')
    return str(found[0])


def _is(kind: Any, *names: str) -> bool:
    """Whether a type of pyarrow is one of these, whatever its width."""
    text = str(kind)
    return any(text.rstrip("0123456789") == name or (name == "struct" and text.startswith("struct<")) for name in names)
