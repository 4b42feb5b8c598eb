"""Files and folders behind a URL, through fsspec: `s3://`, `gs://`, `https://` and whatever it has a library for."""

from __future__ import annotations

import errno
import io
import posixpath
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, TypeVar, cast
from urllib.parse import urljoin, urlsplit, urlunsplit

from onnx_cbq.calibration.files import named, reason
from onnx_cbq.calibration.places import LocalPlace, Place, is_url
from onnx_cbq.calibration.stores import LARGEST_FILE
from onnx_cbq.errors import CalibrationError
from onnx_cbq.system.allowance import allowed
from onnx_cbq.system.extras import extra

_T = TypeVar("_T")
# So much is read ahead of a position: samples of an archive lie anywhere in it.
_BLOCK = 1 << 18
_COPY_BYTES = 1 << 20


def place_of(source: Path | str) -> Place:
    """The place that a path or a URL names.

    Raises:
        CalibrationError: fsspec does not know such URLs, or lacks a library for them.
        ConfigError: fsspec is not installed.
    """
    if isinstance(source, Path):
        return LocalPlace(source)
    fsspec = extra("fsspec", "remote", named(source))
    local = extra("fsspec.implementations.local", "remote", named(source))
    try:
        system, path = fsspec.core.url_to_fs(source)
    except Exception as error:  # noqa: BLE001, whatever libraries say of a URL, and ImportError where one is missing
        raise CalibrationError(f"{named(source)}: cannot be read: {reason(error)}") from None
    # Of local files only plain ones are opened, which fsspec does not look at.
    return LocalPlace(Path(path)) if isinstance(system, local.LocalFileSystem) else RemotePlace(system, path)


def inside(folder: Place, path: str) -> Place:
    """What lies at a path relative to a folder, or at a URL."""
    return place_of(path) if is_url(path) else folder.joined(path)


@dataclass(frozen=True)
class RemotePlace(Place):
    """A file or a folder of one of fsspec's file systems. Whatever its library raises is an OSError.

    Attributes:
        system: of fsspec; `path` is one of it.
        listed_as: what its folder says that it is, "file" or "directory", if it was asked.
    """

    far: ClassVar[bool] = True

    system: Any
    path: str
    listed_as: str | None = None

    @property
    def label(self) -> str:
        """The URL."""
        return named(str(self.system.unstrip_protocol(self.path)))

    @property
    def name(self) -> str:
        """The last part of the path, without a query."""
        path = urlsplit(self.path).path if self._is_web else self.path
        return path.rstrip("/").rpartition("/")[2]

    @property
    def parent(self) -> Place:
        """The folder that it lies in."""
        if self._is_web:
            return RemotePlace(self.system, urljoin(self.path.rstrip("/"), "."))
        return RemotePlace(self.system, posixpath.dirname(self.path.rstrip("/")))

    def joined(self, path: str) -> Place:
        """What lies at a path relative to this folder, on the same system."""
        folder = self.path.rstrip("/") + "/"
        return RemotePlace(self.system, urljoin(folder, path) if self._is_web else posixpath.normpath(folder + path))

    def sibling(self, name: str) -> Place:
        """What lies beside it; on the web it has the query of this one, which often is what allows to read both."""
        if not self._is_web:
            return super().sibling(name)
        parts = urlsplit(self.path)
        folder = parts.path.rstrip("/").rpartition("/")[0]
        return RemotePlace(self.system, urlunsplit(parts._replace(path=f"{folder}/{name}")))

    def is_folder(self) -> bool:
        """Whether it is a folder; on the web, where that cannot be asked, what ends with a slash is one."""
        if self.listed_as is not None:
            return self.listed_as == "directory"
        if self._is_web:
            return self.path.endswith("/")
        return _asked(self.label, lambda: bool(self.system.isdir(self.path)))

    def exists(self) -> bool:
        """Whether there is anything."""
        if not self._is_web:
            return _asked(self.label, lambda: bool(self.system.exists(self.path)))
        try:  # fsspec's own way begins to fetch the file
            _asked(self.label, lambda: self.system.info(self.path))
        except FileNotFoundError:
            return False
        return True

    def open(self) -> BinaryIO:
        """Its bytes, of which those are fetched that are read."""
        if "memory" in self._protocols:  # whose files are one stream for all
            return io.BytesIO(_asked(self.label, lambda: bytes(self.system.cat_file(self.path))))
        stream = _asked(self.label, lambda: self.system.open(self.path, "rb", block_size=_BLOCK))
        if not self._is_web or _gives_parts(stream):
            return cast(BinaryIO, stream)
        with stream, _asked(self.label, lambda: self.system.open(self.path, "rb", block_size=0)) as whole:
            return _copied(whole, self.label)

    def stream(self) -> BinaryIO:
        """All its bytes at once."""
        most = allowed(LARGEST_FILE)
        content = _asked(self.label, lambda: bytes(self.system.cat_file(self.path, start=0, end=most + 1)))
        if len(content) > most:
            raise OSError(errno.EFBIG, f"has more than {most:,} bytes", self.label)
        return io.BytesIO(content)

    def entries(self) -> Sequence[Place]:
        """What lies in the folder."""
        found = _asked(self.label, lambda: list(self.system.ls(self.path, detail=True)))
        kept = {str(entry["name"]): str(entry["type"]) for entry in found}
        names = sorted(name for name in kept if name.rstrip("/") != self.path.rstrip("/"))
        return [RemotePlace(self.system, name, kept[name]) for name in names]

    @property
    def _protocols(self) -> tuple[str, ...]:
        protocol = self.system.protocol
        return (protocol,) if isinstance(protocol, str) else tuple(protocol)

    @property
    def _is_web(self) -> bool:
        return bool({"http", "https"}.intersection(self._protocols))


def _asked(label: str, question: Callable[[], _T]) -> _T:
    """What a file system answers.

    Raises:
        OSError: it raised anything, which may be what its library has for that.
    """
    try:
        return question()
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, "no such file", label) from None
    except Exception as error:
        raise OSError(errno.EIO, reason(error), label) from error


def _gives_parts(stream: Any) -> bool:
    """Whether a web server answers for a part of a file, which not every one says beforehand."""
    try:
        stream.seek(-1, io.SEEK_END)
        stream.read(1)
        stream.seek(0)
    except Exception:  # noqa: BLE001, then it is asked for the whole, and says what is wrong
        return False
    return True


def _copied(stream: Any, label: str) -> BinaryIO:
    """A stream that can only be read once, in a temporary file that has no name and vanishes with the process."""
    file = tempfile.TemporaryFile()  # noqa: SIM115, whoever asked for it closes it
    try:
        _asked(label, lambda: shutil.copyfileobj(stream, file, _COPY_BYTES))
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return cast(BinaryIO, file)
