"""Results as data frames of pandas, or of polars where only that is installed. Neither is needed for anything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from onnx_cbq.errors import ConfigError


def make_frame(columns: Mapping[str, Sequence[object]]) -> Any:
    """A data frame of these columns.

    Raises:
        ConfigError: neither library is installed.
    """
    for library in ("pandas", "polars"):
        try:
            module = import_module(library)
        except ModuleNotFoundError:
            continue
        return module.DataFrame(dict(columns))
    raise ConfigError(
        "to_frame(): needs pandas or polars, and neither is installed; install one with pip install 'onnx-cbq[frames]'"
    )
