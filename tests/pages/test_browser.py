"""Pages in a real browser: nothing in the console, nothing asked for, they fit phones, and keys and clicks work."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnx_cbq.pages import make_page
from tests.pages.browser import NAMES, Browser, find_browser
from tests.pages.made import Found, compare_result, debug_result, quantize_result, thousand
from tests.pages.test_hostile import HOSTILE, renamed

LOAD_SECONDS = 2.0
Open = Callable[[str], float]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of every kind as files, by their names."""
    folder = tmp_path_factory.mktemp("pages")
    results: dict[str, Found] = {
        "quantize": quantize_result(),
        "full": quantize_result(full=True),
        "thousand": thousand(),
        "compare": compare_result(),
        "debug": debug_result(),
    }
    results["compare"]["disagreements"][0]["thumbnail"] = picture()
    for name, put in HOSTILE.items():
        results[f"hostile-{name}"] = renamed(quantize_result(full=True), put)
    for command in ("compare", "debug"):
        for name in ("closing", "long", "wide"):
            results[f"hostile-{command}-{name}"] = renamed(results[command], HOSTILE[name])
    for name, found in results.items():
        (folder / f"{name}.html").write_text(make_page(json.loads(json.dumps(found))), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in results}


def picture() -> str:
    content = io.BytesIO()
    Image.new("RGB", (2, 2), (255, 0, 0)).save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    with Browser(program, tmp_path_factory.mktemp("browser")) as running:
        running.show(1000)
        yield running


def complaints(browser: Browser) -> list[object]:
    """What stands in the console, and errors of scripts."""
    return [
        said
        for event in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        for said in browser.told(event)
    ]


def test_nothing_is_said_nothing_is_asked_for_and_everything_fits(browser: Browser, pages: dict[str, Path]) -> None:
    """All pages at the width of a phone and of a large window; hostile names neither run nor push anything out."""
    for name, page in pages.items():
        for width in (400, 1600):
            browser.show(width)
            browser.open(page)
            browser.ask("document.querySelectorAll('details').forEach((part) => (part.open = true))")
            assert browser.ask("document.documentElement.scrollWidth") <= width, (name, width)
            assert complaints(browser) == [], name
            asked = [told["request"]["url"] for told in browser.told("Network.requestWillBeSent")]
            assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()], name
            scripts = 2 if 'id="channels"' in page.read_text(encoding="utf-8") else 1
            assert browser.ask("document.scripts.length") == scripts, name


@pytest.mark.parametrize("name", ["full", "thousand"])
def test_a_page_is_there_within_two_seconds(browser: Browser, pages: dict[str, Path], name: str) -> None:
    assert min(browser.open(pages[name]) for _ in range(2)) < LOAD_SECONDS


def test_light_and_dark_differ_and_text_can_be_read_in_both(browser: Browser, pages: dict[str, Path]) -> None:
    """Contrast of text with what is behind it, as WCAG defines it, is at least 4.5."""
    seen = []
    for dark in (False, True):
        browser.show(1000, dark=dark)
        browser.open(pages["full"])
        colours = {
            name: browser.ask(f"getComputedStyle(document.querySelector('{name}')).{what}")
            for name, what in (("body", "backgroundColor"), ("h1", "color"), (".soft", "color"), (".bad", "color"))
        }
        seen.append(colours["body"])
        for name in ("h1", ".soft", ".bad"):
            assert contrast(colours[name], colours["body"]) >= 4.5, (dark, name)
    browser.show(1000)
    assert luminance(seen[0]) > 0.8
    assert luminance(seen[1]) < 0.05


def luminance(colour: str) -> float:
    """Of `rgb(r, g, b)`, relative, 0 to 1."""
    parts = np.array([int(part) for part in colour.removeprefix("rgb(").rstrip(")").split(",")]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def first_cells(browser: Browser, table: str) -> list[str]:
    cells = f"[...document.querySelector('{table}').tBodies[0].rows].filter((row) => !row.hidden)"
    return list(browser.ask(f"{cells}.map((row) => row.cells[0].textContent)"))


def click_head(browser: Browser, column: int) -> None:
    browser.ask(f"document.querySelectorAll('#class-table th button')[{column}].click()")


def test_a_click_on_a_head_sorts(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["quantize"])
    assert first_cells(browser, "#class-table") == ["cat", "dog", "eel"]
    click_head(browser, 2)
    assert first_cells(browser, "#class-table") == ["eel", "dog", "cat"], "80, 85 and 90 % before"
    sort = "document.querySelectorAll('#class-table th')[2].getAttribute('aria-sort')"
    assert browser.ask(sort) == "ascending"
    click_head(browser, 2)
    assert first_cells(browser, "#class-table") == ["cat", "dog", "eel"]
    assert browser.ask(sort) == "descending"
    click_head(browser, 4)
    assert browser.ask(sort) is None
    assert first_cells(browser, "#class-table") == ["cat", "dog", "eel"], "-25, 0 and +5 points"
    click_head(browser, 0)
    click_head(browser, 0)
    assert first_cells(browser, "#class-table") == ["eel", "dog", "cat"], "by name"


def test_numbers_sort_as_numbers(browser: Browser, pages: dict[str, Path]) -> None:
    """Not as text, where 100 comes before 20; sizes are sorted by their bytes, not by what is shown."""
    browser.open(pages["thousand"])
    for column in (2, 3, 4):
        click_head(browser, column)
        shown = browser.ask(
            f"[...document.getElementById('class-table').tBodies[0].rows].map((r) => r.cells[{column}].textContent)"
        )
        assert list(map(float, shown)) == sorted(map(float, shown))


def test_a_class_is_found(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["thousand"])
    browser.ask("document.querySelector('input[type=search]').focus()")
    for key in "99":
        browser.call("Input.insertText", text=key)
    found = first_cells(browser, "#class-table")
    assert sorted(found) == sorted(f"n{m:08d} kind of animal" for m in range(1000) if "99" in f"{m:08d}")
    assert browser.ask("document.getElementById('class-table-count').textContent") == f"{len(found)} shown"
    browser.ask("document.querySelector('input[type=search]').value = 'KIND'")
    browser.ask("document.querySelector('input[type=search]').dispatchEvent(new Event('input'))")
    assert len(first_cells(browser, "#class-table")) == 1000, "capitals make no difference"


def test_keys_walk_through_the_channels(browser: Browser, pages: dict[str, Path]) -> None:
    """Those of most bits first; of 8, 8, 3, 0 bits the last is channel 3."""
    browser.open(pages["quantize"])
    told = "document.getElementById('told').textContent"
    browser.ask("document.querySelector('.runs').focus()")
    assert browser.ask(told) == "first, channel 0: 8 bits; needed by 3 of 3 classes, most by cat, dog"
    browser.press("ArrowRight")
    assert browser.ask(told) == "first, channel 1: 8 bits; needed by 2.5 of 3 classes, most by dog, eel"
    browser.press("End")
    assert browser.ask(told) == "first, channel 3: 0 bits; needed by 1.5 of 3 classes, most by cat, dog"
    browser.press("ArrowRight")
    browser.press("ArrowLeft")
    assert browser.ask(told).startswith("first, channel 2: 3 bits")
    browser.press("Home")
    assert browser.ask(told).startswith("first, channel 0: 8 bits")


def test_the_pointer_tells_of_the_channel_below_it(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["quantize"])
    browser.ask("document.querySelector('.runs').scrollIntoView({block: 'center'})")
    box = json.loads(browser.ask("JSON.stringify(document.querySelector('.runs').getBoundingClientRect())"))
    for share, channel in ((0.1, 0), (0.4, 1), (0.6, 2), (0.9, 3)):
        at = {"x": box["x"] + share * box["width"], "y": box["y"] + box["height"] / 2}
        browser.call("Input.dispatchMouseEvent", type="mouseMoved", **at)
        assert browser.ask("document.getElementById('told').textContent").startswith(f"first, channel {channel}:")


def test_paper_has_no_controls_and_shows_bars(browser: Browser, pages: dict[str, Path]) -> None:
    browser.show(800, media="print")
    browser.open(pages["full"])
    for name in ("nav", ".search"):
        assert browser.ask(f"getComputedStyle(document.querySelector('{name}')).display") == "none"
    exact = browser.ask("getComputedStyle(document.querySelector('.runs')).printColorAdjust")
    browser.show(1000)
    assert exact == "exact", "browsers leave out backgrounds on paper, and bars are backgrounds"


def test_all_that_can_be_clicked_has_a_name_and_is_reached_by_keys(browser: Browser, pages: dict[str, Path]) -> None:
    for name in ("full", "compare", "debug"):
        browser.open(pages[name])
        assert browser.ask("document.documentElement.lang") == "en"
        assert browser.ask("[...document.images].every((image) => image.alt && image.naturalWidth > 0)")
        assert browser.ask("[...document.querySelectorAll('svg')].every((svg) => svg.querySelector('title'))")
        assert browser.ask("[...document.querySelectorAll('[role=img]:not(svg)')].every((e) => e.ariaLabel)")
        assert browser.ask("[...document.querySelectorAll('input')].every((input) => input.labels.length)")
        assert browser.ask("[...document.querySelectorAll('table')].every((table) => table.tHead)")
        assert browser.ask("document.querySelectorAll('h1').length") == 1
