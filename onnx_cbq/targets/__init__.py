"""Targets: what a runtime and a processor need of a file.

A target is data in a file of this folder, listed here; `lint` holds any file against one.
"""

from __future__ import annotations

import difflib

from onnx_cbq.errors import ConfigError
from onnx_cbq.targets.onnxruntime import ARM64, CPU, VNNI, XNNPACK
from onnx_cbq.targets.openvino import OPENVINO
from onnx_cbq.targets.qnn import QNN
from onnx_cbq.targets.target import Target
from onnx_cbq.targets.tensorrt import TENSORRT
from onnx_cbq.targets.vitis import VITIS

__all__ = ["CPU", "TARGETS", "find_target"]

TARGETS = (CPU, VNNI, ARM64, OPENVINO, TENSORRT, QNN, XNNPACK, VITIS)


def find_target(name: str) -> Target:
    """The target of that name.

    Raises:
        ConfigError: there is none.
    """
    found = {target.name: target for target in TARGETS}
    if name in found:
        return found[name]
    near = difflib.get_close_matches(name, found, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(f"--target: expected {' or '.join(found)}, got {name}{hint}")
