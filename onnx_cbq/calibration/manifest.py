"""Samples that a list names: a CSV file with the columns `path` and `label`, or JSON Lines with these keys.

Whoever writes the list says which files are read, so a path may be absolute; others are relative to the list's folder.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, TextIO

from onnx_cbq.calibration.card import Card
from onnx_cbq.calibration.decoding.kinds import DECODERS
from onnx_cbq.calibration.file_source import FileSource
from onnx_cbq.calibration.files import reason, shown
from onnx_cbq.calibration.layouts import Listing, as_labels, checked, kind_of
from onnx_cbq.calibration.places import Place, size_of
from onnx_cbq.calibration.remote import inside
from onnx_cbq.calibration.stores import Files, PlaceStore
from onnx_cbq.errors import CalibrationError
from onnx_cbq.system.allowance import advice, allowed

_LARGEST = 256 << 20
_PATH, _LABEL = "path", "label"
_CSV = ".csv"


class ManifestSource(FileSource):
    """A `.csv` or `.jsonl` with the path and the label of each file."""

    endings: ClassVar[tuple[str, ...]] = (_CSV, ".jsonl")
    several: ClassVar[bool] = True

    @classmethod
    def reads(cls, place: Place, card: Card) -> Iterator[Place]:
        """The list, and every file that it names."""
        yield place
        yield from (inside(place.parent, path) for path, _ in _rows(place, card.labels or _LABEL))

    def listing(self, places: Sequence[Place], card: Card) -> Listing:
        """The files in the order of the lists."""
        stores, values = [], []
        for place in places:
            rows = list(_rows(place, card.labels or _LABEL))
            stores.append(PlaceStore(place.label, [path for path, _ in rows], partial(inside, place.parent)))
            values += [label for _, label in rows]
        kind = kind_of(name for store in stores for name in store.names)
        for store in stores:
            for number, name in enumerate(store.names):
                if not name.lower().endswith(kind.suffixes):
                    known = " or ".join(", ".join(one.suffixes) for one in DECODERS)
                    raise CalibrationError(
                        f"{self.label}: {store.file(number)}: expected all files to be of one kind, {known}"
                    )
        files = Files(stores, ((s, number) for s, store in enumerate(stores) for number in range(len(store.names))))
        return Listing(files, as_labels(values, card, self.label), kind(card))


def _rows(place: Place, label: str) -> Iterator[tuple[str, int | str]]:
    """Path and label of each sample.

    Raises:
        CalibrationError: a line has none, or is damaged.
        OSError: the list cannot be opened.
    """
    line = 1
    with place.open() as stream, io.TextIOWrapper(stream, "utf-8-sig", newline="") as text:
        size, most = size_of(stream), allowed(_LARGEST)
        if size > most:
            raise CalibrationError(
                f"{place.label}: {size:,} bytes, expected {most:,} at most for a list; {advice(size, most)}"
            )
        try:
            for line, row in (_of_csv if place.ending.endswith(_CSV) else _of_json_lines)(text):
                missing = [key for key in (_PATH, label) if row.get(key) in (None, "")]
                if missing:
                    raise CalibrationError(
                        f"{place.label}: line {line} has no {missing[0]!r}; expected {_PATH!r} and {label!r}, got "
                        f"{shown(list(row))}"
                    )
                path = row[_PATH]
                if not isinstance(path, str) or "\0" in path:
                    raise CalibrationError(f"{place.label}: line {line}: path {shown(path)}; expected a text")
                yield path, checked(row[label], f"{place.label}: line {line}")
        except (ValueError, RecursionError, csv.Error) as error:  # wrong bytes, quotes and brackets
            raise CalibrationError(f"{place.label}: damaged behind line {line}: {reason(error)}") from None


def _of_csv(text: TextIO) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(text)
    for row in reader:
        yield reader.line_num, {key: value for key, value in row.items() if key is not None}


def _of_json_lines(text: TextIO) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(text, 1):
        if not line.strip():
            continue
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is {shown(row)}, expected an object")  # noqa: TRY004, one kind of error
        yield number, row
