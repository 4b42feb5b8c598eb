"""A byte for each weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnx_cbq.storage.storage import Storage


@dataclass(frozen=True)
class Int8(Storage):
    """int8 codes and DequantizeLinear, which every runtime knows."""

    name: ClassVar[str] = "int8"
    about: ClassVar[str] = "a byte per weight"
    shrinks: ClassVar[bool] = False
    folds: ClassVar[bool] = False
