"""Samples from a folder with one sub-folder of PNG or JPEG images per class; Pillow reads them.

A file may be anything, whatever its name says. It is opened only if it is a plain file, and decoded only as PNG or JPEG
(Pillow would start Ghostscript on PostScript); its size in pixels, and that of what `resize` makes of it, is looked at
before anything is decoded.
"""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from onnx_cbq.calibration.card import Card
from onnx_cbq.calibration.files import open_plain, reason
from onnx_cbq.calibration.resize import MOST_PIXELS, cropped, resized
from onnx_cbq.calibration.sources import Source
from onnx_cbq.errors import CalibrationError
from onnx_cbq.model import Array
from onnx_cbq.system.allowance import advice, allowed

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
_FORMATS = ("PNG", "JPEG")
# An image may have so many pixels, or so many for a byte of its file if that is more: a photograph has less than ten.
_PIXELS_PER_BYTE = 100
# Pixels times scans of a JPEG: a few seconds.
_MOST_SCANNED = 1 << 30
# Larger ones are decoded one at a time, since every thread would hold hundreds of megabytes.
_LARGE = 1 << 22
_one_large = threading.Lock()


class ImageSource(Source):
    """A folder with one sub-folder of PNG or JPEG images per class."""

    def __init__(self, path: Path, card: Card, *, skip_unreadable: bool) -> None:
        self.inputs = ("x",)
        self.label = str(path)
        self.card = card
        self.channels = 3
        try:
            self.class_names, files = _listed(path, card)
        except OSError as error:
            raise CalibrationError(f"{error.filename or path}: cannot be read: {error.strerror}") from error
        self._pool = ThreadPoolExecutor()
        readable = list(self._pool.map(self._is_readable, (file for file, _ in files))) if skip_unreadable else None
        kept = [entry for i, entry in enumerate(files) if readable is None or readable[i]]
        self.skipped = len(files) - len(kept)
        self._files = [file for file, _ in kept]
        self.labels = np.array([m for _, m in kept], np.int64)

    def describe(self, index: int) -> str:
        """The image's file."""
        return str(self._files[index])

    def decoded_to(self, channels: int) -> Source:
        """The same images, grey (1) or RGB (3)."""
        other = copy.copy(self)
        other.channels = channels
        return other

    def framed(self, card: Card) -> Source:
        """The same images, resized and cropped as another card says."""
        other = copy.copy(self)
        other.card = card
        return other

    def read(self, name: str, indices: Sequence[int]) -> Array:
        """Images `indices`, decoded, resized and cropped, [len(indices), height, width, channels] in uint8."""
        del name
        files = [self._files[i] for i in indices]
        images = list(self._pool.map(lambda file: _read_image(file, self.card, self.channels), files))
        for file, image in zip(files, images, strict=True):
            if image.shape != images[0].shape:
                sizes = " and ".join(f"{w}x{h}" for h, w, _ in (image.shape, images[0].shape))
                raise CalibrationError(f"{file}: images differ in size ({sizes}); set resize and crop in the card")
        return np.stack(images)

    def _is_readable(self, file: Path) -> bool:
        try:
            _read_image(file, self.card, self.channels)
        except CalibrationError:
            return False
        return True


def _listed(path: Path, card: Card) -> tuple[tuple[str, ...], list[tuple[Path, int]]]:
    """The classes, and every image with its label.

    Classes that the card names may have no folder, as they have no sample: unless there are others that it does not
    name, which would be a misspelling.

    Raises:
        CalibrationError: there are no folders, or not those that the card names.
    """
    kept = card.classes or ()
    folders = sorted(e.name for e in path.iterdir() if e.is_dir() and (e.name in kept or not _is_hidden(e)))
    if not folders:
        raise CalibrationError(f"{path}: no sub-folders; expected one folder of images per class")
    names = card.classes or tuple(folders)
    found = set(folders).intersection(names)
    missing = next((name for name in names if name not in found), None)
    if missing is not None and (not found or len(found) < len(folders)):
        held = ", ".join(folders[:10]) + (", ..." if len(folders) > 10 else "")
        raise CalibrationError(f"{path}: no folder for class {missing!r}; it holds: {held}")
    return names, [(image, m) for m, name in enumerate(names) if name in found for image in _images(path / name)]


def _images(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES and not _is_hidden(f))


def _is_hidden(path: Path) -> bool:
    """What systems and programs leave beside images: .git, .ipynb_checkpoints, ._1.png and __MACOSX."""
    return path.name.startswith(".") or path.name == "__MACOSX"


def _read_image(file: Path, card: Card, channels: int) -> Array:
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


def _decoded(file: Path, mode: str) -> Image.Image:
    with open_plain(file) as stream, Image.open(stream, formats=_FORMATS) as image:
        pixels, size = image.width * image.height, os.fstat(stream.fileno()).st_size
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
