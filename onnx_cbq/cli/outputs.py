"""Nothing that a command reads is ever written: one guard for all files and folders, before any work."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from re import Pattern

from onnx_cbq.calibration import Card, files_read, load_card
from onnx_cbq.calibration.places import located
from onnx_cbq.errors import OutputError
from onnx_cbq.graph.load import data_files
from onnx_cbq.storage.files import check_folder, check_writable

_Identity = tuple[int, int]


def beside(source: Path, ending: str) -> Path:
    """The name of `source` with another ending: `resnet50-v1.5` has none that goes, `net.onnx` has."""
    name = source.name
    known = next((known for known in (".onnx", ".cbqz") if name.lower().endswith(known) and name.lower() != known), "")
    return source.parent / (name[: len(name) - len(known)] + ending)


@dataclass(frozen=True)
class Inputs:
    """What a command reads.

    Attributes:
        models: with the files that hold their weights.
        card, source: with all files of samples; `source` replaces the card's own, if there is a card.
        others: any other file.
    """

    models: tuple[Path | None, ...] = ()
    card: Path | None = None
    source: str | None = None
    others: tuple[Path | None, ...] = ()

    def files(self) -> Iterator[Path]:
        """Every file, as it is found. Cost: the models are parsed, and a folder of samples is walked."""
        for model in filter(None, self.models):
            yield model
            yield from data_files(model)
        yield from filter(None, self.others)
        if self.card is not None:
            yield self.card
            yield from files_read(load_card(self.card, self.source))
        elif self.source is not None:
            yield from files_read(Card(located(self.source)))


@dataclass(frozen=True)
class Folder:
    """A folder to write; what is in it is replaced if `replaceable` by name."""

    path: Path
    replaceable: Pattern[str]


def check_outputs(*outputs: Path | None, inputs: Inputs, folder: Folder | None = None) -> None:
    """Find out before the work begins whether every output can be written, and whether it would replace an input.

    A file is known by what the system calls it, so links and other spellings are no way around. Nothing is looked for
    where no output exists yet.

    Raises:
        OutputError: an output is another's, is read by the command, or cannot be written.
        CalibrationError: the card is wrong.
    """
    wanted = list(filter(None, outputs))
    taken: dict[str, Path] = {}
    for path in wanted:
        name = os.path.realpath(path)
        if name in taken:
            raise OutputError(f"{path}: is also another file of this command; give the output a name of its own")
        taken[name] = path
    if folder is not None:
        check_folder(folder.path, folder.replaceable)
        made = os.path.realpath(folder.path)
        for name, path in taken.items():
            if os.path.commonpath([name, made]) == made:
                raise OutputError(f"{path}: is inside the folder {str(folder.path)!r} to write; put it elsewhere")
        wanted += sorted(folder.path.iterdir()) if folder.path.is_dir() else []
    _refuse_inputs(wanted, inputs)
    for path in taken.values():
        check_writable(path)


def _refuse_inputs(outputs: Iterable[Path], inputs: Inputs) -> None:
    there = {identity: path for path in outputs if (identity := _identity(path)) is not None}
    for path in inputs.files() if there else ():
        output = there.get(_identity(path) or (0, 0))
        if output is not None:
            name = "it" if output == path else repr(str(path))
            raise OutputError(
                f"{output}: is also another file of this command: {name} is read; give the output a name of its own"
            )


def _identity(path: Path) -> _Identity | None:
    """What the system calls the file, behind all links; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
