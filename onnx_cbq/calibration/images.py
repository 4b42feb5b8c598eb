"""Samples from a folder with one sub-folder of PNG or JPEG images per class; Pillow reads them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from onnx_cbq.calibration.card import Card
from onnx_cbq.calibration.sources import Source
from onnx_cbq.errors import CalibrationError
from onnx_cbq.model import Array

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
# Pillow raises SyntaxError for some broken headers.
_UNREADABLE = (OSError, SyntaxError, Image.DecompressionBombError)


class ImageSource(Source):
    """A folder with one sub-folder of PNG or JPEG images per class."""

    def __init__(self, path: Path, card: Card, *, skip_unreadable: bool) -> None:
        self.inputs = ("x",)
        self.label = str(path)
        folders = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
        if not folders:
            raise CalibrationError(f"{path}: no sub-folders; expected one folder of images per class")
        self.class_names = card.classes or tuple(folders)
        missing = [name for name in self.class_names if name not in folders]
        if missing:
            raise CalibrationError(f"{path}: no folder for class {missing[0]!r}; it holds: {', '.join(folders)}")
        files = [(image, m) for m, name in enumerate(self.class_names) for image in _images(path / name)]
        self._card = card
        self.channels = 3
        self._pool = ThreadPoolExecutor()
        readable = list(self._pool.map(_is_readable, (file for file, _ in files))) if skip_unreadable else None
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

    def read(self, name: str, indices: Sequence[int]) -> Array:
        """Images `indices`, decoded, resized and cropped, [len(indices), height, width, channels] in uint8."""
        del name
        files = [self._files[i] for i in indices]
        images = list(self._pool.map(lambda file: _read_image(file, self._card, self.channels), files))
        for file, image in zip(files, images, strict=True):
            if image.shape != images[0].shape:
                sizes = " and ".join(f"{w}x{h}" for h, w, _ in (image.shape, images[0].shape))
                raise CalibrationError(f"{file}: images differ in size ({sizes}); set resize and crop in the card")
        return np.stack(images)


def _images(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)


def _is_readable(file: Path) -> bool:
    try:
        with Image.open(file) as image:
            image.load()
    except _UNREADABLE:
        return False
    return True


def _read_image(file: Path, card: Card, channels: int) -> Array:
    try:
        with Image.open(file) as image:
            picture = image.convert("L" if channels == 1 else "RGB")
    except _UNREADABLE as error:
        raise CalibrationError(
            f"{file}: cannot be read as an image ({error}); replace it, or leave such files out with --skip-unreadable"
        ) from error
    if card.resize:
        picture = picture.resize(_resized(picture.size, card.resize), Image.Resampling.BILINEAR)
    if card.crop:
        picture = _crop(picture, card.crop, file)
    pixels = np.asarray(picture)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _resized(size: tuple[int, int], target: tuple[int, ...]) -> tuple[int, int]:
    """Width and height after `resize`: as given, or with the shorter side of that length, rounded as torchvision does.

    A pixel more or less would shift the whole image against the one that a model was trained on.
    """
    if len(target) == 2:
        return target[1], target[0]
    width, height = size
    longer = int(target[0] * max(size) / min(size))
    return (target[0], longer) if width <= height else (longer, target[0])


def _crop(picture: Image.Image, target: tuple[int, ...], file: Path) -> Image.Image:
    height, width = target if len(target) == 2 else (target[0], target[0])
    left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
    if picture.width < width or picture.height < height:
        raise CalibrationError(
            f"{file}: {picture.width}x{picture.height} is smaller than crop {width}x{height}; set a larger resize"
        )
    return picture.crop((left, top, left + width, top + height))
