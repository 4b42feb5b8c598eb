"""Where the bytes of files come from, by their number: a folder, an archive, rows of a table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from onnx_cbq.calibration.places import FOLDER, Place, size_of

# Of an archive or a table one file is unpacked into memory at a time.
LARGEST_FILE = 256 << 20


@dataclass(frozen=True)
class File:
    """One file of a store.

    Attributes:
        label: what messages call it.
        open: makes a stream of its bytes that can be read from any position, or raises what its library raises.
        taken: how many bytes it takes where it lies, if that is not what the stream has.
    """

    label: str
    open: Callable[[], BinaryIO]
    taken: int | None = None

    def __str__(self) -> str:
        return self.label

    def size(self, stream: BinaryIO) -> int:
        """How many bytes it takes where it lies: what it may be unpacked to is held against them."""
        return size_of(stream) if self.taken is None else self.taken


class Store(ABC):
    """A place to get the bytes of files from. It can be asked from several threads.

    Attributes:
        label: what messages call it.
        names: paths of all files inside, parts separated by slashes; folders end with one. They are never paths of the
            machine, and nothing is written where they say.
    """

    label: str
    names: Sequence[str]

    @abstractmethod
    def file(self, number: int) -> File:
        """The file of that number in `names`."""


class FolderStore(Store):
    """A folder with a sub-folder for each class; nothing below those is looked at, and links may lead in circles."""

    def __init__(self, place: Place) -> None:
        self.label = place.label
        self._place = place
        self.names = []
        for folder in place.entries():
            if folder.is_folder():
                self.names.append(folder.name + FOLDER)
                self.names += [f"{folder.name}{FOLDER}{entry.name}" for entry in folder.entries()]

    def file(self, number: int) -> File:
        """The file of that number."""
        place = self._place.joined(self.names[number])
        return File(place.label, place.stream)


class PlaceStore(Store):
    """Files that lie anywhere, named one by one as in a list; `find` makes places of names."""

    def __init__(self, label: str, names: Sequence[str], find: Callable[[str], Place]) -> None:
        self.label, self.names, self._find = label, names, find

    def file(self, number: int) -> File:
        """The file of that number."""
        place = self._find(self.names[number])
        return File(place.label, place.stream)


class Files(Sequence[File]):
    """Chosen files of some stores, in an order; two whole numbers are held for each."""

    def __init__(self, stores: Sequence[Store], chosen: Iterable[tuple[int, int]]) -> None:
        self._stores = stores
        self._numbers = array("q", (number for pair in chosen for number in pair))

    def __len__(self) -> int:
        return len(self._numbers) // 2

    def __getitem__(self, index: int) -> File:  # type: ignore[override]  # slices are not needed
        store, number = self._numbers[2 * index], self._numbers[2 * index + 1]
        return self._stores[store].file(number)

    def where(self, kept: Iterable[int]) -> Files:
        """Some of the files."""
        return Files(self._stores, ((self._numbers[2 * i], self._numbers[2 * i + 1]) for i in kept))
