"""The command `cache`, and how `quantize` comes to its folder."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

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
    assert (done.code, done.out) == (0, f"{tmp_path / 'none'}: no such folder; nothing is kept there yet\n")
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    refused = command("cache", tmp_path / "file", "--clear")
    assert (refused.code, refused.err.count("\n")) == (1, 1)


def test_the_folder_of_the_user_is_listed_where_none_is_named(
    command: Command, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONNX_CBQ_CACHE", str(store.folder))
    assert command("cache").out == command("cache", store.folder).out
    monkeypatch.setenv("ONNX_CBQ_CACHE", "off")
    off = command("cache", "--clear")
    assert (off.code, off.err.count("\n")) == (1, 1)
    assert left(store) == KEYS


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


def test_quantize_keeps_evidence_where_it_is_told(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the user's folder, in one that is named, or nowhere; a file with settings says it too, and is overruled."""
    mine, named, output = tmp_path / "user's", tmp_path / "named", tmp_path / "out.onnx"
    settings = tmp_path / "settings.toml"
    monkeypatch.setenv("ONNX_CBQ_CACHE", str(mine))
    given = ("quantize", DIGITS_MODEL, "--data", DIGITS_CARD, "-o", output, *QUICK)
    assert command(*given, "--no-cache").code == 0
    settings.write_text("no-cache = true\n", encoding="utf-8")
    assert command(*given, "--config", settings).code == 0
    settings.write_text(f"cache = {str(mine)!r}\n", encoding="utf-8")
    assert command(*given, "--config", settings, "--no-cache").code == 0
    monkeypatch.setenv("ONNX_CBQ_CACHE", "off")
    assert command(*given).code == 0
    monkeypatch.setenv("ONNX_CBQ_CACHE", str(mine))
    assert sorted(tmp_path.iterdir()) == [output, settings]
    assert command(*given, "--cache", named).code == 0
    assert list(Store(named).entries())
    assert not mine.exists()
    assert command(*given).code == 0
    assert {entry.path.name for entry in Store(mine).entries()} == {e.path.name for e in Store(named).entries()}


def test_what_contradicts_the_cache_is_refused(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("quantize", DIGITS_MODEL, "--data", DIGITS_CARD, *QUICK, "-o", tmp_path / "out.onnx")
    assert command(*given, "--cache", tmp_path / "c", "--no-cache").code == 2
    monkeypatch.setenv("ONNX_CBQ_CACHE_SIZE", "much")
    refused = command(*given, "--cache", tmp_path / "c")
    assert (refused.code, refused.err.count("\n")) == (1, 1)
    assert "ONNX_CBQ_CACHE_SIZE: expected a size such as 500M or 2G, got much" in refused.err
    assert command(*given, "--no-cache").code == 0


def test_without_samples_there_is_nothing_to_keep(command: Command, tmp_path: Path) -> None:
    ignored = command("quantize", DIGITS_MODEL, "--data-free", "--cache", tmp_path / "c")
    assert ignored.code == 2
    assert "--cache" in ignored.err
    assert command("quantize", DIGITS_MODEL, "--data-free", "--no-cache").code == 2
