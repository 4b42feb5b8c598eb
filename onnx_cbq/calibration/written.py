"""A card as the text of a TOML file: what is not the default, a key per line."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from onnx_cbq.calibration.card import Card
from onnx_cbq.errors import OutputError

_COLUMNS = 118
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}
_LAST_CONTROL, _DELETE = 0x1F, 0x7F


def card_text(card: Card, folder: Path, comments: Sequence[str] = ()) -> str:
    """The card for a file in `folder`, its source relative to it, with comments in front.

    Raises:
        OutputError: the source's name is no text.
    """
    plain = ("".join(letter if letter.isprintable() else " " for letter in comment) for comment in comments)
    lines = [f"# {line}" for comment in plain for line in textwrap.wrap(comment, _COLUMNS, break_long_words=False)]
    lines.append(f"source = {_value(source_from(card.source, folder))}")
    for field in fields(Card):
        value = getattr(card, field.name)
        if field.name != "source" and value != field.default:
            lines.append(f"{field.name} = {_value(value)}")
    return "\n".join(lines) + "\n"


def keys_of(card: Card) -> dict[str, object]:
    """The keys that are not the default, as JSON has them; without the source and the classes."""
    left_out = ("source", "classes")
    found = {field.name: getattr(card, field.name) for field in fields(Card) if field.name not in left_out}
    defaults = {field.name: field.default for field in fields(Card)}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in found.items()
        if value != defaults[name]
    }


def source_from(source: Path | str, folder: Path) -> str:
    """A source as a card in `folder` names it: relative, or absolute where there is no way from one to the other."""
    if isinstance(source, str):  # a URL
        return source
    try:
        return Path(os.path.relpath(source.resolve(), folder.resolve())).as_posix()
    except ValueError:  # two drives
        return source.resolve().as_posix()


def _value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple):
        return _value(value[0]) if _is_single(value) else f"[{', '.join(map(_value, value))}]"
    return f'"{"".join(map(_escaped, str(value)))}"'


def _is_single(value: tuple[object, ...]) -> bool:
    return len(value) == 1 and not isinstance(value[0], str)


def _escaped(letter: str) -> str:
    code = ord(letter)
    if 0xD800 <= code <= 0xDFFF:
        raise OutputError("a name of the source is no text, which a card cannot hold; give it another name")
    if letter in _ESCAPES:
        return _ESCAPES[letter]
    return f"\\u{code:04x}" if code <= _LAST_CONTROL or code == _DELETE else letter
