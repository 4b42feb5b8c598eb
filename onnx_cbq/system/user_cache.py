"""Where a user's evidence is kept if no folder is named, and how much of it.

Two environment variables decide: ONNX_CBQ_CACHE names a folder, or is `off`; ONNX_CBQ_CACHE_SIZE limits every folder.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import platformdirs

from onnx_cbq.errors import ConfigError

FOLDER, SIZE, OFF = "ONNX_CBQ_CACHE", "ONNX_CBQ_CACHE_SIZE", "off"
# Bytes that a folder may take.
USUAL_SIZE = 5e9
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kMGT]?)B?")
_FACTORS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def user_folder() -> Path | None:
    """The user's folder; None if it is off, or nobody knows where the user's files are.

    Raises:
        ConfigError: the environment variable begins with a home that there is not.
    """
    named = os.environ.get(FOLDER, "")
    if named:
        try:
            return None if named == OFF else Path(named).expanduser()
        except RuntimeError:
            raise ConfigError(f"{FOLDER}: expected a folder or {OFF}, got {named}, whose home is not known") from None
    folder = platformdirs.user_cache_path("onnx-cbq", appauthor=False)
    # Without a home the name would be a relative one.
    return folder if folder.is_absolute() else None


def largest_folder() -> float:
    """Bytes that a folder may take.

    Raises:
        ConfigError: the environment variable holds no size.
    """
    text = os.environ.get(SIZE, "")
    try:
        return read_size(text) if text else USUAL_SIZE
    except ValueError as error:
        raise ConfigError(f"{SIZE}: {error}") from None


def read_size(text: str) -> float:
    """Bytes: a number, with k, M, G or T behind it.

    Raises:
        ValueError: it is none.
    """
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ValueError(f"expected a size such as 500M or 2G, got {text}")
    return float(found[1]) * _FACTORS[found[2]]
