"""Each weight takes its bits; standard operators unpack them when a session is opened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnx_cbq.model import Model
from onnx_cbq.storage.codes import PackedCodes
from onnx_cbq.storage.shorten import shorten
from onnx_cbq.storage.storage import Storage


@dataclass(frozen=True)
class Packed(Storage):
    """Codes as `fields` lays them out, in a graph with short names."""

    name: ClassVar[str] = "packed"
    about: ClassVar[str] = "each takes its bits, unpacked when a session is opened"

    def codes(self) -> PackedCodes:
        """Packed and unpacked together."""
        return PackedCodes()

    def finish(self, model: Model) -> Model:
        """The model with the shortest names."""
        return shorten(model)
