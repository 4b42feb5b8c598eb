"""Libraries that not everybody needs: imported where they are used, with a line that says how to get them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from onnx_cbq.errors import ConfigError


def extra(module: str, name: str, what: str) -> Any:
    """A module of the extra `name`, which `what` needs.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{what}: needs {error.name}, which is not installed; install it with pip install 'onnx-cbq[{name}]'"
        ) from None
