"""Objects on their way to a worker: large arrays lie in a file that all workers map, sources are opened anew.

A parcel is a pickle, made here and read by a process that this one has started or was told to use: nothing of it is
kept. Arrays that were mapped from a file are named by their place in it, where workers see the same files; so are those
of at least `LARGE` bytes, once written to the spool. Without a spool all bytes travel, once to each worker.
"""

from __future__ import annotations

import io
import itertools
import pickle
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from socket import gethostname
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np

from onnx_cbq.calibration.card import Card
from onnx_cbq.calibration.files import reason
from onnx_cbq.calibration.opening import reopened
from onnx_cbq.calibration.sources import PlacedSource, Source
from onnx_cbq.errors import CalibrationError, ConfigError, WorkerError
from onnx_cbq.execution.engine import ModelFile
from onnx_cbq.model import Array
from onnx_cbq.model.mapped import place_of
from onnx_cbq.system.temporary import temporary_folder

LARGE = 1 << 18
# Sources that a worker keeps open: some unpack their file, or list a folder, whenever they are opened.
_MOST_OPEN = 4
_opened: dict[str, Source] = {}
# What sources are called on their way.
_tokens: WeakKeyDictionary[PlacedSource, str] = WeakKeyDictionary()


@dataclass
class Spool:
    """A folder for large arrays, each of them written once."""

    folder: Path
    # By where they are in memory, and their bytes; what was written is held, so that nothing else comes to be there.
    _places: dict[tuple[int, int], tuple[Array, Path]]
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @staticmethod
    @contextmanager
    def open() -> Iterator[Spool]:
        """A folder that is gone in the end."""
        with temporary_folder() as folder:
            yield Spool(folder, {})

    def names(self) -> set[tuple[int, int]]:
        """What was written."""
        return set(self._places)

    def forget(self, names: Iterable[tuple[int, int]]) -> None:
        """Remove arrays; a worker that has mapped one keeps it as long as it does.

        Where files that are mapped cannot be removed, they stay until the end.
        """
        for name in names:
            _, path = self._places.pop(name)
            with suppress(PermissionError):
                path.unlink()

    def place(self, value: Array) -> tuple[Path, int]:
        """Where a contiguous array lies: in which file, from which byte on."""
        mapped = place_of(value)
        if mapped is not None:
            return mapped
        key = value.__array_interface__["data"][0], value.nbytes
        if key not in self._places:
            path = self.folder / str(next(self._numbers))
            path.write_bytes(value.reshape(-1).view(np.uint8).data)
            self._places[key] = value, path
        return self._places[key][1], 0


class Reads(Protocol):
    """Stands for a source in a process that does not see its files."""

    def read(self, name: str, indices: Sequence[int]) -> Array:
        """See `Source.read`."""


# What arrives as something that `Reads`.
Lend = Callable[[Source], object]


def pack(value: object, spool: Spool | None = None, lend: Lend | None = None) -> bytes:
    """What `unpack` makes the same object of, in another process.

    With `lend` a source that cannot be opened there is replaced by one that asks.

    Raises:
        TypeError: it holds what cannot be sent.
    """
    stream = io.BytesIO()
    try:
        _Pickler(stream, spool, lend).dump(value)
    except (pickle.PicklingError, AttributeError) as error:
        raise TypeError(str(error)) from error
    return stream.getvalue()


def unpack(content: bytes) -> Any:
    """The object of a parcel that this program has packed."""
    return pickle.loads(content)  # noqa: S301, it was written by `pack` for this very process


class _Pickler(pickle.Pickler):
    def __init__(self, stream: io.BytesIO, spool: Spool | None, lend: Lend | None) -> None:
        super().__init__(stream, protocol=5)
        self._spool, self._lend = spool, lend

    def reducer_override(self, value: object) -> Any:
        """How some objects are taken apart; all others as they say themselves."""
        if isinstance(value, PlacedSource):
            lent = None if self._lend is None else _Lent.of(value, self._lend(value))
            token = _tokens.setdefault(value, secrets.token_hex(8))
            return _reopened, (token, _everywhere(value.card), value.chosen(), value.labels, lent)
        if isinstance(value, np.ndarray) and self._spool is not None and _is_large(value):
            path, start = self._spool.place(value)
            return _mapped, (path, start, value.dtype, value.shape)
        if isinstance(value, ModelFile) and value.content is None:
            content = value.path.read_bytes() if self._spool is None else None
            return ModelFile, (value.path.absolute(), value.float_weights, content)
        if isinstance(value, np.memmap):  # as an array, since a map of a file is no more than that elsewhere
            return np.asarray(value).__reduce_ex__(5)
        return NotImplemented


def _is_large(value: Array) -> bool:
    return value.nbytes >= LARGE and value.flags.c_contiguous and not value.dtype.hasobject


def _everywhere(card: Card | None) -> Card:
    """The card with a path that does not depend on the folder that a process is in."""
    assert card is not None
    return replace(card, source=card.source.absolute()) if isinstance(card.source, Path) else card


def _mapped(path: Path, start: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    try:
        return np.memmap(path, dtype, "r", start, shape)
    except (OSError, ValueError) as error:
        raise WorkerError(
            f"{path}: a worker on {gethostname()} cannot read it ({reason(error)}); put the model where all "
            f"workers see it under this name"
        ) from None


def _reopened(token: str, card: Card, chosen: object, labels: Array, lent: _Lent | None) -> Source:
    """The source of that token, which works of one run have in common, opened once if it can be."""
    if token in _opened:
        return _opened[token]
    try:
        source = _opened[token] = reopened(card, chosen, labels)
    except (CalibrationError, ConfigError) as error:  # not there, not the same, or what reads it is not installed
        if lent is not None:
            return lent
        raise type(error)(f"{error}; a worker on {gethostname()} reads samples by itself") from None
    while len(_opened) > _MOST_OPEN:
        del _opened[next(iter(_opened))]
    return source


class _Lent(Source):
    """A source whose files are elsewhere."""

    @staticmethod
    def of(source: Source, ticket: object) -> _Lent:
        """What is known of one, and whom to ask for the rest."""
        lent = _Lent()
        lent.label, lent.labels, lent.class_names = source.label, source.labels, source.class_names
        lent.inputs, lent.skipped = source.inputs, source.skipped
        lent._said = source.what, source.of_images, source.rate
        lent._ticket = ticket
        return lent

    _said: tuple[str, bool, int | None]
    _ticket: Any

    @property
    def what(self) -> str:
        """As the source says."""
        return self._said[0]

    @property
    def of_images(self) -> bool:
        """As the source says."""
        return self._said[1]

    @property
    def rate(self) -> int | None:
        """As the source says."""
        return self._said[2]

    def read(self, name: str, indices: Sequence[int]) -> Array:
        """Samples that are sent here."""
        reads: Reads = self._ticket
        return reads.read(name, indices)
