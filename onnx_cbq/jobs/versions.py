"""Versions of what decides a result."""

from __future__ import annotations

from importlib.metadata import version

from onnx_cbq.runtime import versions


def all_versions() -> dict[str, str]:
    """Of onnx-cbq and of the packages that decide the result."""
    return {"onnx-cbq": version("onnx-cbq"), **versions()}
