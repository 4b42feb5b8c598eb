"""Weights close to their entropy, in an archive that is restored to an ONNX file before it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from onnx import ModelProto

from onnx_cbq.errors import VerificationError
from onnx_cbq.model import Model
from onnx_cbq.records import LayerWeights
from onnx_cbq.settings import STORING, check, check_kinds, either, option
from onnx_cbq.storage.archive import Archive, archive, coded_bits, restore
from onnx_cbq.storage.codes import PlainCodes
from onnx_cbq.storage.coding.container import CODERS
from onnx_cbq.storage.storage import Storage


@dataclass(frozen=True)
class ArchiveDump:
    """An archive, which has given the same file again."""

    made: Archive

    @property
    def archive_bytes(self) -> int:
        """Its bytes."""
        return len(self.made.content)

    @property
    def code_bytes(self) -> int:
        """What the codes take in it."""
        return self.made.code_bytes

    def save(self, path: Path) -> int:
        """Write it whole or not at all."""
        return self.made.save(path)


@dataclass(frozen=True)
class Archived(Storage):
    """An archive of an ONNX file of a byte per weight; weights that share values lie in it as ranks.

    Attributes:
        coder: "ans" comes close to the entropy, "huffman" is there to compare.
    """

    name: ClassVar[str] = "archive"
    about: ClassVar[str] = "--bits are those of an entropy coder, and an archive for restore is written"
    suffix: ClassVar[str] = ".quantized.cbqz"
    coded: ClassVar[bool] = True

    coder: str = option("ans", STORING, "|".join(CODERS))

    def __post_init__(self) -> None:
        check_kinds(self)
        check(self.coder in CODERS, "--coder", either(CODERS), self.coder)

    def codes(self) -> PlainCodes:
        """A byte each, ranks where values are shared."""
        return PlainCodes(looks_up=True)

    def size(self, proto: ModelProto) -> int:
        """Bytes of the archive."""
        return len(archive(proto, self.coder).content)

    def dump(self, model: Model, path: Path) -> ArchiveDump:  # noqa: ARG002
        """The archive of the file, once it has been shown to give the same file again."""
        made = archive(path, self.coder)
        if restore(made.content) != path.read_bytes():
            raise VerificationError("the archive does not give the same file again; report this as a bug")
        return ArchiveDump(made)

    def coded_bits(self, weights: Sequence[LayerWeights]) -> int:
        """What the codes, or ranks, take in an archive, in bits."""
        stored = [(w.grid.stored(w.codes), w.bits) for w in weights]
        return coded_bits(stored, self.coder)
