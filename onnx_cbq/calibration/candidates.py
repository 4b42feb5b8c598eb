"""What is tried to find how a model wants its samples: well-known ranges, means and deviations, sizes and crops.

Everything here is data that one can read and add to: `NORMALISATIONS` for what values become, `ORDERS` for the channels
of images, `FRAMINGS` for how images come to a size, `RATES` of sounds, `SOUNDS` for what their values become, and
`FEATURES` for those of other samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from onnx_cbq.calibration.card import Card
from onnx_cbq.calibration.figures import Figures


@dataclass(frozen=True)
class Candidate:
    """A card to try, and what a table calls it.

    Attributes:
        card: how the samples are prepared.
        values: what becomes of their values.
        framing: how images come to their size, or sounds to their length.
    """

    card: Card
    values: str
    framing: str = ""

    @property
    def name(self) -> str:
        """In a few words."""
        return ", ".join(filter(None, (self.content, self.framing)))

    @property
    def content(self) -> str:
        """The values, and the order of channels where it is turned."""
        return self.values if self.card.channels == "RGB" else f"{self.card.channels}, {self.values}"


@dataclass(frozen=True)
class Normalisation:
    """What values from 0 to `top` become: (x - mean) / std, or what each sample becomes by itself.

    Attributes:
        mean, std: one number, or one each for red, green and blue.
        per_sample: as a card has it; the values are as stored then.
    """

    name: str
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    top: float = 1.0
    per_sample: str | None = None

    def keys(self, low: float, high: float, order: str) -> dict[str, Any]:
        """Keys of a card for values stored from `low` to `high`, images in this order of channels."""
        mean, std = (part[::-1] if order == "BGR" else part for part in (self.mean, self.std))
        scale = 1.0 if self.per_sample else self.top / (high - low)
        shift = 0.0 if self.per_sample else low * scale
        return {
            "per_sample": self.per_sample,
            "scale": scale,
            "mean": tuple(value + shift for value in mean),
            "std": std,
        }


@dataclass(frozen=True)
class Framing:
    """How images come to the size of a model: keys of a card, by its height and width.

    Attributes:
        square: whether it is for models that take squares alone.
    """

    name: str
    keys: Callable[[tuple[int, int]], dict[str, Any]]
    square: bool = False


# Ways for files to come to the size of a model's input: keys of a card by what a table calls them.
Framings = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Feature:
    """What becomes of the values of samples that may be no images: keys of a card, by figures of the samples."""

    name: str
    keys: Callable[[Figures], dict[str, Any]]


NORMALISATIONS = (
    Normalisation("0..1"),
    Normalisation("-1..1", (0.5,), (0.5,)),
    Normalisation("0..255", top=255),
    Normalisation("ImageNet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    Normalisation("CIFAR-10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    # With the mean over images of their own deviations, which many have in place of the set's.
    Normalisation("CIFAR-10, within images", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    Normalisation("CLIP", (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    # EfficientNet-Lite.
    Normalisation("(x - 127) / 128", (127,), (128,), top=255),
    # Keras' mode "caffe": VGG, ResNet.
    Normalisation("caffe", (123.68, 116.779, 103.939), top=255),
    Normalisation("MNIST", (0.1307,), (0.3081,)),
    Normalisation("Fashion-MNIST", (0.2860,), (0.3530,)),
    Normalisation("per image standardised", per_sample="standardise"),
    Normalisation("per image 0..1", per_sample="range"),
)
# Those of grey images alone.
_GREY_ONLY = ("MNIST", "Fashion-MNIST")
ORDERS = ("RGB", "BGR")


def _share(share: float, **keys: Any) -> Callable[[tuple[int, int]], dict[str, Any]]:
    return lambda size: {"crop": _shortest(size), "crop_share": share, **keys}


def _exact(**keys: Any) -> Callable[[tuple[int, int]], dict[str, Any]]:
    return lambda size: {"resize": size, **keys}


def _letterbox(size: tuple[int, int]) -> dict[str, Any]:
    return {"resize": size[:1], "resize_side": "longer", "crop": size[:1], "pad": 0}


# The first is what values are tried with.
FRAMINGS = (
    Framing("crop 0.875, bilinear", _share(0.875)),
    Framing("crop 0.875, bicubic", _share(0.875, interpolation="bicubic")),
    Framing("crop 0.875, no antialias", _share(0.875, antialias=False)),
    Framing("crop 0.95, bicubic", _share(0.95, interpolation="bicubic")),
    Framing("crop 1, bilinear", _share(1.0)),
    Framing("crop 1, bicubic", _share(1.0, interpolation="bicubic")),
    Framing("squash, bilinear", _exact()),
    Framing("squash, bicubic", _exact(interpolation="bicubic")),
    Framing("squash, no antialias", _exact(antialias=False)),
    Framing("letterbox", _letterbox, square=True),
)


def _standardised(figures: Figures) -> dict[str, Any]:
    return {"mean": figures.means, "std": _divisors(figures.deviations)}


def _standardised_together(figures: Figures) -> dict[str, Any]:
    return {"mean": (figures.mean,), "std": _divisors((figures.deviation,))}


def _to_range(figures: Figures) -> dict[str, Any]:
    spans = tuple(high - low for low, high in zip(figures.lows, figures.highs, strict=True))
    return {"mean": figures.lows, "std": _divisors(spans)}


# By figures of the samples themselves, which are near those of training if there are enough.
FEATURES = (
    Feature("as stored", lambda figures: {}),  # noqa: ARG005, every entry has the same form
    Feature("features standardised", _standardised),
    Feature("all standardised as one", _standardised_together),
    Feature("features to 0..1", _to_range),
    # Not by `standardise`, whose least deviation is made for images: samples of small numbers would stay smaller.
    Feature("per sample normalised", lambda figures: {"per_sample": "normalise"}),  # noqa: ARG005
)
# Of sounds in -1..1.
SOUNDS = (
    *(feature for feature in FEATURES if feature.name in ("as stored", "per sample normalised")),
    Feature("numbers of 16 bits", lambda figures: {"scale": 32768.0}),  # noqa: ARG005
    Feature("all standardised as one", _standardised_together),
)
RATES = (8000, 16_000, 22_050, 32_000, 44_100, 48_000)


def value_candidates(base: Card, figures: Figures, *, image: bool, whole: bool) -> tuple[Candidate, ...]:
    """What may become of the values of samples; `image` for those of 1 or 3 channels, `whole` for integer inputs."""
    if whole:
        orders = ORDERS if image and figures.channels == 3 else ORDERS[:1]
        return tuple(Candidate(replace(base, channels=order), "as stored") for order in orders)
    known = _of_images(base, figures) if image else ()
    given = {candidate.card for candidate in known}
    measured = [Candidate(replace(base, **feature.keys(figures)), feature.name) for feature in FEATURES]
    if image and figures.exact:
        measured = []
    return (*known, *_distinct([one for one in measured if one.card not in given]))


def sound_candidates(base: Card, figures: Figures) -> tuple[Candidate, ...]:
    """What may become of the values of sounds."""
    return _distinct([Candidate(replace(base, **feature.keys(figures)), feature.name) for feature in SOUNDS])


def image_framings(size: tuple[int, int]) -> Framings:
    """How images may come to a height and width."""
    return {one.name: one.keys(size) for one in FRAMINGS if size[0] == size[1] or not one.square}


def sound_framings(rate: int, seconds: float, length: int | None) -> Framings:
    """How sounds may come to `length` numbers each, the likeliest rate first.

    Args:
        rate: that they have; it comes first where no length is given.
        seconds: what most of them last for a length; the longest without one, so that none is cut.
        length: None for a model that takes any.
    """

    def unlikely(other: int) -> tuple[float, bool, int]:
        return 0.0 if length is None else abs(math.log(other * seconds / length)), other != rate, other

    rates = sorted({rate, *RATES}, key=unlikely)
    return {f"{one:,} Hz": {"sample_rate": one, "length": length or math.ceil(one * seconds)} for one in rates}


def framing_candidates(best: Candidate, framings: Framings) -> tuple[Candidate, ...]:
    """The best values so far with every framing."""
    return tuple(framed(best, name, framings) for name in framings)


def framed(candidate: Candidate, name: str, framings: Framings) -> Candidate:
    """A candidate whose files come to their size another way."""
    keys = {"resize": None, "resize_side": "shorter", "interpolation": "bilinear", "antialias": True}
    keys |= {"crop": None, "crop_share": None, "pad": None, "sample_rate": None, "length": None}
    return replace(candidate, card=replace(candidate.card, **{**keys, **framings[name]}), framing=name)


def _of_images(base: Card, figures: Figures) -> tuple[Candidate, ...]:
    """The well-known normalisations of images of so many channels, for all that the stored values may be a range of."""
    fitting = [one for one in NORMALISATIONS if len(one.mean) in (1, figures.channels)]
    fitting = [one for one in fitting if one.name not in _GREY_ONLY or figures.channels == 1]
    found = []
    for order in ORDERS if figures.channels == 3 else ORDERS[:1]:
        card = replace(base, channels=order)
        for low, high in _ranges(figures):
            of = "" if (low, high) in ((0, 255), (0, 1)) else f" of {low:g}..{high:g}"
            fixed = [one for one in fitting if one.per_sample is None]
            found += [Candidate(replace(card, **one.keys(low, high, order)), one.name + of) for one in fixed]
        # Last, since of what does the same the first is taken.
        own = [one for one in fitting if one.per_sample is not None]
        found += [Candidate(replace(card, **one.keys(0, 1, order)), one.name) for one in own]
    return _distinct(found)


def _ranges(figures: Figures) -> list[tuple[float, float]]:
    """From where to where values of images are likely to have been stored; none if that is not one of the usual."""
    low, high = figures.low, figures.high
    if low < 0:
        return [(-1.0, 1.0)] if low >= -1 and high <= 1 else []
    if high <= 1:
        return [(0.0, 1.0)]
    if high <= 255:
        # Hundreds of photographs reach the top half.
        return [(0.0, 255.0), (0.0, high)] if high < 128 and not figures.exact else [(0.0, 255.0)]
    top = float(2 ** math.ceil(math.log2(high + 1)) - 1)
    return [(0.0, top)] if top == high else [(0.0, top), (0.0, high)]


def _divisors(values: tuple[float, ...]) -> tuple[float, ...]:
    """What does not vary is divided by 1."""
    return tuple(value if value > 1e-12 else 1.0 for value in values)


def _distinct(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Each card once: 0..1 of what is stored from 0 to 1 is what is stored."""
    first: dict[Card, Candidate] = {}
    for candidate in candidates:
        first.setdefault(candidate.card, candidate)
    return tuple(first.values())


def _shortest(size: tuple[int, int]) -> tuple[int, ...]:
    """A size as a card writes it."""
    return size[:1] if size[0] == size[1] else size
