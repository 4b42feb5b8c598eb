"""The command `card`: what it writes is what it measured, and nothing that is there is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnx_cbq.calibration.card import load_card
from tests.command import Command
from tests.conftest import DIGITS_CARD, DIGITS_MODEL

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The digits, as the current folder."""
    shutil.copy(DIGITS_CARD.with_suffix(".npz"), tmp_path / "digits.npz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def images(folder: Path) -> Path:
    """The same as images, in folders by name."""
    with np.load(folder / "digits.npz") as file:
        for i, (image, label) in enumerate(zip(file["x"], file["y"], strict=True)):
            path = folder / "images" / NAMES[label]
            path.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0]).save(path / f"{i:03}.png")
    (folder / "names.txt").write_text("\n".join(NAMES) + "\n\n")
    return folder / "images"


def test_the_card_is_the_one_that_was_measured(folder: Path, command: Command) -> None:
    """On all samples its accuracy is that of evaluate, which prepares them on its own."""
    (folder / "cards").mkdir()
    wanted = ("--source", "digits.npz", "--samples", 500, "--output", "cards/first.toml", "--json", "card.json")
    done = command("card", DIGITS_MODEL, *wanted)
    assert (done.code, done.err) == (0, "")
    assert "best: 0..1 of 0..16: 99.2 % right of 500 samples" in done.out
    found = load_card(Path("cards/first.toml"))
    assert found == load_card(DIGITS_CARD, found.source)
    assert command("evaluate", DIGITS_MODEL, "--data", "cards/first.toml", "--json", "e.json", "--quiet").code == 0
    tried = json.loads(Path("card.json").read_text())["tried"]
    assert tried[0]["accuracy"] == pytest.approx(json.loads(Path("e.json").read_text())["top1"])
    said = Path("cards/first.toml").read_text()
    assert "99.2 % right of 500 samples, mean confidence" in said
    assert "# a tie, which the loss decided: 500 samples do not tell" in said
    assert "source = '../digits.npz'".replace("'", '"') in said


def test_without_an_output_the_card_is_printed(folder: Path, command: Command) -> None:
    done = command("card", DIGITS_MODEL, "--source", "digits.npz", "--samples", 60, "--quiet")
    assert (done.code, done.err) == (0, "")
    Path("printed.toml").write_text(done.out)
    assert load_card(Path("printed.toml")) == load_card(DIGITS_CARD, Path("digits.npz"))
    assert sorted(path.name for path in folder.iterdir()) == ["digits.npz", "printed.toml"]


def test_a_card_that_is_there_stays_unless_it_is_to_be_replaced(folder: Path, command: Command) -> None:
    """It was edited by hand."""
    (folder / "card.toml").write_text("# mine\n")
    wanted = ("card", DIGITS_MODEL, "--source", "digits.npz", "--samples", 60, "-o", "card.toml")
    done = command(*wanted)
    assert (done.code, done.out) == (1, "")
    assert done.err.strip() == (
        "onnx-cbq: card.toml: exists, and cards are edited by hand; give another name, or --overwrite"
    )
    assert (folder / "card.toml").read_text() == "# mine\n"
    assert command(*wanted, "--overwrite").code == 0
    assert load_card(Path("card.toml")).scale == 1 / 16


@pytest.mark.parametrize("output", ["digits.npz", "images/one/x.png", "names.txt", "model.onnx"])
@pytest.mark.parametrize("option", ["--output", "--json"])
def test_what_is_read_is_never_replaced(images: Path, command: Command, output: str, option: str) -> None:
    shutil.copy(DIGITS_MODEL, "model.onnx")
    shutil.copy(next(images.glob("one/*.png")), "images/one/x.png")
    before = Path(output).read_bytes()
    source = "digits.npz" if output == "digits.npz" else "images"
    wanted = ("--source", source, "--classes", "names.txt", "--overwrite", option, output)
    done = command("card", "model.onnx", *wanted)
    assert (done.code, done.out) == (1, "")
    assert "is also another file of this command" in done.err
    assert Path(output).read_bytes() == before


@pytest.mark.usefixtures("images")
def test_another_order_of_the_classes_ends_with_3(command: Command) -> None:
    wanted = ("card", DIGITS_MODEL, "--source", "images", "-o", "card.toml", "--json", "card.json")
    done = command(*wanted)
    assert done.code == 3
    assert done.err.count("\n") == 1
    assert "another order than the model's classes: 'eight' (label 0) is taken for class 8" in done.err
    assert "give their names in the order of its outputs with --classes FILE" in done.err
    assert "right, %" in done.out
    assert not Path("card.toml").exists()
    assert "another order" in json.loads(Path("card.json").read_text())["refusal"]
    assert command(*wanted, "--classes", "names.txt").code == 0
    found = load_card(Path("card.toml"))
    assert found.classes == tuple(NAMES)
    assert command("evaluate", DIGITS_MODEL, "--data", "card.toml", "--json", "e.json").code == 0
    assert json.loads(Path("e.json").read_text())["top1"] > 95


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (("--source", "none.npz"), 1, "none.npz: no such file or folder of samples"),
        (("--source", "digits.npz", "--samples", 10), 1, "--samples: expected 20 or more, got 10"),
        (("--source", "digits.npz", "--size", 0), 1, "--size: expected a whole number above 0, got 0"),
        (("--source", "digits.npz", "--classes", "none"), 1, "none: cannot be read: No such file or directory"),
        (("--source", "digits.npz", "--classes", "digits.npz"), 1, "digits.npz: is no text"),
        (("--source", "digits.npz", "--classes", "twice"), 1, "twice: expected a different name on each line"),
        (("--source", "digits.npz", "--classes", "two"), 1, "2 class names, but the model has 10 classes"),
        (("--source", "digits.npz", "--logits", "z"), 1, "--logits 'z': the model has no such output"),
        ((), 2, "--source"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(
    folder: Path, command: Command, words: tuple[object, ...], code: int, expected: str
) -> None:
    (folder / "twice").write_text("a\na\n")
    (folder / "two").write_text("a\nb\n")
    done = command("card", DIGITS_MODEL, *words)
    assert (done.code, done.out) == (code, "")
    assert expected in done.err
    assert done.err.count("\n") == 1 or code == 2
