"""Write files whole or not at all: under a temporary name in the same folder, renamed when complete."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from re import Pattern

import numpy as np
import zstandard
from onnx import ModelProto

from onnx_cbq.errors import OutputError
from onnx_cbq.model import Array, Model

# Protobuf refuses messages of 2 GiB; the margin is for the graph itself.
LARGEST_PROTOBUF = (1 << 31) - (1 << 24)
_ALIGNMENT = 4096
ZSTD_LEVEL = 9


def check_writable(path: Path) -> None:
    """Find out before the work begins whether `path` can be written.

    Raises:
        OutputError: its folder is missing or may not be written to, or `path` is itself a folder or a device.
    """
    _check_kind(path)
    with _explained(path), tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
        pass


def _check_kind(path: Path) -> None:
    """A file of the new name takes the place of what is there, so that must be a file too: /dev/null is not."""
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
        _write_bytes(temporary, content)


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write an `.npz` whole or not at all."""
    with _replacing(path) as temporary, _explained(path), temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def write_model(model: Model, path: Path) -> int:
    """Write a model whole or not at all; returns its bytes. Above 2 GB the weights go to `<path>.data` beside it.

    Raises:
        OutputError: the folder is missing, may not be written to, or the disk is full.
    """
    if sum(value.nbytes for value in model.weights.values()) < LARGEST_PROTOBUF:
        content = model.to_proto().SerializeToString()
        write_bytes(path, content)
        return len(content)
    return _write_with_data(model, path)


def check_folder(path: Path, replaceable: Pattern[str]) -> None:
    """Find out before the work begins whether the folder `path` can be made.

    Raises:
        OutputError: the folder above is missing or may not be written to; `path` is a file, or a folder that holds
            something that is not `replaceable` by name.
    """
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path}: is a file; give the name of a folder to make")
    others = [entry.name for entry in path.iterdir() if not replaceable.fullmatch(entry.name)] if path.is_dir() else []
    if others:
        raise OutputError(f"{path}: holds other files ({sorted(others)[0]!r}); give the name of a new folder")
    with _explained(path), tempfile.TemporaryDirectory(dir=path.absolute().parent, prefix=f".{path.name}."):
        pass


def write_folder(path: Path, files: Mapping[str, bytes], replaceable: Pattern[str]) -> None:
    """Write a folder whole or not at all; an earlier one takes its leave once the new one is complete.

    Raises:
        OutputError: as `check_folder`, or the disk is full.
    """
    check_folder(path, replaceable)
    parent = path.absolute().parent
    with _explained(path), tempfile.TemporaryDirectory(dir=parent, prefix=f".{path.name}.") as temporary:
        fresh, old = Path(temporary) / "new", Path(temporary) / "old"
        fresh.mkdir()
        for name, content in files.items():
            _write_bytes(fresh / name, content)
        if path.exists():
            path.rename(old)
        fresh.rename(path)


def compressed_size(path: Path) -> int:
    """Bytes of a file after zstandard, which is streamed: what a download or a store that compresses takes."""
    compressor, total = zstandard.ZstdCompressor(level=ZSTD_LEVEL), 0
    with path.open("rb") as file:
        for chunk in compressor.read_to_iter(file):
            total += len(chunk)
    return total


def _write_with_data(model: Model, path: Path) -> int:
    data = path.with_name(f"{path.name}.data")
    with _replacing(path) as temporary, _replacing(data) as temporary_data, _explained(path):
        skeleton = _write_weights(model, temporary_data, data.name)
        _write_bytes(temporary, skeleton.SerializeToString())
        return temporary.stat().st_size + temporary_data.stat().st_size


def _write_weights(model: Model, target: Path, location: str) -> ModelProto:
    """Write every weight to `target`; returns the skeleton that refers to it as `location`."""
    skeleton = ModelProto()
    skeleton.CopyFrom(model.skeleton)
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


def _write_bytes(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that takes its place at the end, or is removed if anything goes wrong."""
    _check_kind(path)
    with _explained(path):
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with _explained(path):
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
