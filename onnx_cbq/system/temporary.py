"""Temporary files and folders that nothing leaves behind: not an error, not a signal, and not a kill for long.

Each is locked by who made it (flock, which ends with the process however it ends), so that a later run tells what is
left from what is in use, and removes it. `remove_all` is for a process that ends without unwinding.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows: what a kill leaves there stays
    fcntl = None

_SUFFIX = ".onnx-cbq"
# What stands in the middle.
_RANDOM = r"[a-z0-9_]{8}"
_LONGEST_START = 40
# Seconds that a file may be without a lock, since it is locked just after it was made.
_NEW = 1.0
_TRIES, _BETWEEN_TRIES = 25, 0.02
_alive: set[Path] = set()


@contextmanager
def temporary_file(target: Path) -> Iterator[Path]:
    """An empty file beside `target`, to be renamed to it; it is gone at the end if it was not.

    What killed runs left of the same target is removed first.

    Raises:
        OSError: the folder is missing or may not be written to.
    """
    prefix = _prefix(target.name)
    _sweep(target.absolute().parent, prefix)
    descriptor, name = tempfile.mkstemp(dir=target.absolute().parent, prefix=prefix, suffix=_SUFFIX)
    path = Path(name)
    _alive.add(path)
    try:
        _lock(descriptor)
        yield path
    finally:
        path.unlink(missing_ok=True)
        _alive.discard(path)
        os.close(descriptor)


@contextmanager
def temporary_folder(beside: Path | None = None) -> Iterator[Path]:
    """A folder, beside `beside` or where the system has its temporary ones; it is gone at the end with all it holds.

    Raises:
        OSError: it cannot be made.
    """
    prefix = "onnx-cbq." if beside is None else _prefix(beside.name)
    parent = Path(tempfile.gettempdir()) if beside is None else beside.absolute().parent
    _sweep(parent, prefix)
    path = _free_name(parent, prefix)
    descriptor = None
    _alive.add(path)  # before there is one: a signal may come in between
    try:
        path.mkdir(0o700)
        if fcntl:
            descriptor = os.open(path, os.O_RDONLY)
            _lock(descriptor)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        _alive.discard(path)
        if descriptor is not None:
            os.close(descriptor)


def remove_all() -> None:
    """Remove what this process has not removed yet: it is about to end at once.

    Another thread may still be writing into a folder, which then cannot be removed at the first try.
    """
    for _ in range(_TRIES):
        for path in list(_alive):
            _remove(path)
        if not any(path.exists() for path in list(_alive)):
            return
        time.sleep(_BETWEEN_TRIES)


def _free_name(parent: Path, prefix: str) -> Path:
    path = parent / f"{prefix}{secrets.token_hex(4)}{_SUFFIX}"
    return _free_name(parent, prefix) if path.exists() else path


def _prefix(name: str) -> str:
    # A name may be as long as the file system allows; that of the temporary file must not be longer.
    return f".{name[:_LONGEST_START]}."


def _sweep(parent: Path, prefix: str) -> None:
    """Remove what killed processes left of such names: what nobody holds a lock on."""
    if fcntl is None or not parent.is_dir():
        return
    ours = re.compile(re.escape(prefix) + _RANDOM + re.escape(_SUFFIX))
    for path in [Path(entry.path) for entry in os.scandir(parent) if ours.fullmatch(entry.name)]:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:  # another's, or just gone
            continue
        try:
            found = os.fstat(descriptor)
            idle = time.time() - found.st_mtime >= _NEW
            if idle and found.st_uid == os.geteuid() and _lock(descriptor):
                _remove(path)
        finally:
            os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Whether the lock is ours now; a file system without locks gives none."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove(path: Path) -> None:
    try:
        if stat.S_ISDIR(path.lstat().st_mode):
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    except FileNotFoundError:
        return
