"""Samples that are files: in folders and archives. They are decoded when their turn comes, several at a time."""

from __future__ import annotations

import copy
import errno
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import ClassVar

import numpy as np

from onnx_cbq.calibration.card import Card
from onnx_cbq.calibration.decoding.decoders import Decoder
from onnx_cbq.calibration.files import named, reason
from onnx_cbq.calibration.layouts import Listing, class_folders, found
from onnx_cbq.calibration.places import FOLDER, Place
from onnx_cbq.calibration.remembered import Remembered
from onnx_cbq.calibration.sources import PlacedSource, Source
from onnx_cbq.calibration.stores import File, FolderStore, Store
from onnx_cbq.errors import CalibrationError
from onnx_cbq.model import Array, InputSpec

# So many files are looked at before the next ones are, where unreadable ones are left out.
_AT_ONCE = 1024
# Threads that wait for a network, and take no processor meanwhile.
_FAR_THREADS = 32


class FileSource(PlacedSource):
    """Samples that are files of some stores.

    Attributes:
        decoder: what makes samples of them.
    """

    def __init__(self, places: Sequence[Place], card: Card, *, skip_unreadable: bool) -> None:
        self.inputs = ("x",)
        self.label = places[0].label + (f" and {len(places) - 1} more" if len(places) > 1 else "")
        try:
            listing = self.listing(places, card)
        except OSError as error:
            where = named(str(error.filename)) if error.filename else self.label
            raise CalibrationError(f"{where}: cannot be read: {error.strerror or reason(error)}") from error
        self.class_names, self.labels = listing.class_names, listing.labels
        self._files, self.decoder = listing.files, listing.decoder
        self._pool = ThreadPoolExecutor(_FAR_THREADS if any(place.far for place in places) else None)
        self._kept: Array | None = None
        if skip_unreadable:
            self._keep(np.flatnonzero(np.fromiter(self._readable(), bool, len(self._files))))
        self.decoder.begin(self._files)

    def _keep(self, kept: Array) -> None:
        """Leave out all files but those of these numbers."""
        self.skipped, self._kept = len(self._files) - len(kept), kept
        self._files, self.labels = self._files.where(kept.tolist()), self.labels[kept]

    def chosen(self) -> tuple[Array | None, Decoder]:
        """The files that are readable, if that is known, and what decodes them."""
        return self._kept, self.decoder

    def resumed(self, chosen: tuple[Array | None, Decoder]) -> Source:
        """The same as the one whose `chosen` that is."""
        kept, self.decoder = chosen
        if kept is not None:
            # There may be fewer files here; whoever compares the labels says so.
            self._keep(kept[kept < len(self._files)])
        return self

    @abstractmethod
    def listing(self, places: Sequence[Place], card: Card) -> Listing:
        """All samples. Raises CalibrationError, or OSError where something cannot be opened."""

    @property
    def what(self) -> str:
        """What the files hold."""
        return self.decoder.what

    @property
    def of_images(self) -> bool:
        """Whether the samples are images, [height, width, channels]."""
        return self.decoder.of_images

    @property
    def rate(self) -> int | None:
        """Numbers a second of the first sound."""
        return self.decoder.rate

    def describe(self, index: int) -> str:
        """The sample's file."""
        return str(self._files[index])

    def framed(self, card: Card) -> Source:
        """The same samples, brought to the size, or the rate and length, that another card says."""
        return self._with(self.decoder.framed(card))

    def fitted_to(self, inputs: Sequence[InputSpec]) -> Source:
        """The same samples, decoded to what a model wants."""
        return self._with(self.decoder.fitted_to(inputs))

    def remembered(self, indices: Array) -> Source:
        """The same samples; of `indices` none is decoded twice, if memory allows."""
        return Remembered(self, indices)

    def read(self, name: str, indices: Sequence[int]) -> Array:
        """Samples `indices`, decoded, [len(indices), ...]."""
        del name
        files = [self._files[i] for i in indices]
        samples = list(self._pool.map(self.decoder.decode, files))
        for file, sample in zip(files, samples, strict=True):
            if sample.shape != samples[0].shape:
                sizes = " and ".join(self.decoder.shape_text(one) for one in (sample, samples[0]))
                raise CalibrationError(f"{file}: {self.decoder.what} differ in size ({sizes}); {self.decoder.advice}")
        return np.stack(samples)

    def _with(self, decoder: Decoder) -> Source:
        other = copy.copy(self)
        other.decoder = decoder
        return other

    def _readable(self) -> Iterator[bool]:
        for start in range(0, len(self._files), _AT_ONCE):
            numbers = range(start, min(start + _AT_ONCE, len(self._files)))
            yield from self._pool.map(self._is_readable, (self._files[i] for i in numbers))

    def _is_readable(self, file: File) -> bool:
        try:
            self.decoder.decode(file)
        except CalibrationError:
            return False
        return True


class FolderSource(FileSource):
    """A folder with one sub-folder of files per class."""

    endings: ClassVar[tuple[str, ...]] = (FOLDER,)

    @classmethod
    def reads(cls, place: Place, card: Card) -> Iterator[Place]:
        """What the folder and its sub-folders hold; nothing below them is read, and links may lead in circles."""
        del card
        yield place
        for entry in place.entries():
            yield entry
            with suppress(OSError):  # it is no folder, or may not be entered: whoever reads it says so
                yield from entry.entries()

    def listing(self, places: Sequence[Place], card: Card) -> Listing:
        """Every file with the folder that it lies in."""
        return found([FolderStore(place) for place in places], card, (class_folders,))


class ArchiveSource(FileSource):
    """Archives of a folder for each class, or with a label beside each sample."""

    several: ClassVar[bool] = True

    @classmethod
    @abstractmethod
    def store(cls, place: Place) -> Store:
        """One archive. Raises CalibrationError, or OSError where it cannot be opened."""

    def listing(self, places: Sequence[Place], card: Card) -> Listing:
        """The files of all archives."""
        return found([self.store(place) for place in places], card)


def unreadable(label: str, error: Exception, what: str) -> CalibrationError:
    """What to raise where a library finds an archive damaged, or the system does not give its bytes."""
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # EINVAL: places before a file's start
        return CalibrationError(f"{label}: cannot be read: {error.strerror or reason(error)}")
    return CalibrationError(f"{label}: {what}, or cut short ({reason(error)})")
