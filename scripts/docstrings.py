"""How the docstrings of this project become pages: an extension of griffe, which `mkdocs.yml` names.

Attributes that one line describes, `float_bytes, bytes: of the two files`, get a row each, and settings their default.
"""

from __future__ import annotations

import dataclasses
import re
from importlib import import_module
from typing import Any

import griffe

_JOINT = re.compile(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +.*)*)$", re.MULTILINE)


class ReadableDocstrings(griffe.Extension):
    """Rewrites the docstrings of classes before they are taken apart."""

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """A class that was found in the source."""
        if cls.docstring is not None:
            cls.docstring.value = with_defaults(one_by_one(cls.docstring.value), defaults(cls.path))


def one_by_one(text: str) -> str:
    """The text with a line of its own for each of the attributes that share one."""
    return _JOINT.sub(lambda m: "\n".join(f"{m[1]}{name}: {m[3]}" for name in m[2].split(", ")), text)


def with_defaults(text: str, found: dict[str, str]) -> str:
    """The text with the default of each attribute behind what it says."""
    for name, default in found.items():
        line = re.search(rf"^( +){name}: .*(?:\n\1 +.*)*$", text, re.MULTILINE)
        if line is not None:
            text = f"{text[: line.end()].rstrip('.')}. Default: `{default}`.{text[line.end() :]}"
    return text


def defaults(path: str) -> dict[str, str]:
    """Field -> default as Python writes it, for a class of settings; nothing for any other class."""
    module, _, name = path.rpartition(".")
    if not name.endswith("Config"):
        return {}
    owner = getattr(import_module(module), name)
    made = {
        field.name: field.default for field in dataclasses.fields(owner) if field.default is not dataclasses.MISSING
    }
    return {field: repr(default) for field, default in made.items()}
