"""What is tried: each normalisation is the one of its library, whatever values are stored and in whatever order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnx_cbq.calibration.candidates import (
    FRAMINGS,
    NORMALISATIONS,
    Candidate,
    framing_candidates,
    image_framings,
    value_candidates,
)
from onnx_cbq.calibration.card import Card, load_card
from onnx_cbq.calibration.figures import measured, of_pixels
from onnx_cbq.calibration.prepare import fit
from onnx_cbq.calibration.written import card_text
from onnx_cbq.model import Array, InputSpec

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (4, 6, 5, 3)).astype(np.uint8)
PIXELS[0, 0, 0] = 0, 255, 255
BASE = Card(Path("a"), layout="NHWC")
IMAGENET = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
# What libraries compute of an image x of 0..255 in RGB, from their sources.
LIBRARIES = {
    "0..1": lambda x: x / 255,
    "-1..1": lambda x: x / 127.5 - 1,
    "0..255": lambda x: x,
    "ImageNet": lambda x: (x / 255 - IMAGENET[0]) / IMAGENET[1],
    "CIFAR-10": lambda x: (x / 255 - [0.4914, 0.4822, 0.4465]) / [0.2470, 0.2435, 0.2616],
    "CLIP": lambda x: (x / 255 - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711],
    "(x - 127) / 128": lambda x: (x - 127) / 128,
    "caffe": lambda x: x - [123.68, 116.779, 103.939],
    "per image standardised": lambda x: (x - x.mean()) / x.std(),
    "per image 0..1": lambda x: (x - x.min()) / (x.max() - x.min()),
}
STORED: dict[str, Array] = {
    "bytes": PIXELS,
    "0..1": (PIXELS / 255).astype(np.float32),
    "-1..1": (PIXELS / 127.5 - 1).astype(np.float32),
    "16 bits": PIXELS.astype(np.uint16) * 257,
}


def of(raw: Array, *, exact: bool = False) -> dict[str, Candidate]:
    figures = of_pixels(raw.shape[-1]) if exact else measured([raw], axis=2)
    found = value_candidates(BASE, figures, image=True, whole=False)
    assert len({candidate.card for candidate in found}) == len(found)
    return {candidate.name: candidate for candidate in found}


def prepared(card: Card, raw: Array) -> Array:
    spec = InputSpec("x", np.dtype(np.float32), (None, *raw.shape[1:]))
    return fit(card, spec, raw[0], "a").apply(raw, range(len(raw)), "a")


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("stored", STORED)
def test_a_normalisation_is_that_of_its_library(name: str, stored: str) -> None:
    """Of whatever range is stored, and for BGR with the figures of each channel turned with it."""
    raw = STORED[stored]
    found = of(raw)
    suffix = {"-1..1": " of -1..1", "16 bits": " of 0..65535"}.get(stored, "")
    suffix = "" if name.startswith("per image") else suffix
    expected = np.stack([LIBRARIES[name](image.astype(np.float64)) for image in PIXELS])
    # What is the same under two names stands under the first.
    same = {"0..1": "as stored", "0..255": "as stored", "-1..1": "as stored"}
    for order, wanted in (("", expected), ("BGR, ", expected[..., ::-1])):
        candidate = found.get(f"{order}{name}{suffix}") or found[f"{order}{same[name]}"]
        np.testing.assert_allclose(prepared(candidate.card, raw), wanted, rtol=1e-4, atol=1e-4)


def test_images_that_never_reach_their_top_are_tried_with_both() -> None:
    """Digits of 0 to 16 in bytes: x / 16, where x / 255 would leave them dark."""
    raw = RANDOM.integers(0, 17, (50, 8, 8, 1)).astype(np.uint8)
    raw[0, 0, 0] = 16
    found = of(raw)
    assert found["0..1 of 0..16"].card.scale == 1 / 16
    assert found["0..1"].card.scale == 1 / 255
    assert "caffe" not in found


def test_three_channels_are_not_tried_with_figures_of_grey() -> None:
    assert not {"MNIST", "Fashion-MNIST"} & of(PIXELS, exact=True).keys()
    assert {"MNIST", "Fashion-MNIST"} <= of(PIXELS[..., :1], exact=True).keys()


def test_samples_that_are_no_images_are_standardised_by_feature() -> None:
    raw = RANDOM.normal([0, 100, 5], [1, 20, 0], (500, 3))
    figures = measured([raw[:200], raw[200:]], axis=0)
    found = {one.name: one.card for one in value_candidates(Card(Path("a")), figures, image=False, whole=False)}
    expected = (raw - raw.mean(axis=0)) / np.where(raw.std(axis=0) > 1e-9, raw.std(axis=0), 1)
    np.testing.assert_allclose(prepared(found["features standardised"], raw), expected, atol=1e-4)
    together = prepared(found["all standardised as one"], raw)
    np.testing.assert_allclose(together, (raw - raw.mean()) / raw.std(), atol=1e-4)
    ranged = prepared(found["features to 0..1"], raw)
    np.testing.assert_allclose([ranged.min(axis=0), ranged.max(axis=0)], np.array([[0, 0, 0], [1, 1, 0]]), atol=1e-5)
    assert found["as stored"] == Card(Path("a"))


def test_figures_are_of_each_channel() -> None:
    figures = measured([PIXELS[:1], PIXELS[1:]], axis=2)
    np.testing.assert_allclose(figures.means, PIXELS.mean(axis=(0, 1, 2)))
    np.testing.assert_allclose(figures.deviations, PIXELS.std(axis=(0, 1, 2)))
    assert (figures.mean, figures.deviation) == pytest.approx((PIXELS.mean(), PIXELS.std()))
    assert figures.lows == tuple(PIXELS.min(axis=(0, 1, 2)))
    assert figures.high == 255


def test_whole_numbers_are_not_scaled() -> None:
    found = value_candidates(BASE, of_pixels(3), image=True, whole=True)
    assert [candidate.card.channels for candidate in found] == ["RGB", "BGR"]
    assert {candidate.card.scale for candidate in found} == {1.0}


def every_candidate() -> list[Card]:
    images = [candidate for raw in STORED.values() for candidate in of(raw).values()]
    sizes = [one for size in ((224, 224), (32, 48)) for one in framing_candidates(images[3], image_framings(size))]
    return [candidate.card for candidate in (*images, *sizes)]


def test_every_card_that_is_tried_can_be_read_back(tmp_path: Path) -> None:
    """Else the card that is written is not the one that was measured, or is refused."""
    (tmp_path / "cards").mkdir()
    for card in every_candidate():
        path = tmp_path / "cards" / "card.toml"
        path.write_text(card_text(card, path.parent, ["Two words", "x" * 300]), encoding="utf-8")
        found = load_card(path)
        assert Path(found.source).resolve() == Path(card.source).resolve()
        assert Card(**{**vars(found), "source": card.source}) == card


def test_every_framing_has_a_name_of_its_own() -> None:
    assert len({framing.name for framing in FRAMINGS}) == len(FRAMINGS)
    assert len({one.name for one in NORMALISATIONS}) == len(NORMALISATIONS)
