"""From the bytes of a file to a sample. What a file holds is told by the ending of its name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from onnx_cbq.calibration.card import Card
from onnx_cbq.calibration.stores import File
from onnx_cbq.model import Array, InputSpec


class Decoder(ABC):
    """Makes samples of files.

    Attributes:
        what: what the files are called in messages.
        suffixes: what their names end with, in small letters.
        starts: what their first bytes are, where they have no name.
        of_images: whether samples are images, [height, width, channels].
        rate: of sounds, numbers a second that the first one has; else None.
        advice: what to do where samples are not of one shape.
    """

    what: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    starts: ClassVar[tuple[bytes, ...]]
    of_images: ClassVar[bool] = False
    rate: int | None = None
    advice: ClassVar[str] = "bring them to one shape"

    def __init__(self, card: Card) -> None:
        self.card = card

    @abstractmethod
    def decode(self, file: File) -> Array:
        """The sample that a file holds.

        Raises:
            CalibrationError: it cannot be read; the message names it.
        """

    def shape_text(self, sample: Array) -> str:
        """The shape of a sample in a message."""
        return str(sample.shape)

    def begin(self, files: Sequence[File]) -> None:
        """Look at what all files have in common, before any is decoded."""
        del files

    def framed(self, card: Card) -> Decoder:
        """Decodes images at the size, and sounds at the rate and length, that another card says."""
        del card
        return self

    def fitted_to(self, inputs: Sequence[InputSpec]) -> Decoder:
        """Decodes to what the inputs of a model want, as far as a file does not say it."""
        del inputs
        return self
