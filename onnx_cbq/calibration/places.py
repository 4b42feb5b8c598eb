"""Files and folders that samples are read from, wherever they lie, and the names that stand for several of them."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import BinaryIO, ClassVar

from onnx_cbq.calibration.files import named, open_plain
from onnx_cbq.errors import CalibrationError

# What the name of a folder ends with, as in archives: what a place holds is told by the ending of its name.
FOLDER = "/"
_MOST_FILES = 100_000
# {000..127}, or {train,test}.
_BRACES = re.compile(r"\{(?:(\d{1,18})\.\.(\d{1,18})|([^{}]*,[^{}]*))\}")
_WILD = re.compile(r"[*?\[]")
# A letter alone is a drive of Windows.
_URL = re.compile(r"[a-z][a-z0-9+.-]+(?:::[a-z][a-z0-9+.-]+)*://")


def is_url(text: str) -> bool:
    """Whether a text is no path, but names a file system by its protocol."""
    return _URL.match(text) is not None


def located(source: str | Path) -> str | Path:
    """A URL as it is, a path as one."""
    return source if isinstance(source, str) and is_url(source) else Path(source)


def is_hidden(name: str) -> bool:
    """What systems and programs leave beside images: .git, .ipynb_checkpoints, ._1.png and __MACOSX."""
    return name.startswith(".") or name == "__MACOSX"


class Place(ABC):
    """A file or a folder. What cannot be found out or opened is an OSError.

    Attributes:
        far: whether whoever reads waits for a network, and not for a disk.
    """

    far: ClassVar[bool] = False

    @property
    @abstractmethod
    def label(self) -> str:
        """What messages call it."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The last part of its path."""

    @property
    @abstractmethod
    def parent(self) -> Place:
        """The folder that it lies in."""

    @abstractmethod
    def joined(self, path: str) -> Place:
        """What lies at a path relative to this folder; an absolute path is taken as it is."""

    def sibling(self, name: str) -> Place:
        """What lies beside it under another name."""
        return self.parent.joined(name)

    @abstractmethod
    def is_folder(self) -> bool:
        """Whether it is a folder."""

    @abstractmethod
    def exists(self) -> bool:
        """Whether there is anything."""

    @abstractmethod
    def open(self) -> BinaryIO:
        """Its bytes, a stream that can be read from any position."""

    def stream(self) -> BinaryIO:
        """Its bytes, to be read once and whole."""
        return self.open()

    @abstractmethod
    def entries(self) -> Sequence[Place]:
        """What lies in a folder, in the order of names."""

    @property
    def ending(self) -> str:
        """The name in small letters, a folder's with a slash behind it."""
        return self.name.lower() + (FOLDER if self.is_folder() else "")


@dataclass(frozen=True)
class LocalPlace(Place):
    """A file or a folder of this machine; of files only plain ones are opened, no devices and pipes."""

    path: Path

    @property
    def label(self) -> str:
        """The path."""
        return named(str(self.path))

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.name or self.path.resolve().name

    @property
    def parent(self) -> Place:
        """The folder that it lies in."""
        return LocalPlace(self.path.parent)

    def joined(self, path: str) -> Place:
        """What lies at a path relative to this folder."""
        return LocalPlace(self.path / path)

    def is_folder(self) -> bool:
        """Whether it is a folder, or a link to one."""
        return self.path.is_dir()

    def exists(self) -> bool:
        """Whether there is anything."""
        return self.path.exists()

    def open(self) -> BinaryIO:
        """Its bytes."""
        return open_plain(self.path)

    def entries(self) -> Sequence[Place]:
        """What lies in the folder."""
        return [LocalPlace(self.path / name) for name in sorted(os.listdir(self.path))]  # noqa: PTH208, links stay


def size_of(stream: BinaryIO) -> int:
    """How many bytes a stream has; it stays where it is."""
    where = stream.tell()
    size = stream.seek(0, os.SEEK_END)
    stream.seek(where)
    return size


def expanded(place: Place) -> Sequence[Place]:
    """The places that the last part of a path stands for: `{000..127}`, `{a,b}`; in the order of names `*` and `?`.

    Something that has this very name stands for itself.

    Raises:
        CalibrationError: there is nothing, or a part of it is missing.
        OSError: it cannot be found out.
    """
    if place.exists():
        return [place]
    found: list[Place] = []
    for name in _spelled_out(place.name, place.label):
        wild = _WILD.search(name) is not None
        one = place.sibling(name)
        entries = [entry for entry in place.parent.entries() if _shows(entry.name, name)] if wild else []
        places = [entry for entry in entries if fnmatchcase(entry.name, name)] if wild else [one] * one.exists()
        if not places:
            raise CalibrationError(
                f"{one.label}: no such file or folder of samples; set source in the card, or --source"
            )
        found += places
    if not found:
        raise CalibrationError(f"{place.label}: stands for no file; expected {{first..last}}")
    return found


def _shows(entry: str, pattern: str) -> bool:
    """Whether a pattern may mean an entry of a folder: a hidden one only where it says so, as in a shell."""
    return not is_hidden(entry) or pattern.startswith(entry[0])


def _spelled_out(name: str, label: str) -> Iterator[str]:
    """A name with braces as the names that it stands for, in the order that they are written in."""
    texts: list[str] = []
    choices: list[Sequence[str]] = []
    end, count = 0, 1
    for braces in _BRACES.finditer(name):
        first, last, words = braces.groups()
        count *= len(words.split(",")) if words is not None else max(int(last) - int(first) + 1, 0)
        if count > _MOST_FILES:
            raise CalibrationError(f"{label}: stands for {count:,} files or more, expected {_MOST_FILES:,} at most")
        texts.append(name[end : braces.start()])
        numbers = () if words is not None else range(int(first), int(last) + 1)
        choices.append([f"{number:0{len(first)}}" for number in numbers] if words is None else words.split(","))
        end = braces.end()
    for chosen in product(*choices):
        yield "".join(text + choice for text, choice in zip(texts, chosen, strict=True)) + name[end:]
