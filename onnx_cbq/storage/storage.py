"""What a storage is: what stands for the codes of weights in a file, and what is saved."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from onnx import ModelProto

from onnx_cbq.model import Model
from onnx_cbq.records import LayerWeights
from onnx_cbq.storage.codes import CodeWriter, PlainCodes
from onnx_cbq.storage.files import write_model


class Dump(Protocol):
    """The bytes that are saved, made once: what is verified is what is saved."""

    @property
    def archive_bytes(self) -> int | None:
        """Bytes of an archive; None where the ONNX file itself is saved."""

    @property
    def code_bytes(self) -> int | None:
        """What the codes take in an archive."""

    def save(self, path: Path) -> int:
        """Write it whole or not at all; returns the bytes of the file.

        Raises:
            OutputError: it cannot be written.
        """


@dataclass(frozen=True)
class ModelDump:
    """An ONNX file."""

    model: Model
    archive_bytes: None = None
    code_bytes: None = None

    def save(self, path: Path) -> int:
        """Write the model whole or not at all."""
        return write_model(self.model, path)


class Storage(ABC):
    """What bytes a weight takes.

    A member is a frozen dataclass whose fields are its settings; what is written here is that of a plain ONNX file. The
    members are `onnx_cbq.storage.STORAGES`.

    Attributes:
        name: as `--storage` takes it.
        about: what it is, for people, in a line.
        suffix: of the file that is saved.
        shrinks: whether fewer bits make a smaller file.
        coded: whether the bits of a weight are those of an entropy coder, so that no plan of widths tells the size.
        folds: whether runtimes make weights float once where activations are float, not on every run.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    suffix: ClassVar[str] = ".quantized.onnx"
    shrinks: ClassVar[bool] = True
    coded: ClassVar[bool] = False
    folds: ClassVar[bool] = True

    def codes(self) -> CodeWriter:
        """What takes the codes of one file."""
        return PlainCodes()

    def finish(self, model: Model) -> Model:
        """The model as it is written."""
        return model

    def size(self, proto: ModelProto) -> int:
        """Bytes of what would be saved."""
        return len(proto.SerializeToString())

    def dump(self, model: Model, path: Path) -> Dump:  # noqa: ARG002
        """What is saved of a model that has been written to `path`.

        Raises:
            VerificationError: it does not give the same file again.
        """
        return ModelDump(model)

    def coded_bits(self, weights: Sequence[LayerWeights]) -> int:
        """What all codes take together, in bits.

        Raises:
            NotImplementedError: it does not depend on the codes.
        """
        raise NotImplementedError(self.name)
