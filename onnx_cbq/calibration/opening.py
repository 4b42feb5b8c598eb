"""What a card's source may be. A new kind is a `PlacedSource` in a file of its own, and an entry here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from onnx_cbq.calibration.card import Card
from onnx_cbq.calibration.decoding.kinds import DECODERS
from onnx_cbq.calibration.file_source import FolderSource
from onnx_cbq.calibration.files import reason
from onnx_cbq.calibration.manifest import ManifestSource
from onnx_cbq.calibration.npy_source import NpySource
from onnx_cbq.calibration.npz import NpzSource
from onnx_cbq.calibration.parquet import ParquetSource
from onnx_cbq.calibration.places import FOLDER, LocalPlace, Place, expanded, is_hidden
from onnx_cbq.calibration.remote import place_of
from onnx_cbq.calibration.sources import PlacedSource, Source
from onnx_cbq.calibration.tars import TarSource
from onnx_cbq.calibration.zips import ZipSource
from onnx_cbq.errors import CalibrationError
from onnx_cbq.model import Array

# What a file is is told by the ending of its name.
SOURCES: tuple[type[PlacedSource], ...] = (
    NpzSource,
    NpySource,
    FolderSource,
    ZipSource,
    TarSource,
    ManifestSource,
    ParquetSource,
)


def open_source(card: Card, *, skip_unreadable: bool) -> Source:
    """The source that a card names.

    Raises:
        CalibrationError: it is missing, or nothing that samples are read from.
    """
    place = place_of(card.source)
    try:
        places = _places(place)
        kinds = [kind_of(one) for one in places]
    except OSError as error:  # a name that is too long, a folder that may not be entered
        what = error.strerror or reason(error)
        raise CalibrationError(f"{place.label}: cannot be read: {what}; set source in the card") from error
    for one, kind in zip(places, kinds, strict=True):
        if kind is not kinds[0] or (len(places) > 1 and not kind.several):
            raise CalibrationError(
                f"{one.label}: is another kind of file than {places[0].label}, or none of which several are read; "
                f"name one"
            )
    source = kinds[0](places, card, skip_unreadable=skip_unreadable)
    source.card = card
    return source


def reopened(card: Card, chosen: object, labels: Array) -> Source:
    """A source that was opened by another process: see `PlacedSource.chosen`.

    Raises:
        CalibrationError: it is not there, or does not hold the same samples.
    """
    source = open_source(card, skip_unreadable=False)
    assert isinstance(source, PlacedSource)
    found = source.resumed(chosen)
    if not np.array_equal(found.labels, labels):
        raise CalibrationError(
            f"{found.label}: a worker finds {len(found.labels):,} samples there, or other labels, and the run has "
            f"{len(labels):,}; give a source that is the same on every machine, and does not change meanwhile"
        )
    return found


def files_read(card: Card) -> Iterator[Path]:
    """The files of this machine that are read for a card, as far as they can be found: whoever reads them says more."""
    if isinstance(card.source, Path):
        yield card.source
    with suppress(CalibrationError, OSError):
        for place in _places(place_of(card.source)):
            for one in kind_of(place).reads(place, card):
                if isinstance(one, LocalPlace):
                    yield one.path


def kind_of(place: Place) -> type[PlacedSource]:
    """The source that reads what lies there.

    Raises:
        CalibrationError: none does.
    """
    kind = _kind_of(place)
    if kind is not None:
        return kind
    if place.ending.endswith(tuple(suffix for kind in DECODERS for suffix in kind.suffixes)):
        raise CalibrationError(f"{place.label}: one file is no data set; name the folder above the class folders")
    known = ", ".join(ending for kind in SOURCES for ending in kind.endings if ending != FOLDER)
    raise CalibrationError(f"{place.label}: nothing that samples are read from; expected a folder, or one of {known}")


def _kind_of(place: Place) -> type[PlacedSource] | None:
    ending = place.ending  # a question to a network, where the place is far
    return next((kind for kind in SOURCES if ending.endswith(kind.endings)), None)


def _places(place: Place) -> Sequence[Place]:
    places = expanded(place)
    return _inside(places[0]) if len(places) == 1 else places


def _inside(place: Place) -> Sequence[Place]:
    """The files of a folder that holds no folders, where they are of a kind of which several make a set."""
    if not place.is_folder():
        return [place]
    entries = [entry for entry in place.entries() if not is_hidden(entry.name)]
    if any(entry.is_folder() for entry in entries):
        return [place]
    files = [entry for entry in entries if (kind := _kind_of(entry)) is not None and kind.several]
    return files or [place]
