"""The bytes of a model's file, parsed: the border where protobuf's errors become ours."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from google.protobuf.message import DecodeError
from onnx import ModelProto

from onnx_cbq.errors import ModelError

# What an archive begins with (`storage.coding.container.MAGIC`, which stands above this folder).
_ARCHIVE = b"CBQZ"
# Protobuf refuses messages of 2 GiB.
_LARGEST_FILE = (1 << 31) - 1


def read_model(path: Path) -> ModelProto:
    """The protobuf at `path`; data in other files stays there.

    Raises:
        ModelError: it is missing, no file, too large for protobuf, or no ONNX model.
    """
    content = read_file(path, "an .onnx file")
    proto = ModelProto()
    try:
        proto.ParseFromString(content)
    except DecodeError:
        what = "an archive; make it a model with onnx-cbq restore" if content.startswith(_ARCHIVE) else None
        raise ModelError(f"{path}: {what or 'not an ONNX model, or cut short; export or copy it again'}") from None
    return proto


def read_file(path: Path, what: str) -> bytes:
    """The content of a regular file; `what` it is says what was expected instead of something else.

    Raises:
        ModelError: it is missing, no file, or cannot be read.
    """
    try:
        # Not to wait for whoever writes into a pipe; a regular file does not mind.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as file:
            _check_kind(path, os.fstat(file.fileno()), what)
            return file.read()
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file; check its path") from None
    except IsADirectoryError:
        raise ModelError(f"{path}: expected {what}, got a folder; give the file in it") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}; check its path") from error
    except ValueError:  # a null character
        raise ModelError(f"{str(path)!r}: not a path; check it") from None


def _check_kind(path: Path, found: os.stat_result, what: str) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError
    if not stat.S_ISREG(found.st_mode):
        raise ModelError(f"{path}: expected {what}, got a device or pipe; give the name of a file")
    if found.st_size > _LARGEST_FILE:
        raise ModelError(
            f"{path}: has {found.st_size} bytes, expected at most {_LARGEST_FILE}, which protobuf reads; export it "
            f"with external data"
        )
