"""Resizing and cropping held against what torchvision, timm, Keras and torch do, restated from their sources."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from onnx_cbq.calibration.card import INTERPOLATIONS, Card
from onnx_cbq.calibration.decoding.resize import cropped, resized
from onnx_cbq.errors import CalibrationError
from onnx_cbq.model import Array

SIZES = [(30, 40), (41, 30), (37, 61), (64, 64), (75, 22)]


def picture(height: int, width: int) -> Array:
    """Waves with another slope in each direction and channel, so that a pixel of shift shows."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(y / (2 + c)) + np.cos(x / (3 + c)) for c in range(3)]
    return np.asarray((np.stack(waves, axis=2) + 2) * 60, np.uint8)


def prepared(pixels: Array, **settings: Any) -> Array:
    card = Card(Path("a"), **settings)
    return np.asarray(cropped(resized(Image.fromarray(pixels), card), card, Path("a/0.png")))


def centre(image: Image.Image, height: int, width: int) -> Array:
    """torchvision.transforms.functional.center_crop."""
    top, left = round((image.height - height) / 2.0), round((image.width - width) / 2.0)
    return np.asarray(image.crop((left, top, left + width, top + height)))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("share", [0.875, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_crop_share_is_that_of_timm(size: tuple[int, int], share: float, interpolation: str) -> None:
    """timm.data.transforms_factory.transforms_imagenet_eval: floor(size / crop_pct) for torchvision's Resize."""
    pixels = picture(*size)
    shorter = math.floor(28 / share)
    height, width = size
    longer = int(shorter * max(size) / min(size))
    target = (shorter, longer) if width <= height else (longer, shorter)
    image = Image.fromarray(pixels).resize(target, getattr(Image.Resampling, interpolation.upper()))
    found = prepared(pixels, crop=(28,), crop_share=share, interpolation=interpolation)
    np.testing.assert_array_equal(found, centre(image, 28, 28))


@pytest.mark.parametrize("size", SIZES)
def test_an_oblong_crop_is_covered_as_in_timm(size: tuple[int, int]) -> None:
    """timm's ResizeKeepRatio(longest=0): the smaller of both ratios, each side rounded."""
    pixels, target = picture(*size), (math.floor(20 / 0.9), math.floor(26 / 0.9))
    ratio = min(size[0] / target[0], size[1] / target[1])
    height, width = (round(side / ratio) for side in size)
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(prepared(pixels, crop=(20, 26), crop_share=0.9), centre(image, 20, 26))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_an_exact_size_takes_any_interpolation(interpolation: str) -> None:
    pixels = picture(30, 40)
    expected = Image.fromarray(pixels).resize((17, 23), getattr(Image.Resampling, interpolation.upper()))
    np.testing.assert_array_equal(prepared(pixels, resize=(23, 17), interpolation=interpolation), expected)


@pytest.mark.parametrize("size", SIZES)
def test_the_longer_side_and_a_border_make_a_letterbox(size: tuple[int, int]) -> None:
    """Nothing of the picture is lost, and the border is grey on both sides of the shorter axis."""
    found = prepared(picture(*size), resize=(20,), resize_side="longer", crop=(20,), pad=114)
    assert found.shape == (20, 20, 3)
    height, width = (max(round(20 * side / max(size)), 1) for side in size)
    inner = np.asarray(Image.fromarray(picture(*size)).resize((width, height), Image.Resampling.BILINEAR))
    top, left = (20 - height) // 2, (20 - width) // 2
    np.testing.assert_array_equal(found[top : top + height, left : left + width], inner)
    border = np.ones((20, 20), bool)
    border[top : top + height, left : left + width] = False
    assert (found[border] == 114).all()


def test_only_the_side_that_is_too_short_is_filled_up() -> None:
    """torchvision.transforms.functional.center_crop pads first, the larger part of an odd rest at the end."""
    found = prepared(picture(9, 30), crop=(12, 20), pad=0)
    np.testing.assert_array_equal(found[1:10], picture(9, 30)[:, 5:25])
    assert not found[0].any()
    assert not found[10:].any()


def test_grey_pictures_are_filled_up_too() -> None:
    assert prepared(picture(4, 4)[..., 0], crop=(6,), pad=7)[0].tolist() == [7] * 6


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("target", [(16, 16), (50, 20), (90, 80)])
def test_without_antialias_pixels_are_sampled_as_torch_does(size: tuple[int, int], target: tuple[int, int]) -> None:
    """As tf.image.resize and Keras' loaders do by default; half a pixel of shift would be far above the rounding."""
    pixels = picture(*size)
    batch = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    expected = torch.nn.functional.interpolate(batch, target, mode="bilinear", align_corners=False)[0]
    found = prepared(pixels, resize=target, antialias=False)
    np.testing.assert_allclose(found, expected.permute(1, 2, 0).numpy(), atol=1.01)


def test_antialias_is_what_a_small_picture_shows() -> None:
    """Stripes of one pixel: averaged they are grey, sampled they are stripes, or all of one colour."""
    stripes = np.repeat(np.tile(np.array([0, 255], np.uint8), 16)[None, :], 32, axis=0)
    assert np.ptp(prepared(stripes, resize=(8, 8))) < 64
    assert set(prepared(stripes, resize=(32, 8), antialias=False, interpolation="nearest")[0]) <= {0, 255}


def test_a_small_picture_is_refused_without_pad() -> None:
    """Pillow would fill the rest with black and say nothing."""
    with pytest.raises(
        CalibrationError, match=r"a/0\.png: 40x30 is smaller than crop 50x20; set a larger resize, or pad"
    ):
        prepared(picture(30, 40), crop=(20, 50))


@pytest.mark.parametrize(
    "settings", [{"crop": (1 << 30,), "pad": 0}, {"crop": (200,), "crop_share": 1e-3}, {"resize": (1 << 20, 1 << 20)}]
)
def test_what_would_fill_the_memory_is_refused(settings: dict[str, Any]) -> None:
    """A card of a few bytes must not take gigabytes."""
    with pytest.raises(ValueError, match="is too large"):
        prepared(picture(30, 40), **settings)
