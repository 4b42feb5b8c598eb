"""The command `cache`, and how `quantize` comes to its folder."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
import typer

from onnx_cbq.cli.cache import read_size
from onnx_cbq.system.store import Entry, Store
from tests.command import Command
from tests.conftest import DIGITS_CARD, DIGITS_MODEL

KEYS = [f"{i:02x}" + "0" * 62 for i in range(3)]
QUICK = ("--samples", "40", "--method", "uniform", "--activation-bits", "0", "--quiet")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three entries: now, two days and four days old."""
    store = Store(tmp_path / "cache")
    for days, key in enumerate(KEYS):
        store.write(
            key, "tables" if days else "scores", Entry({"x": np.random.default_rng(0).random(1000 * (1 + days))})
        )
        os.utime(store.path(key), (time.time() - 2 * days * 86_400,) * 2)
    return store


def left(store: Store) -> list[str]:
    return sorted(entry.path.stem for entry in store.entries())


def test_kinds_are_listed_with_sizes_and_ages(command: Command, store: Store) -> None:
    done = command("cache", store.folder)
    assert done.code == 0
    lines = [line.split() for line in done.out.splitlines()]
    assert lines[1] == ["tables", "2", "40.4", "kB", "2", "d", "ago", "4", "d", "ago"]
    assert lines[2] == ["scores", "1", "8.2", "kB", "just", "now", "just", "now"]
    assert done.out.splitlines()[-1] == f"{store.folder}: 3 entries, 48.6 kB"
    entries = command("cache", store.folder, "--entries").out
    assert all(key[:12] in entries for key in KEYS)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (("--prune", "3"), KEYS[:2]),
        (("--prune", "1"), KEYS[:1]),
        (("--largest", "25k"), KEYS[:2]),
        (("--prune", "3", "--largest", "8.5kB"), KEYS[:1]),
        (("--largest", "0"), []),
        (("--clear",), []),
    ],
)
def test_room_is_made(command: Command, store: Store, given: tuple[str, ...], kept: list[str]) -> None:
    other = store.folder / "mine.txt"
    other.write_text("mine", encoding="utf-8")
    done = command("cache", store.folder, *given)
    assert done.code == 0
    assert left(store) == kept
    assert "removed: " in done.out
    assert other.read_text(encoding="utf-8") == "mine"


def test_a_folder_that_is_not_there_is_empty(command: Command, tmp_path: Path) -> None:
    done = command("cache", tmp_path / "none", "--clear")
    assert (done.code, done.out) == (0, f"{tmp_path / 'none'}: 0 entries, 0 B\n")
    assert not (tmp_path / "none").exists()


def test_what_contradicts_itself_is_refused(command: Command, store: Store) -> None:
    assert command("cache", store.folder, "--clear", "--prune", "3").code == 2
    assert command("cache", store.folder, "--largest", "many").code == 2
    assert left(store) == KEYS


def test_what_cannot_be_removed_is_an_error_of_one_line(
    command: Command, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unlink(self: Path, **_: bool) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "unlink", unlink)
    done = command("cache", store.folder, "--clear")
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert "Permission denied" in done.err


def test_sizes_are_read_as_people_write_them() -> None:
    assert [read_size(text) for text in ("12", "1.5k", "2MB", "3 GB", "0")] == [12, 1500, 2e6, 3e9, 0]
    for text in ("-1", "1e9", "2X", "", "G"):
        with pytest.raises(typer.BadParameter):
            read_size(text)


def test_quantize_keeps_evidence_where_it_is_told_and_nowhere_else(command: Command, tmp_path: Path) -> None:
    """A folder that nobody asked for would fill a disk in silence."""
    folder, output = tmp_path / "here", tmp_path / "out.onnx"
    given = ("quantize", DIGITS_MODEL, "--data", DIGITS_CARD, "-o", output, *QUICK)
    assert command(*given).code == 0
    assert sorted(tmp_path.iterdir()) == [output]
    assert command(*given, "--cache", folder).code == 0
    assert list(Store(folder).entries())
    assert sorted(tmp_path.iterdir()) == [folder, output]


def test_without_samples_there_is_nothing_to_keep(command: Command, tmp_path: Path) -> None:
    ignored = command("quantize", DIGITS_MODEL, "--data-free", "--cache", tmp_path / "c")
    assert ignored.code == 2
    assert "--cache" in ignored.err
