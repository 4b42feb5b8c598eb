"""Write files whole or not at all: under a temporary name in the same folder, renamed when complete."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from re import Pattern

import numpy as np
import zstandard
from onnx import ModelProto

from onnx_cbq.errors import OutputError
from onnx_cbq.model import Array, Model
from onnx_cbq.storage.pieces import pieces
from onnx_cbq.system.temporary import temporary_file, temporary_folder

# Protobuf refuses messages of 2 GiB; the margin is for the graph itself.
LARGEST_PROTOBUF = (1 << 31) - (1 << 24)
_ALIGNMENT = 4096
# Of linux/fs.h and fcntl.h: both names change what they stand for at once; names are relative to the working folder.
_RENAME_EXCHANGE, _AT_FDCWD = 2, -100
ZSTD_LEVEL = 9
# What lies there is the system's, but for files in memory.
_SYSTEM, _MEMORY = {Path("/dev"), Path("/proc")}, Path("/dev/shm")  # noqa: S108


def check_writable(path: Path) -> None:
    """Find out before the work begins whether `path` can be written.

    Raises:
        OutputError: its folder is missing or may not be written to, or `path` is itself a folder or a device.
    """
    _check_kind(path)
    with _explained(path), temporary_file(path):
        pass


def _check_kind(path: Path) -> None:
    """A file of the new name takes the place of what is there, so that must be a file too: /dev/null is not.

    Nor is /dev/stdout, a link of the system's, which may lead to a file.
    """
    if not path.name:
        raise OutputError(f"{str(path)!r}: is a folder; give the name of the file to write")
    above = {*path.absolute().parents, *path.parent.resolve().parents, path.parent.resolve()}
    if above & _SYSTEM and _MEMORY not in above:
        raise OutputError(f"{path}: is a device or pipe; give the name of the file to write")
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a device or pipe"
        raise OutputError(f"{path}: is {kind}; give the name of the file to write")


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with _replacing(path) as temporary, _explained(path):
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with _replacing(path) as temporary, _explained(path):
        _write_pieces(temporary, [content])


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write an `.npz` whole or not at all."""
    with _replacing(path) as temporary, _explained(path), temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def write_model(model: Model, path: Path) -> int:
    """Write a model whole or not at all; returns its bytes. Above 2 GB the weights go to `<path>.data` beside it.

    Raises:
        OutputError: the folder is missing, may not be written to, or the disk is full.
    """
    if sum(value.nbytes for value in model.weights.values()) >= LARGEST_PROTOBUF:
        return _write_with_data(model, path)
    with _replacing(path) as temporary, _explained(path):
        return _write_pieces(temporary, pieces(model))


def weights_beside(path: Path) -> Path:
    """Where `write_model` puts the weights of a model that is too large for one file."""
    return path.parent / f"{path.name}.data"


def check_folder(path: Path, replaceable: Pattern[str]) -> None:
    """Find out before the work begins whether the folder `path` can be made.

    A folder that a killed run was about to replace is put back.

    Raises:
        OutputError: the folder above is missing or may not be written to; `path` is a file, or a folder that holds
            something that is not `replaceable` by name.
    """
    with _explained(path):
        _put_back(path)
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path}: is a file; give the name of a folder to make")
    others = [entry.name for entry in path.iterdir() if not replaceable.fullmatch(entry.name)] if path.is_dir() else []
    if others:
        raise OutputError(f"{path}: holds other files ({sorted(others)[0]!r}); give the name of a new folder")
    with _explained(path), temporary_folder(path):
        pass


def write_folder(path: Path, files: Mapping[str, bytes], replaceable: Pattern[str]) -> None:
    """Write a folder whole or not at all; an earlier one takes its leave once the new one is complete.

    Raises:
        OutputError: as `check_folder`, or the disk is full.
    """
    check_folder(path, replaceable)
    with _explained(path), temporary_folder(path) as temporary:
        fresh = temporary / "new"
        fresh.mkdir()
        for name, content in files.items():
            _write_pieces(fresh / name, [content])
        if not path.exists():
            fresh.rename(path)
        elif not _exchange(fresh, path):
            _replace_folder(fresh, path)


def _exchange(first: Path, second: Path) -> bool:
    """Let two names change what they stand for, at once; False where the system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    names = os.fsencode(first.absolute()), os.fsencode(second.absolute())
    return bool(rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)


def _replace_folder(fresh: Path, path: Path) -> None:
    """In two steps; the old folder stands beside until the new one is in place, and comes back if it is not."""
    old = _kept(path)
    try:
        path.rename(old)
        fresh.rename(path)
    finally:
        _put_back(path)


def _put_back(path: Path) -> None:
    """The folder that was to be replaced comes back where nothing has taken its place; else it has had its time."""
    old = _kept(path)
    if not old.is_dir():
        return
    if path.exists():
        shutil.rmtree(old)
    else:
        old.rename(path)


def _kept(path: Path) -> Path:
    return path.absolute().with_name(f".{path.name}.replaced.onnx-cbq")


def compressed_size(path: Path) -> int:
    """Bytes of a file after zstandard, which is streamed: what a download or a store that compresses takes."""
    compressor, total = zstandard.ZstdCompressor(level=ZSTD_LEVEL), 0
    with path.open("rb") as file:
        for chunk in compressor.read_to_iter(file):
            total += len(chunk)
    return total


def _write_with_data(model: Model, path: Path) -> int:
    data = weights_beside(path)
    with _replacing(path) as temporary, _replacing(data) as temporary_data, _explained(path):
        skeleton = _write_weights(model, temporary_data, data.name)
        _write_pieces(temporary, [skeleton.SerializeToString()])
        return temporary.stat().st_size + temporary_data.stat().st_size


def _write_weights(model: Model, target: Path, location: str) -> ModelProto:
    """Write every weight to `target`; returns the skeleton that refers to it as `location`."""
    skeleton = ModelProto()
    skeleton.CopyFrom(model.plain_skeleton())
    with target.open("wb") as file:
        for tensor in skeleton.graph.initializer:
            if tensor.name not in model.weights:
                continue
            file.write(b"\0" * (-file.tell() % _ALIGNMENT))
            fields = {"location": location, "offset": file.tell()}
            value = np.ascontiguousarray(model.weights[tensor.name])
            file.write(value.data)
            del tensor.external_data[:]
            for key, entry in (fields | {"length": value.nbytes}).items():
                tensor.external_data.add(key=key, value=str(entry))
        os.fsync(file.fileno())
    return skeleton


def _write_pieces(path: Path, content: Iterable[bytes | memoryview]) -> int:
    """Write what follows each other; returns its bytes."""
    with path.open("wb") as file:
        size = sum(file.write(piece) for piece in content)
        file.flush()
        os.fsync(file.fileno())
    return size


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that takes its place at the end, or is removed if anything goes wrong."""
    _check_kind(path)
    with _explained(path), temporary_file(path) as temporary:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise OutputError(f"{path}: the folder {str(path.parent)!r} does not exist; create it first") from None
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}; nothing was left behind") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
