"""Names and texts come from foreign files: whatever they hold, they are text, no tag, script or attribute."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from onnx_cbq.pages import make_page
from tests.pages.made import compare_result, debug_result, quantize_result
from tests.pages.parsed import Element, parse

RESULTS = {"quantize": quantize_result(full=True), "compare": compare_result(), "debug": debug_result()}
HOSTILE = {
    "script": "<script>alert(1)</script>",
    "closing": "</script></style></title></textarea><img src=x onerror=alert(1)>",
    "comment": "<!--<script>",
    "quotes": '" onmouseover="alert(1)" x=\'',
    "template": "{{ 7 * 7 }}{% raw %}{# {% endfor %}",
    "entities": "&lt;b&gt; &#x3c;i&#x3e; &amp",
    "url": "javascript:alert(1)",
    "style": "red;--v:1;background:url(https://x.example/)",
    "control": "a\x00b\x1b[31mc\x07\u2028d\u2029e\r\nf",
    "direction": "\u202egnp.exe\u2066\u200f",
    "half": "\ud800",
    "long": "x" * 10_000,
    "long-words": "word " * 2_000,
    "wide": "\U0001f600\u0301" * 3_000,
}
# Text that is no name: what the program and the schema fix.
_FIXED = {"command", "thumbnail", "processor", "target"}


def renamed(value: Any, put: str, key: str = "") -> Any:
    """A result whose every text has `put` behind it; names that are keys elsewhere change with them."""
    if isinstance(value, dict):
        keep = "format" in value or not value.keys() <= set(_NAMES)
        return {name if keep else name + put: renamed(inner, put, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [renamed(inner, put, key) for inner in value]
    return value + put if value and isinstance(value, str) and key not in _FIXED else value


_NAMES = ("cat", "dog", "eel", "first", "second", "noise", "load", "search", "onnx-cbq", "onnx", "bits", "method")


def shape(page: Element) -> tuple[Counter[str], Counter[tuple[str, str]]]:
    """How many elements there are of each name, and of each attribute of each name."""
    elements = list(page.everything())
    tags = Counter(element.name for element in elements)
    return tags, Counter((element.name, name) for element in elements for name in element.attributes)


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("command", RESULTS)
def test_names_are_text(command: str, name: str) -> None:
    """The page has the same elements and attributes, and as many, as with plain names; scripts stay as they are."""
    plain = make_page(RESULTS[command])
    found = renamed(json.loads(json.dumps(RESULTS[command])), HOSTILE[name])
    page = make_page(found)
    assert shape(parse(page)) == shape(parse(plain))
    ours, theirs = (parse(text).all("script") for text in (plain, page))
    assert ours[-1].text == theirs[-1].text
    for element in parse(page).everything():
        assert "javascript" not in element.attributes.get("href", "") + element.attributes.get("src", "")
        assert "example" not in element.attributes.get("style", "")


@pytest.mark.parametrize("name", HOSTILE)
def test_what_the_script_reads_is_what_was_named(name: str) -> None:
    """It lies in an element of its own, which no name closes."""
    found = quantize_result(("cat" + HOSTILE[name], "dog", "eel"))
    stored = json.loads(parse(make_page(found)).part("channels").text)
    assert stored["classes"][0][:30] == ("cat" + HOSTILE[name])[:30]


def test_names_are_shown_as_they_are() -> None:
    found = quantize_result((HOSTILE["script"], HOSTILE["entities"], "eel"))
    rows = parse(make_page(found)).part("class-table").rows()
    assert [row[0] for row in rows[:2]] == [HOSTILE["script"], HOSTILE["entities"]]


@pytest.mark.parametrize("name", ["long", "long-words", "wide"])
@pytest.mark.parametrize("command", RESULTS)
def test_long_names_are_cut(command: str, name: str) -> None:
    """Notes, reasons and causes are told whole; names stand many times and would swell the page."""
    page = make_page(renamed(json.loads(json.dumps(RESULTS[command])), HOSTILE[name]))
    assert 0 < page.count(HOSTILE[name][:9_000]) <= 20


def test_the_command_that_repeats_a_run_is_one_command() -> None:
    """It is there to be copied into a shell."""
    page = parse(make_page({**quantize_result(), "model": "net.onnx; touch x\n", "curve": []}))
    for element in page.all("pre"):
        assert element.text.startswith("onnx-cbq quantize 'net.onnx; touch x\n' --data CARD ")


@pytest.mark.parametrize(
    "thumbnail",
    ["https://x.example/a.png", "javascript:alert(1)", "data:text/html,<script>", "data:image/svg+xml,<svg/>", "x.png"],
)
def test_only_pictures_are_shown_as_pictures(thumbnail: str) -> None:
    """A JSON from elsewhere must not make the page ask for anything."""
    found = compare_result()
    found["disagreements"][0]["thumbnail"] = thumbnail
    assert parse(make_page(found)).all("img") == []
