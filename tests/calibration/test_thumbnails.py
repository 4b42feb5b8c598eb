"""Samples as small pictures: they have the colours of the file, whatever the card makes of them for the model."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onnx_cbq.calibration import CalibrationSet, Card
from onnx_cbq.calibration.thumbnails import SIDE, thumbnail
from onnx_cbq.model import Array, InputSpec

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Black and white corners, so that brightness is that of the file, and red below.
RED = np.zeros((8, 6, 3), np.uint8)
RED[0, 0], RED[2:] = 255, (250, 10, 20)


def shown(image: Array, taken: tuple[int | None, ...], **keys: Any) -> Array | None:
    """The picture of the first of two samples, [h, w, 3], for a model that takes such a shape."""
    source = CalibrationSet.from_arrays(np.stack([image, image]), [0, 1]).source
    samples = CalibrationSet(source, Card(Path(), **keys)).for_model(
        [InputSpec("x", np.dtype(np.float32), (None, *taken))]
    )
    found = thumbnail(samples, 0)
    if found is None:
        return None
    head, _, content = found.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content, validate=True))).convert("RGB"), np.int64)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"scale": 1 / 255, "mean": MEAN, "std": STD},
        {"scale": 1 / 255, "mean": (0.5,), "std": (0.5,)},
        {"channels": "BGR", "mean": (103.9, 116.8, 123.7)},
    ],
    ids=["plain", "normalised", "one-mean", "BGR"],
)
@pytest.mark.parametrize("taken", [(3, 8, 6), (8, 6, 3)], ids=["NCHW", "NHWC"])
def test_a_red_image_comes_out_red(taken: tuple[int, ...], keys: dict[str, Any]) -> None:
    found = shown(RED, taken, layout="NHWC", **keys)
    assert found is not None
    np.testing.assert_allclose(found, RED, atol=1)


def test_one_channel_is_grey() -> None:
    grey = np.arange(48, dtype=np.uint8).reshape(8, 6, 1) * 5
    grey[0, 0], grey[-1, -1] = 0, 255
    found = shown(grey, (1, 8, 6), layout="NHWC", scale=0.5, mean=(7.0,))
    assert found is not None
    np.testing.assert_allclose(found, np.repeat(grey, 3, axis=2), atol=1)


def test_an_image_of_one_value_is_a_picture_too() -> None:
    found = shown(np.full((8, 6, 3), 9, np.uint8), (3, 8, 6), layout="NHWC")
    assert found is not None
    assert np.unique(found).size == 1


def test_large_images_are_made_small_and_keep_their_form() -> None:
    """Hundreds of them lie in one page."""
    found = shown(np.random.default_rng(0).integers(0, 255, (300, 600, 3), np.uint8), (3, 300, 600), layout="NHWC")
    assert found is not None
    assert found.shape == (SIDE // 2, SIDE, 3)


@pytest.mark.parametrize(
    ("image", "taken"),
    [
        (np.zeros(5, np.float32), (5,)),
        (np.zeros((7, 5), np.float32), (7, 5)),
        (np.zeros((12, 9, 9), np.float32), (12, 9, 9)),
    ],
    ids=["numbers", "sequence", "twelve-bands"],
)
def test_what_is_no_image_has_no_picture(image: Array, taken: tuple[int, ...]) -> None:
    assert shown(image, taken) is None
