"""Samples that are images as small pictures, for pages."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from onnx_cbq.calibration.samples import Samples

SIDE = 64


def thumbnail(samples: Samples, position: int) -> str | None:
    """A sample as a PNG of at most `SIDE` pixels a side, in a `data:` URL; None where no input is an image.

    It shows what the model gets, without the card's mean, deviation and order of colours, between its darkest and its
    brightest value.
    """
    axes = samples.image_axes
    if not axes:
        return None
    name, axis = next(iter(axes.items()))
    image = np.moveaxis(samples.read([position])[name], axis, -1)[0].astype(np.float64)
    if image.ndim != 3 or image.shape[-1] not in (1, 3):
        return None
    card = samples.data.card
    image = image * np.asarray(card.std) + np.asarray(card.mean)
    image = image[..., ::-1] if card.channels == "BGR" else image
    low, high = float(image.min()), float(image.max())
    pixels = np.rint((image - low) * (255 / (high - low) if high > low else 0.0)).astype(np.uint8)
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    picture.thumbnail((SIDE, SIDE))
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
