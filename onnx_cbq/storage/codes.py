"""How the codes of weights get into a file: as they are, or in some other form that nodes turn back into codes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from onnx import NodeProto

from onnx_cbq.model import Array
from onnx_cbq.storage.fields import PackedLayer, unpacking_graph


class CodeWriter(Protocol):
    """Takes the codes of a file's weights, layer by layer in the order of the graph."""

    @property
    def looks_up(self) -> bool:
        """Whether weights that share values are given as ranks, to be looked up in a table."""

    @property
    def computes(self) -> bool:
        """Whether nodes compute the codes when the file is opened."""

    def add(self, codes: PackedLayer) -> Array | None:
        """The constant that stands for the codes, rows [channels, n]; None where nodes compute them in the end."""

    def finish(self, fresh: Callable[[str], str]) -> tuple[list[NodeProto], Mapping[str, Array]]:
        """Nodes that compute all codes that no constant stands for, and the constants that they read."""


@dataclass(frozen=True)
class PlainCodes:
    """A byte for each code."""

    looks_up: bool = False
    computes: bool = False

    def add(self, codes: PackedLayer) -> Array:
        """The codes themselves."""
        return codes.rows

    def finish(self, fresh: Callable[[str], str]) -> tuple[list[NodeProto], Mapping[str, Array]]:  # noqa: ARG002
        """Nothing is left to do."""
        return [], {}


class PackedCodes:
    """The bits of each code, unpacked by nodes (see `packed`)."""

    looks_up = True
    computes = True

    def __init__(self) -> None:
        self._layers: list[PackedLayer] = []

    def add(self, codes: PackedLayer) -> None:
        """Kept for the end: all codes of the model are unpacked together."""
        self._layers.append(codes)

    def finish(self, fresh: Callable[[str], str]) -> tuple[list[NodeProto], Mapping[str, Array]]:
        """The unpacking of all layers."""
        return unpacking_graph(self._layers, fresh) if self._layers else ([], {})
