"""Numbers as pages and tables show them."""

from __future__ import annotations

import math
import string
from collections.abc import Mapping
from typing import Any

# Longer names are cut; the JSON has them whole.
_LONGEST = 60


def short(name: object, most: int = _LONGEST) -> str:
    """A name that fits."""
    text = str(name)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def points(value: float | None) -> str:
    """A change in percentage points."""
    return "-" if value is None else f"{value:+.2f}"


def percent(value: float | None) -> str:
    """A share in percent."""
    return "-" if value is None else f"{value:.2f}"


def share(after: float, before: float) -> str:
    """What is left of something, in percent."""
    return f"{100 * after / before:.0f} %" if before else "-"


def number(value: float | None, form: str = ".1f") -> str:
    """A number, or a dash."""
    return "-" if value is None else format(value, form)


def cell(value: float | None, text: str, style: str = "") -> dict[str, Any]:
    """A cell that is sorted by its number; one of none comes first."""
    return {"value": -1e308 if value is None else value, "text": text, "style": style}


def standard_error(accuracy: float, samples: int) -> float:
    """Of an accuracy in percent on so many samples: sqrt(p (1 - p) / (n + 4)) with p = (right + 2) / (n + 4).

    Agresti and Coull's: it does not vanish where all answers are right.
    """
    p = (accuracy / 100 * samples + 2) / (samples + 4)
    return 100 * math.sqrt(p * (1 - p) / (samples + 4))


def paired_error(agreement: float, samples: int) -> float:
    """The largest standard error of the difference of two accuracies in percent, of models that agree in so many.

    sqrt(d / n) where a share d of n samples is answered differently: each of these changes the sum by one or nothing.
    """
    return 100 * math.sqrt(max(1 - agreement / 100, 0.0) / max(samples, 1))


def size(count: float) -> str:
    """Bytes, as people read them."""
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= step:
            return f"{count / step:.3g} {unit}"
    return f"{count:,.0f} bytes"


def loss(value: float | None) -> str:
    """A divergence in nats."""
    return "-" if value is None else "0" if value == 0 else f"{value:.2g}"


def letters(count: int) -> list[str]:
    """What models are called: A to Z, then A1 and so on."""
    names = string.ascii_uppercase
    return [names[i % len(names)] + (str(i // len(names)) if i >= len(names) else "") for i in range(count)]


def made_by(found: Mapping[str, Any]) -> str:
    """The versions of the packages that decide a result."""
    return ", ".join(f"{name} {version}" for name, version in found["versions"].items())
