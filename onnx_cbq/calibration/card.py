"""A calibration card: a TOML file that says where labelled samples are and how to prepare them.

Preparation is, in this order: resize, crop (images), channels, each sample by itself, then (x * scale - mean) / std in
float32, then the model's layout.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from onnx_cbq.calibration.files import read_text, reason, shown
from onnx_cbq.calibration.places import is_url, located
from onnx_cbq.errors import CalibrationError

# Names of tens of thousands of classes fit in.
_LARGEST_CARD = 4 << 20
_MOST_DOTS = 1000
_MOST = (1 << 31) - 1
_LARGEST, _SMALLEST = float(np.finfo(np.float32).max), float(np.finfo(np.float32).smallest_normal)
LAYOUTS = ("NHWC", "NCHW")
CHANNELS = ("RGB", "BGR", "grey")
PER_SAMPLE = ("standardise", "normalise", "range")
SIDES = ("shorter", "longer")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box")
# Those that can be sampled at single points.
_POINTWISE = ("nearest", "bilinear", "bicubic")
_A_CARD = 'a card is a .toml file whose line source = "..." names samples, a file or a folder; see docs/cards.md'


@dataclass(frozen=True)
class Card:
    """The settings of a card. Everything but `source` has a default.

    Attributes:
        source: a file, a folder, or a pattern of several files (see `opening.SOURCES`); a text is a URL for fsspec.
        layout: order of the axes of the samples as stored, "NHWC" or "NCHW"; None if it is the model's own.
        channels: what images become: "RGB" leaves the channels as stored, "BGR" turns their order, "grey" makes one of
            them, repeated where the model takes three. `mean` and `std` are in the order that comes of it.
        per_sample: "standardise" makes (x - mean) / max(deviation, 1 / sqrt(values)) of each sample by its own figures,
            "normalise" (x - mean) / sqrt(variance + 1e-7), "range" (x - least) / (greatest - least); None leaves it.
        scale: multiplied first. It, mean and std apply to inputs of real numbers; whole ones (token ids) stay as is.
        mean, std: subtracted, divided by; one number, or one per channel.
        resize: images only: length of the side that `resize_side` names, or (height, width).
        resize_side: "shorter" or "longer".
        interpolation: of resizing, one of `INTERPOLATIONS`.
        antialias: whether filters grow with what a picture shrinks by.
        crop: images only: side of the centre square, or (height, width).
        crop_share: in place of `resize`: the share of the resized shorter side that `crop` is.
        pad: grey value that fills a picture up to `crop` where it is smaller; None refuses such a picture.
        classes: class names in the order of the labels; for a folder, the sub-folders in the order of the labels.
        limit: at most so many samples of each class are used.
        labels: the `.npy` of the labels beside that of the samples; for lists and tables, the column that holds them.
        sample_rate: sounds only: numbers a second that they are resampled to; None if they have all the same.
        length: sounds only: numbers of each; longer ones are cut behind their start, shorter ones end with zeros.
    """

    source: Path | str
    layout: str | None = None
    channels: str = "RGB"
    per_sample: str | None = None
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    resize: tuple[int, ...] | None = None
    resize_side: str = "shorter"
    interpolation: str = "bilinear"
    antialias: bool = True
    crop: tuple[int, ...] | None = None
    crop_share: float | None = None
    pad: int | None = None
    classes: tuple[str, ...] | None = None
    limit: int | None = None
    labels: str | None = None
    sample_rate: int | None = None
    length: int | None = None


def load_card(path: Path, source: Path | str | None = None) -> Card:
    """Read a card; `source` replaces the card's own.

    Raises:
        CalibrationError: the card is missing, is not TOML, or has an unknown key or a value of the wrong type.
    """
    try:
        values = _parsed(read_text(path, _LARGEST_CARD))
    except FileNotFoundError:
        raise CalibrationError(f"{path}: no such card; {_A_CARD}") from None
    except IsADirectoryError:
        raise CalibrationError(f"{path}: no such card, but a folder; {_A_CARD}") from None
    except OSError as error:
        raise CalibrationError(f"{shown(str(path))[1:-1]}: cannot be read: {error.strerror}") from error
    except (
        ValueError,
        RecursionError,
    ) as error:  # wrong bytes, wrong TOML, numbers and nesting beyond what Python takes
        raise CalibrationError(f"{path}: not a TOML file: {reason(error)}; {_A_CARD}") from None
    known = {field.name for field in fields(Card)}
    for key in values.keys() - known:
        raise CalibrationError(f"{path}: unknown key {shown(key)}{_nearest(key, known)}")
    if source is None and "source" not in values:
        raise CalibrationError(f"{path}: no key 'source'; name a file or a folder of samples, or give --source")
    _check_together(values, path)
    settings = {key: _PARSERS[key](value, f"{path}: {key}") for key, value in values.items() if key != "source"}
    if source is None:
        written = _text(values["source"], f"{path}: source")
        source = written if is_url(written) else path.parent / written
    return Card(source=located(source), **settings)


def _parsed(text: str) -> dict[str, Any]:
    """The keys of a card. Parsing takes time with the square of the parts of a dotted key, and no card has one."""
    for line in text.splitlines():
        *keys, rest = line.split("=")
        header = rest if not keys and rest.lstrip().startswith("[") and "," not in rest else ""
        if any(part.count(".") > _MOST_DOTS for part in (*keys, header)):
            raise ValueError(f"a key of more than {_MOST_DOTS} parts")
    return tomllib.loads(text)


def _check_together(values: Mapping[str, Any], path: Path) -> None:
    """Refuse keys that mean nothing, or two things, beside the others."""
    resizes = "resize" in values or "crop_share" in values
    if "crop_share" in values and ("crop" not in values or "resize" in values):
        raise CalibrationError(f"{path}: crop_share: stands beside crop and in place of resize; set crop alone")
    if "resize_side" in values and not isinstance(values.get("resize"), int):
        raise CalibrationError(f"{path}: resize_side: is of a resize that is one number; set resize = 256, say")
    for key in ("interpolation", "antialias"):
        if key in values and not resizes:
            raise CalibrationError(f"{path}: {key}: nothing is resized; set resize or crop_share, or leave it out")
    if "pad" in values and "crop" not in values:
        raise CalibrationError(f"{path}: pad: fills images up to crop; set crop, or leave pad out")
    pointwise = values.get("interpolation", "bilinear") in _POINTWISE
    if values.get("antialias") is False and not pointwise and values["interpolation"] in INTERPOLATIONS:
        raise CalibrationError(f"{path}: antialias: false is for interpolation {_listing(_POINTWISE)}; leave it out")


def _nearest(key: str, known: set[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(sorted(known))}"


def _wrong(where: str, expected: str, value: object) -> CalibrationError:
    return CalibrationError(f"{where}: expected {expected}, got {shown(value)}")


def _text(value: object, where: str, expected: str = "a path in quotes") -> str:
    if not isinstance(value, str) or not value:
        raise _wrong(where, expected, value)
    return value


def _name(value: object, where: str) -> str:
    return _text(value, where, "a path or a name in quotes")


def _listing(words: tuple[str, ...]) -> str:
    return " or ".join(f'"{word}"' for word in words)


def _one_of(*words: str) -> Callable[[object, str], str]:
    def read(value: object, where: str) -> str:
        if value not in words:
            raise _wrong(where, _listing(words), value)
        return str(value)

    return read


def _switch(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(where, "true or false", value)
    return value


def _share(value: object, where: str) -> float:
    number = _number(value, where)
    if not 0.01 <= number <= 1:
        raise _wrong(where, "a share from 0.01 to 1", value)
    return number


def _grey_value(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 255:
        raise _wrong(where, "a whole number from 0 to 255", value)
    return value


def _number(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
        raise _wrong(where, "a finite number", value)
    if abs(value) > _LARGEST:
        raise _wrong(where, f"a number of single precision, up to {_LARGEST:.2g}", value)
    return float(value)


def _numbers(value: object, where: str) -> tuple[float, ...]:
    values = value if isinstance(value, list) else [value]
    if not values:
        raise _wrong(where, "a number, or one per channel", value)
    return tuple(_number(v, where) for v in values)


def _divisors(value: object, where: str) -> tuple[float, ...]:
    numbers = _numbers(value, where)
    if any(number <= 0 for number in numbers):
        raise _wrong(where, "numbers above 0", value)
    if any(number < _SMALLEST for number in numbers):
        raise _wrong(where, f"numbers of single precision, above {_SMALLEST:.2g}", value)
    return numbers


def _count(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _wrong(where, "a whole number above 0", value)
    if value > _MOST:
        raise _wrong(where, f"a whole number up to {_MOST}", value)
    return value


def _size(value: object, where: str) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    if len(values) not in (1, 2):
        raise _wrong(where, "one size, or [height, width]", value)
    return tuple(_count(v, where) for v in values)


def _names(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        raise _wrong(where, "a list of names", value)
    if len(set(value)) != len(value):
        raise _wrong(where, "names that differ", value)
    return tuple(value)


_PARSERS: Mapping[str, Callable[[object, str], Any]] = {
    "layout": _one_of(*LAYOUTS),
    "channels": _one_of(*CHANNELS),
    "per_sample": _one_of(*PER_SAMPLE),
    "scale": _number,
    "mean": _numbers,
    "std": _divisors,
    "resize": _size,
    "resize_side": _one_of(*SIDES),
    "interpolation": _one_of(*INTERPOLATIONS),
    "antialias": _switch,
    "crop": _size,
    "crop_share": _share,
    "pad": _grey_value,
    "classes": _names,
    "limit": _count,
    "labels": _name,
    "sample_rate": _count,
    "length": _count,
}
