"""Cards as text: whatever a source and classes are called, what is read is what was written."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnx_cbq.calibration.card import Card, load_card
from onnx_cbq.calibration.written import card_text
from onnx_cbq.errors import OutputError

NAMES = ('a "b" c', "back\\slash", "tab\tand\nline", "ümlaut 猫", "\x01\x7f", "'''", "# no comment", "[x]", "")


@pytest.mark.parametrize("name", [name for name in NAMES if name])
def test_names_come_back(tmp_path: Path, name: str) -> None:
    """A quote or a line break in a name of a folder must not become TOML."""
    card = Card(tmp_path / name, classes=NAMES)
    (tmp_path / "card.toml").write_text(card_text(card, tmp_path, [name]), encoding="utf-8")
    assert load_card(tmp_path / "card.toml") == card


def test_the_source_is_relative_to_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A card and its data can be moved together."""
    (tmp_path / "cards").mkdir()
    monkeypatch.chdir(tmp_path)
    text = card_text(Card(Path("data/a.npz")), Path("cards"))
    assert text == 'source = "../data/a.npz"\n'


def test_what_is_the_default_is_not_written(tmp_path: Path) -> None:
    assert card_text(Card(tmp_path / "a", antialias=False, resize=(8, 9)), tmp_path) == (
        'source = "a"\nresize = [8, 9]\nantialias = false\n'
    )


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no text"):
        card_text(Card(tmp_path / "\udce9"), tmp_path)
