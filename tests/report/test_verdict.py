"""The verdict in front of a result, and how many classes are listed behind it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.command import Command, Finished
from tests.conftest import DIGITS_CARD, DIGITS_MODEL
from tests.graphs import make_model, node

CLASSES = 14


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A card, beside a model of 14 classes that errs now and then."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((8, CLASSES)).astype(np.float32)
    x = random.standard_normal((700, 8)).astype(np.float32)
    y = (x @ weight + random.standard_normal((700, CLASSES))).argmax(axis=1)
    onnx.save(make_model([node("MatMul", "x w")], {"x": ["N", 8]}, ["y"], {"w": weight}), tmp_path / "m.onnx")
    np.savez(tmp_path / "a.npz", x=x, y=y)
    (tmp_path / "card.toml").write_text('source = "a.npz"')
    return tmp_path / "card.toml"


def quantized(command: Command, card: Path, model: Path, *options: object) -> Finished:
    made = card.with_name("q.onnx")
    done = command("quantize", model, "--data", card, "-o", made, "--json", card.with_name("q.json"), *options)
    assert (done.code, done.err) == (0, "")
    return done


def listed(printed: str) -> list[str]:
    """The classes of the table, in order."""
    return re.findall(r"^(\d+) +\d+ +[\d.]+ +", printed, re.MULTILINE)


def test_it_says_what_the_figures_say(wide: Path, command: Command) -> None:
    done = quantized(command, wide, wide.with_name("m.onnx"), "--bits", "2", "--method", "uniform")
    found = json.loads(wide.with_name("q.json").read_text())
    before, after = found["float"], found["quantized"]
    first, accuracy, worst, shares = done.out.splitlines()[:4]
    assert first == f"{wide.with_name('q.onnx')}: 2.000 bits per weight"
    error = 100 * np.sqrt((1 - found["agreement"] / 100) / after["samples"])
    change = after["top1"] - before["top1"]
    figures = f"{after['top1']:.2f} %, float {before['top1']:.2f}: {change:+.2f} points"
    assert accuracy == f"accuracy {figures} (standard error at most {error:.2f})"
    assert found["agreement"] < 100
    name = after["worst_class"]
    assert worst == f"worst class {name}: {after['per_class'][name]:.2f} %, float {before['per_class'][name]:.2f}"
    assert shares.startswith(f"{100 * after['bytes'] / before['bytes']:.0f} % of the bytes, ")


@pytest.mark.parametrize(("option", "value"), [("--max-drop", "30"), ("--bytes", "3000"), ("--max-class-drop", "60")])
def test_a_limit_is_said_in_front(wide: Path, command: Command, option: str, value: str) -> None:
    packed = ("--storage", "packed") if option == "--bytes" else ()
    done = quantized(command, wide, wide.with_name("m.onnx"), option, value, *packed)
    assert any(line.startswith(f"asked for {option} ") for line in done.out.splitlines()[:7])


def test_bytes_are_those_of_the_archive(tmp_path: Path, command: Command) -> None:
    made = tmp_path / "q.cbqz"
    options = ("--data", DIGITS_CARD, "--storage", "archive", "--samples", "60", "-o", made)
    done = command("quantize", DIGITS_MODEL, *options)
    share = 100 * made.stat().st_size / DIGITS_MODEL.stat().st_size
    assert f"\n{share:.0f} % of the bytes, " in done.out


def test_of_many_classes_ten_are_listed_and_all_if_asked_for(wide: Path, command: Command) -> None:
    """Those that lost most first; a class that is lost must not hide among a thousand."""
    few = quantized(command, wide, wide.with_name("m.onnx"), "--bits", "2", "--method", "uniform").out
    found = json.loads(wide.with_name("q.json").read_text())
    sides = [found[side]["per_class"] for side in ("float", "quantized")]
    order = sorted(sides[0], key=lambda name: (sides[1][name] - sides[0][name], int(name)))
    assert listed(few) == order[:10]
    assert f"{CLASSES - 10} classes that lost less: --all-classes shows them" in few
    options = ("--bits", "2", "--method", "uniform", "--all-classes")
    assert listed(quantized(command, wide, wide.with_name("m.onnx"), *options).out) == list(map(str, range(CLASSES)))
    for more in ((), ("--all-classes",)):
        shown = command("evaluate", wide.with_name("m.onnx"), "--data", wide, *more).out
        assert len(re.findall(r"^  \d+ +[\d.]+$", shown, re.MULTILINE)) == (CLASSES if more else 10)
