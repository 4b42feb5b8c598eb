"""Pages on the command line and from Python: of what really ran, and nothing is lost where one cannot be made."""

from __future__ import annotations

import html
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import onnx_cbq
from onnx_cbq import QuantizeConfig
from onnx_cbq.errors import ModelError, OutputError
from onnx_cbq.jobs import compare
from onnx_cbq.jobs import quantize as job
from onnx_cbq.jobs.result import Result
from onnx_cbq.system.timing import median_seconds
from tests.command import Command
from tests.conftest import DIGITS_CARD, DIGITS_MODEL
from tests.pages.parsed import Element, parse

QUICK = ("--rounding", "nearest", "--samples", "60", "--quiet")
DATA = ("--data", DIGITS_CARD)


@pytest.fixture(scope="module")
def result() -> Result:
    config = QuantizeConfig(bits=3, rounding="nearest", samples=60)
    return onnx_cbq.quantize(DIGITS_MODEL, DIGITS_CARD, config)


def page_of(path: Path) -> Element:
    return parse(path.read_text(encoding="utf-8"))


def test_the_page_of_a_run_has_its_figures(tmp_path: Path, command: Command) -> None:
    page, figures, again = tmp_path / "p.html", tmp_path / "r.json", tmp_path / "again.html"
    words = (*DATA, *QUICK, "--bits", "3", "--report", page, "--json", figures, "--output", tmp_path / "q.onnx")
    assert command("quantize", DIGITS_MODEL, *words).code == 0
    found = json.loads(figures.read_text())
    made = page_of(page)
    cards = [card.all("b")[0].text for card in made.all("div", "card")]
    assert cards[0] == f"{found['quantized']['top1']:.2f} %"
    assert cards[4] == f"{found['agreement']:.2f} %"
    classes = {row[0]: (row[2], row[3]) for row in made.part("class-table").rows()}
    assert classes == {
        name: (f"{share:.2f}", f"{found['quantized']['per_class'][name]:.2f}")
        for name, share in found["float"]["per_class"].items()
    }
    stored = json.loads(made.part("channels").text)["layers"]
    assert {layer["name"]: list(map(int, layer["bits"])) for layer in stored} == found["bits"]
    losses = found["method"]["layers"]
    assert [row[0] for row in made.part("layers").table("predicted, nats")] == sorted(
        losses, key=lambda name: -losses[name]["plan"]
    )
    assert command("report", figures, "-o", again).code == 0
    assert again.read_bytes() == page.read_bytes()


def test_a_full_report_measures_each_layer_of_the_file(tmp_path: Path, command: Command) -> None:
    page, figures, file = tmp_path / "p.html", tmp_path / "r.json", tmp_path / "q.onnx"
    words = (*DATA, *QUICK, "--method", "uniform", "--bits", "2", "--output", file, "--json", figures)
    assert command("quantize", DIGITS_MODEL, *words, "--report", page, "--report-full").code == 0
    found = json.loads(figures.read_text())
    assert "layers" in found["seconds"]
    measured = onnx_cbq.debug(DIGITS_MODEL, file, DIGITS_CARD)
    assert found["alone"]["ranking"] == [layer.name for layer in measured.ranking]
    for mine, layer in zip(found["alone"]["layers"], measured.layers, strict=True):
        assert mine["divergence"] == pytest.approx(layer.divergence, rel=1e-3)
    rows = page_of(page).part("layers").table("measured, nats")
    assert [row[0] for row in rows] == found["alone"]["ranking"]


def test_layers_that_cannot_be_measured_are_a_note(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is written by then, and its page is wanted all the same."""

    def refuse(*_: object, **__: object) -> None:
        raise ModelError("no layer was found")

    monkeypatch.setattr(job, "debug", refuse)
    page, file = tmp_path / "p.html", tmp_path / "q.onnx"
    words = (*DATA, *QUICK, "--method", "uniform", "--bits", "2", "--output", file)
    assert command("quantize", DIGITS_MODEL, *words, "--report", page, "--report-full").code == 0
    assert file.exists()
    assert "--report-full: layers could not be measured: no layer was found" in page_of(page).part("verdict").text


@pytest.mark.parametrize(
    "words",
    [
        ("--bits", "4", "--clusters", "3"),
        ("--method", "uniform", "--bits", "4"),
        ("--storage", "archive", "--rounding", "compensate"),
        ("--method", "uniform", "--bits", "4", "--activation-bits", "0", "--curve"),
        ("--max-drop", "5"),
        ("--method", "differentiable", "--width-updates", "3"),
        ("--bits", "3", "--codebook", "kmeans"),
    ],
    ids=" ".join,
)
def test_any_result_has_a_page(words: tuple[str, ...], tmp_path: Path, command: Command) -> None:
    page, figures = tmp_path / "p.html", tmp_path / "r.json"
    done = command(
        "quantize", DIGITS_MODEL, *DATA, *QUICK, *words, "--output", tmp_path / "q", "--report", page, "--json", figures
    )
    assert (done.code, done.err) == (0, "")
    found, made = json.loads(figures.read_text()), page_of(page)
    assert len(made.all("section")) == 6
    assert bool(made.part("trade-off").all("svg")) == bool(found["curve"])
    assert ("Asked for:" in made.part("verdict").text) == bool(found["asked"]) == ("--max-drop" in words)
    taken = found["sizes"]["archive"] or found["sizes"]["file"]
    shown = made.all("div", "card")[2].all("b")[0].text
    assert float(shown.split()[0]) == pytest.approx(taken / 1000, rel=0.005)


@pytest.mark.parametrize("name", ["compare", "debug"])
def test_the_other_commands_have_pages_too(
    name: str, tmp_path: Path, command: Command, result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "median_seconds", lambda runs, _: median_seconds(runs, 0))
    result.save(tmp_path / "q.onnx")
    page, figures, again = tmp_path / "p.html", tmp_path / "r.json", tmp_path / "again.html"
    words = (DIGITS_MODEL, tmp_path / "q.onnx", *DATA, "--quiet", "--report", page, "--json", figures)
    assert command(name, *words).code == 0
    assert command("report", figures, "-o", again).code == 0
    assert again.read_bytes() == page.read_bytes()
    assert page_of(page).all("h1")[0].text in ("2 models beside each other", "Which layer hurts")


def test_the_page_lies_beside_the_result(tmp_path: Path, command: Command, result: Result) -> None:
    figures = tmp_path / "r.json"
    figures.write_text(result.to_json(), encoding="utf-8")
    assert command("report", figures).code == 0
    assert page_of(tmp_path / "r.html").all("h1")[0].text == "digits_cnn.onnx at 3.00 bits"


_WRONG: dict[str, Any] = {
    "cut": "no JSON",
    "model": "no JSON",
    "empty": "no JSON",
    "nested": "no JSON",
    "other": "expected what quantize or compare or debug writes with --json, format 1; got that of evaluate",
    "data-free": "got that of quantize --data-free",
    "missing": "damaged, or of another version",
    "text": "damaged, or of another version",
    "folder": "",
    "gone": "",
}


@pytest.mark.parametrize("kind", _WRONG)
def test_what_is_no_result_is_one_line(kind: str, tmp_path: Path, command: Command, result: Result) -> None:
    figures, page = tmp_path / "r.json", tmp_path / "p.html"
    page.write_text("as it was")
    whole = result.to_json()
    found = json.loads(whole)
    if kind == "missing":
        del found["layers"]
    if kind == "text":
        found["quantized"]["top1"] = "98.5"
    contents: dict[str, str | bytes] = {
        "cut": whole[: len(whole) // 2],
        "model": DIGITS_MODEL.read_bytes(),
        "empty": "",
        "nested": "[" * 100_000,
        "other": '{"format": 1, "command": "evaluate"}',
        "missing": json.dumps(found),
        "text": json.dumps(found),
        "data-free": '{"format": 1, "command": "quantize --data-free"}',
    }
    if kind == "folder":
        figures.mkdir()
    elif kind != "gone":
        content = contents[kind]
        figures.write_bytes(content if isinstance(content, bytes) else content.encode())
    done = command("report", figures, "-o", page)
    assert (done.code, done.out) == (1, "")
    assert len(done.err.splitlines()) == 1
    assert str(figures) in done.err
    assert _WRONG[kind] in done.err
    assert page.read_text() == "as it was"


def test_a_page_of_data_free_is_refused(tmp_path: Path, command: Command) -> None:
    done = command("quantize", DIGITS_MODEL, "--data-free", "--json", tmp_path / "r.json", "--output", tmp_path / "q")
    assert done.code == 0
    done = command("report", tmp_path / "r.json")
    assert done.code == 1
    assert "got that of quantize --data-free" in done.err


def test_a_page_never_replaces_what_is_read(tmp_path: Path, command: Command, result: Result) -> None:
    figures, model = tmp_path / "r.json", tmp_path / "m.onnx"
    figures.write_text(result.to_json(), encoding="utf-8")
    shutil.copy(DIGITS_MODEL, model)
    for words in (
        ("report", figures, "-o", figures),
        ("quantize", model, *DATA, *QUICK, "--report", model, "--output", tmp_path / "q.onnx"),
        ("quantize", model, *DATA, *QUICK, "--report", tmp_path / "q.onnx", "--output", tmp_path / "q.onnx"),
        ("compare", model, model, *DATA, "--report", model),
        ("debug", DIGITS_MODEL, model, *DATA, "--report", model),
    ):
        done = command(*words)
        assert done.code == 1, words
        assert "is also another file of this command" in done.err
    assert model.read_bytes() == DIGITS_MODEL.read_bytes()
    assert json.loads(figures.read_text())["command"] == "quantize"


def test_a_page_that_cannot_be_written_is_found_out_before_the_work(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, result: Result
) -> None:
    monkeypatch.setattr(job, "quantize", None)
    page = tmp_path / "no" / "p.html"
    done = command("quantize", DIGITS_MODEL, *DATA, "--report", page, "--output", tmp_path / "q.onnx")
    assert done.code == 1
    assert "does not exist; create it first" in done.err
    (tmp_path / "r.json").write_text(result.to_json(), encoding="utf-8")
    done = command("report", tmp_path / "r.json", "-o", page)
    assert (done.code, len(done.err.splitlines())) == (1, 1)
    with pytest.raises(OutputError, match="does not exist; create it first"):
        result.report(page)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((*DATA, "--report-full"), "only for --report; leave out --report-full"),
        (("--data-free", "--report", "p.html"), "leave out --report"),
        (("--data-free", "--report", "p.html", "--report-full"), "leave out --report, --report-full"),
    ],
)
def test_what_changes_nothing_is_refused(words: tuple[object, ...], said: str, command: Command) -> None:
    done = command("quantize", DIGITS_MODEL, *words)
    assert done.code == 2
    assert said in " ".join(done.err.replace("│", " ").split())


def test_a_result_shows_itself_in_a_notebook(result: Result, tmp_path: Path) -> None:
    """In a frame of its own: neither the notebook's style nor its scripts meet the page's."""
    shown = result._repr_html_()
    (frame,) = (element for element in parse(shown).everything() if element.name == "iframe")
    assert frame.children == []
    result.report(tmp_path / "p.html")
    assert frame.attributes["srcdoc"] == (tmp_path / "p.html").read_text(encoding="utf-8")
    assert shown.count("<") == 2
    assert html.escape("<!doctype html>") in shown


def test_a_page_takes_what_debug_found(result: Result, tmp_path: Path) -> None:
    result.save(tmp_path / "q.onnx")
    alone = onnx_cbq.debug(DIGITS_MODEL, tmp_path / "q.onnx", DIGITS_CARD)
    result.report(tmp_path / "p.html", alone=alone)
    rows = page_of(tmp_path / "p.html").part("layers").table("measured, nats")
    assert [row[0] for row in rows] == [layer.name for layer in alone.ranking]
    assert result.alone is None
    alone.report(tmp_path / "d.html")
    assert page_of(tmp_path / "d.html").all("h1")[0].text == "Which layer hurts"
