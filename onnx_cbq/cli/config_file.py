"""Options from a file: TOML with the names of the command line, or the JSON that a command wrote."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path

from onnx_cbq.calibration.files import read_text
from onnx_cbq.errors import ConfigError
from onnx_cbq.settings import check

_LARGEST_FILE = 64 << 20


def read_config(path: Path) -> dict[str, object]:
    """Option -> value; of a JSON file what stands under "settings".

    Raises:
        ConfigError: it is neither, or too large.
    """
    try:
        text = read_text(path, _LARGEST_FILE)
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror or error}; give a file that can be read") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--config {path}: no text in UTF-8; write NAME = VALUE in each line") from None
    try:
        content = json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--config {path}: neither TOML nor JSON: {error}; write NAME = VALUE in each line") from None
    settings = content.get("settings", content) if isinstance(content, dict) else None
    if not isinstance(settings, Mapping):
        raise ConfigError(f"--config {path}: expected options and their values; write NAME = VALUE in each line")
    found: dict[str, object] = {}
    for key, value in settings.items():
        name = str(key).replace("_", "-")
        check(name not in found, f"--config {path}: {name}", "one value", "two")
        found[name] = value
    return found
