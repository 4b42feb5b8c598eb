"""What is no result, or is damaged, is refused in one line; a page asks for nothing from elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from onnx_cbq.errors import ConfigError
from onnx_cbq.pages import PAGES, make_page
from tests.pages.made import Found, compare_result, debug_result, quantize_result

RESULTS: dict[str, Callable[[], Found]] = {
    "quantize": lambda: quantize_result(full=True),
    "compare": compare_result,
    "debug": debug_result,
}


def test_all_pages_are_tested() -> None:
    assert RESULTS.keys() == PAGES.keys()


def refused(found: Any) -> str:
    with pytest.raises(ConfigError) as error:
        make_page(found, "r.json")
    (line,) = str(error.value).splitlines()
    assert line.startswith("r.json: ")
    assert len(line) < 400
    return line


_COMMANDS: list[Any] = ["evaluate", "quantize --data-free", "a\nb" * 500, None, [], 7]


@pytest.mark.parametrize(
    "found",
    [
        *(None, 3, "text", [], [quantize_result()], {}, {"command": "quantize"}, {"format": 1}),
        *({"format": 1, "command": command} for command in _COMMANDS),
        {**quantize_result(), "format": 2},
        {**quantize_result(), "format": "1"},
    ],
    ids=lambda found: repr(found)[:30],
)
def test_what_is_no_result_is_refused(found: Any) -> None:
    assert "expected what quantize or compare or debug writes with --json, format 1; got " in refused(found)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where everything stands, of a list its first member."""
    entries = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, inner in entries:
        yield (*path, key)
        yield from _paths(inner, (*path, key))


_ODD: list[Any] = [None, "a\nb", [], -1, 1e300, 10**400, {"x": None}]


@pytest.mark.parametrize("command", RESULTS)
def test_damage_anywhere_is_one_line_or_no_harm(command: str) -> None:
    """A missing key, and each value in turn another: nothing but a page, or an error that says so, may come of it."""
    found: Any = RESULTS[command]()
    lines: list[str] = []
    for path in list(_paths(found)):
        inner = found
        for key in path[:-1]:
            inner = inner[key]
        right = dict(inner) if isinstance(inner, dict) else list(inner)
        for odd in ("gone", *_ODD):
            if odd == "gone":
                del inner[path[-1]]
            else:
                inner[path[-1]] = odd
            try:
                make_page(found, "r.json")
            except ConfigError as error:
                lines.append(str(error))
            inner.clear()
            inner.update(right) if isinstance(inner, dict) else inner.extend(right)
    assert len(lines) > 100
    assert [line for line in lines if len(line.splitlines()) > 1] == []


@pytest.mark.parametrize("command", RESULTS)
def test_required_keys_that_are_missing_are_named(command: str) -> None:
    found = RESULTS[command]()
    del found["versions"]
    assert "damaged, or of another version (KeyError: 'versions')" in refused(found)


@pytest.mark.parametrize("command", RESULTS)
def test_nothing_is_asked_for_from_elsewhere(command: str) -> None:
    page = make_page(json.loads(json.dumps(RESULTS[command]())))
    assert "default-src 'none'" in page
    assert not re.search(r"https?:|//\w|url\(|@import|\bfetch\b|XMLHttpRequest", page)
    loaded = re.findall(r"""(?:src|href)="([^"]*)""", page)
    assert all(target.startswith(("#", "data:")) for target in loaded)
