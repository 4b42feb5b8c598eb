"""Samples from PNG and JPEG files; Pillow decodes them.

A file may be anything, whatever its name says. It is decoded only as PNG or JPEG (Pillow would start Ghostscript on
PostScript); its size in pixels, and that of what `resize` makes of it, is looked at before anything is decoded.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from typing import BinaryIO, ClassVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from onnx_cbq.calibration.card import Card
from onnx_cbq.calibration.decoding.decoders import Decoder
from onnx_cbq.calibration.decoding.resize import MOST_PIXELS, cropped, resized
from onnx_cbq.calibration.files import reason
from onnx_cbq.calibration.prepare import wants_grey
from onnx_cbq.calibration.stores import File
from onnx_cbq.errors import CalibrationError
from onnx_cbq.model import Array, InputSpec
from onnx_cbq.system.allowance import advice, allowed

_FORMATS = ("PNG", "JPEG")
# An image may have so many pixels, or so many for a byte of its file if that is more: a photograph has less than ten.
_PIXELS_PER_BYTE = 100
# Pixels times scans of a JPEG: a few seconds.
_MOST_SCANNED = 1 << 30
# Larger ones are decoded one at a time, since every thread would hold hundreds of megabytes.
_LARGE = 1 << 22
_one_large = threading.Lock()


class Images(Decoder):
    """Decodes PNG and JPEG files to uint8 [height, width, channels], resized and cropped as the card says."""

    what: ClassVar[str] = "images"
    suffixes: ClassVar[tuple[str, ...]] = (".png", ".jpg", ".jpeg")
    starts: ClassVar[tuple[bytes, ...]] = (b"\x89PNG", b"\xff\xd8")
    of_images: ClassVar[bool] = True
    advice: ClassVar[str] = "set resize and crop in the card"

    def __init__(self, card: Card) -> None:
        super().__init__(card)
        self.channels = 3

    def decode(self, file: File) -> Array:
        """The image, decoded, resized and cropped."""
        return _read_image(file, self.card, self.channels)

    def shape_text(self, sample: Array) -> str:
        """Width and height."""
        return f"{sample.shape[1]}x{sample.shape[0]}"

    def framed(self, card: Card) -> Decoder:
        """Decodes, resizes and crops as another card says."""
        other = copy.copy(self)
        other.card = card
        return other

    def fitted_to(self, inputs: Sequence[InputSpec]) -> Decoder:
        """Decodes to grey for a model that wants one channel, or a card that says so."""
        grey = self.card.channels == "grey" or any(wants_grey(spec) for spec in inputs)
        other = copy.copy(self)
        other.channels = 1 if grey else 3
        return other


def _read_image(file: File, card: Card, channels: int) -> Array:
    """An image, resized and cropped, uint8 [height, width, channels].

    Raises:
        CalibrationError: it cannot be read, is too large, or smaller than the crop.
    """
    try:
        picture = resized(_decoded(file, "L" if channels == 1 else "RGB"), card)
        pixels = np.asarray(cropped(picture, card, file))
    except CalibrationError:
        raise
    except Exception as error:  # whatever a decoder makes of damaged data
        what = error.strerror if isinstance(error, OSError) and error.strerror else reason(error)
        if isinstance(error, UnidentifiedImageError):
            what = "neither a PNG nor a JPEG"
        raise CalibrationError(
            f"{file}: cannot be read as an image ({what}); replace it, or leave such files out with --skip-unreadable"
        ) from error
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _decoded(file: File, mode: str) -> Image.Image:
    with file.open() as stream, Image.open(stream, formats=_FORMATS) as image:
        pixels, size = image.width * image.height, file.size(stream)
        most = allowed(max(MOST_PIXELS, _PIXELS_PER_BYTE * size))
        if pixels > most:
            raise ValueError(f"{size:,} bytes that claim {image.width}x{image.height} pixels; {advice(pixels, most)}")
        scans = _scans(stream) if image.format != "PNG" else 1
        if pixels * scans > allowed(_MOST_SCANNED):
            needed = advice(pixels * scans, allowed(_MOST_SCANNED))
            raise ValueError(f"{image.width}x{image.height} pixels in {scans:,} scans; {needed}")
        if pixels <= _LARGE:
            return _eight_bits(image).convert(mode)
        with _one_large:
            return _eight_bits(image).convert(mode)


def _scans(stream: BinaryIO) -> int:
    """How often a JPEG goes over its pixels: usually once to a dozen times, but a scan takes no more than 100 bytes."""
    where, count, last = stream.tell(), 0, b""
    stream.seek(0)
    while piece := stream.read(_LARGE):
        count += (last + piece).count(b"\xff\xda")
        last = piece[-1:]
    stream.seek(where)
    return count


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey images of 16 bits as their high bytes, which Pillow makes of coloured ones; it would make them all white."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.clip(np.asarray(image), 0, 0xFFFF).astype(np.uint16) >> 8).astype(np.uint8))
