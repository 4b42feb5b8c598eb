"""Files that others made: only plain ones are opened, and what is read at once is bounded beforehand."""

from __future__ import annotations

import errno
import os
import reprlib
import stat
from pathlib import Path
from typing import BinaryIO

from onnx_cbq.system.allowance import allowed

_LONGEST = 200
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60


def open_plain(path: Path) -> BinaryIO:
    """Open a file to read bytes.

    Raises:
        OSError: it cannot be opened, or is a folder, a device, a socket or a pipe, which might never end.
    """
    # Not to wait for whoever writes into a pipe; a regular file does not mind.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    file = os.fdopen(descriptor, "rb")
    mode = os.fstat(file.fileno()).st_mode
    if stat.S_ISREG(mode):
        return file
    file.close()
    raise OSError(errno.EINVAL, "is a device, a socket or a pipe, expected a file", str(path))


def read_text(path: Path, most: int) -> str:
    """The text of a file of at most `most` bytes, in UTF-8 with or without a byte-order mark.

    Raises:
        OSError: it cannot be read, is no plain file or too large.
        UnicodeDecodeError: it is no text.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > allowed(most):
            raise OSError(errno.EFBIG, f"has {size:,} bytes, expected at most {allowed(most):,}", str(path))
        return file.read(size).decode("utf-8-sig")


def shown(value: object) -> str:
    """A value of a file in a message, not longer than a line."""
    try:
        return _SHORT.repr(value)[:_LONGEST]
    except ValueError:  # Python does not write whole numbers of more than 4,300 digits
        return "a number of thousands of digits"


def named(text: str) -> str:
    """The name of a file in a message: as it is if it fits on a line, without line ends and the like otherwise."""
    return text if text.isprintable() and len(text) <= 2 * _LONGEST else shown(text)[1:-1]


def reason(error: BaseException) -> str:
    """What an exception of a library says, in less than a line."""
    text = " ".join(str(error).split())
    return text[:_LONGEST] if text else type(error).__name__
