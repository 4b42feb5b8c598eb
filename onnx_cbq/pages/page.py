"""Pages from JSON: which template for which command, and the one file that becomes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError
from markupsafe import Markup

from onnx_cbq.errors import ConfigError
from onnx_cbq.pages.compared import compare_page
from onnx_cbq.pages.debugged import debug_page
from onnx_cbq.pages.quantized import quantize_page
from onnx_cbq.records.figures import FORMAT

Found = Mapping[str, Any]
# What the commands with a page write, as what their templates need.
PAGES: Mapping[str, Callable[[Found], dict[str, Any]]] = {
    "quantize": quantize_page,
    "compare": compare_page,
    "debug": debug_page,
}
_PACKAGE = "onnx_cbq.pages"


def make_page(found: Found, where: str = "the result") -> str:
    """The page of what a command wrote with `--json`; it asks for nothing from elsewhere.

    Raises:
        ConfigError: it is no such JSON; `where` is what the message calls it.
    """
    command = str(found.get("command", "")) if isinstance(found, Mapping) else ""
    if command not in PAGES or found.get("format") != FORMAT or ("quantized" not in found and command == "quantize"):
        raise ConfigError(
            f"{where}: expected what {' or '.join(PAGES)} writes with --json, format {FORMAT}; got "
            f"{f'that of {_line(command, 40)}' if command else 'something else'}"
        )
    folder = files(_PACKAGE) / "templates"
    # They are ours, and stand where no text is looked for.
    parts = {name: Markup((folder / file).read_text("utf-8")) for name, file in _INLINE.items()}  # noqa: S704
    template = _environment().get_template(f"{command}.html.j2")
    try:
        with np.errstate(all="raise", under="ignore"):
            page = template.render(**PAGES[command](found), **parts)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, UndefinedError) as error:
        what = f"{type(error).__name__}: {_line(error, 80)}"
        raise ConfigError(f"{where}: damaged, or of another version ({what}); write it again with --json") from error
    # JSON can hold half a character, a file cannot.
    return page.encode("utf-8", "replace").decode("utf-8")


def _line(said: object, most: int) -> str:
    """Foreign text on one line."""
    return " ".join(str(said).split())[:most]


_INLINE = {"style": "style.css", "script": "script.js"}


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader(_PACKAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
