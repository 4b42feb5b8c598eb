"""How a picture comes to the size that a model takes: resized, cut from its centre, filled up where it is too small.

What torchvision, timm and Keras do before a net is evaluated. Resizing is Pillow's: filters as wide as the picture
shrinks ("antialias", which torchvision has for files and timm has), or samples at the new pixels' centres alone
(`antialias = false`: TensorFlow's and Keras' default, OpenCV's).
"""

from __future__ import annotations

import math

from PIL import Image

from onnx_cbq.calibration.card import Card
from onnx_cbq.errors import CalibrationError
from onnx_cbq.system.allowance import advice, allowed

# Of a picture, decoded or resized.
MOST_PIXELS = 1 << 26
_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}


def resized(picture: Image.Image, card: Card) -> Image.Image:
    """The picture at the size that `resize`, or `crop` and `crop_share`, ask for.

    Raises:
        ValueError: that is far larger than any picture.
    """
    if not card.resize and not card.crop_share:
        return picture
    size = _size(picture.size, card)
    _check_size(picture, size)
    if card.antialias:
        return picture.resize(size, _FILTERS[card.interpolation])
    # The centre of pixel i lies at (i + 1/2) old / new; nothing between two of them is looked at.
    across, down = picture.width / size[0], picture.height / size[1]
    return picture.transform(size, Image.Transform.AFFINE, (across, 0, 0, 0, down, 0), _FILTERS[card.interpolation])


def cropped(picture: Image.Image, card: Card, file: object) -> Image.Image:
    """The centre of the picture, as `crop` says; with `pad` its border is filled up to that size first.

    Messages call it `file`.

    Raises:
        CalibrationError: the picture is smaller than the crop, and there is no `pad`.
        ValueError: the crop is far larger than any picture.
    """
    if not card.crop:
        return picture
    height, width = _pair(card.crop)
    if picture.width < width or picture.height < height:
        if card.pad is None:
            raise CalibrationError(
                f"{file}: {picture.width}x{picture.height} is smaller than crop {width}x{height}; set a larger resize, "
                f"or pad"
            )
        picture = _padded(picture, width, height, card.pad)
    left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
    return picture.crop((left, top, left + width, top + height))


def _padded(picture: Image.Image, width: int, height: int, value: int) -> Image.Image:
    """A picture at least so wide and high; of an odd rest the larger part is right and below, as in torchvision."""
    size = max(picture.width, width), max(picture.height, height)
    _check_size(picture, size)
    whole = Image.new(picture.mode, size, (value,) * len(picture.getbands()))
    whole.paste(picture, ((size[0] - picture.width) // 2, (size[1] - picture.height) // 2))
    return whole


def _size(size: tuple[int, int], card: Card) -> tuple[int, int]:
    """Width and height after resizing. A pixel more or less would shift the picture against those of training.

    - `resize = [h, w]`: that
    - `resize = n`: the shorter side n, the longer int(n long / short), as torchvision rounds; for the longer side n the
      shorter round(n short / long), as timm does
    - `crop_share = s`: timm's. A square crop n stands for the shorter side floor(n / s); of another the picture covers
      floor(h / s) x floor(w / s)
    """
    width, height = size
    short, long = min(size), max(size)
    target = card.resize
    if target is None:
        assert card.crop is not None
        assert card.crop_share is not None
        wanted = [math.floor(side / card.crop_share) for side in _pair(card.crop)]
        if wanted[0] != wanted[1]:
            ratio = min(height / wanted[0], width / wanted[1])
            return round(width / ratio), round(height / ratio)
        target = (wanted[0],)
    if len(target) == 2:
        return target[1], target[0]
    if card.resize_side == "longer":
        other = max(round(target[0] * short / long), 1)
        return (other, target[0]) if width <= height else (target[0], other)
    other = int(target[0] * long / short)
    return (target[0], other) if width <= height else (other, target[0])


def _check_size(picture: Image.Image, size: tuple[int, int]) -> None:
    # Pillow resizes rows first.
    pixels, most = size[0] * max(size[1], picture.height), allowed(MOST_PIXELS)
    if pixels > most:
        raise ValueError(
            f"{picture.width}x{picture.height} resized to {size[0]}x{size[1]} is too large; {advice(pixels, most)}"
        )


def _pair(size: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of a size."""
    return size[0], size[-1]
