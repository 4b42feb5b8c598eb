"""`archive` and `restore` on the command line: what they print, and that nothing is lost or left behind."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from onnx_cbq.storage import archive as archiving
from tests.command import Command
from tests.conftest import DIGITS_MODEL
from tests.storage.test_archive import small_model

PRECIOUS = b"the only copy of something"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model, its archive, and files in the places that the commands write to."""
    onnx.save(small_model(), tmp_path / "m.onnx")
    archiving.archive(tmp_path / "m.onnx").save(tmp_path / "a.cbqz")
    for name in ("m.cbqz", "a.onnx"):
        (tmp_path / name).write_bytes(PRECIOUS)
    return tmp_path


def assert_nothing_lost(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["a.cbqz", "a.onnx", "m.cbqz", "m.onnx"]
    assert (folder / "m.cbqz").read_bytes() == (folder / "a.onnx").read_bytes() == PRECIOUS


@pytest.mark.parametrize("coder", ["ans", "huffman"])
def test_there_and_back(command: Command, folder: Path, coder: str) -> None:
    made = command("archive", folder / "m.onnx", "--coder", coder, "--json", folder / "a.json")
    assert (made.code, made.err) == (0, "")
    figures = json.loads((folder / "a.json").read_text())
    assert figures["archive_bytes"] == (folder / "m.cbqz").stat().st_size
    for figure in ("model_bytes", "archive_bytes", "code_bytes", "number_bytes", "parameter_bytes", "frame_bytes"):
        assert f"{figures[figure]:,}" in made.out
    assert f"{figures['entropy']:.3f} bits" in made.out
    assert f"coded by {coder}" in made.out
    back = command("restore", folder / "m.cbqz", "-o", folder / "b.onnx")
    assert (back.code, back.err) == (0, "")
    assert back.out == f"{folder / 'b.onnx'}: {figures['model_bytes']:,} bytes, SHA-256 as archived\n"
    assert (folder / "b.onnx").read_bytes() == (folder / "m.onnx").read_bytes()


def test_quiet_prints_nothing(command: Command, folder: Path) -> None:
    for arguments in (("archive", folder / "m.onnx", "-o", folder / "m.cbqz"), ("restore", folder / "m.cbqz")):
        finished = command(*arguments, "--quiet")
        assert (finished.code, finished.out, finished.err) == (0, "", "")
    assert (folder / "m.cbqz").read_bytes() == (folder / "a.cbqz").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("archive", "none.onnx"), "none.onnx: no such file"),
        (("archive", DIGITS_MODEL, "-o", "m.cbqz"), "onnx-cbq did not make this model"),
        (("archive", "a.cbqz", "-o", "m.cbqz"), "a.cbqz: not an ONNX model"),
        (("archive", "m.onnx", "-o", "m.onnx"), "is also another file of this command"),
        (("archive", "m.onnx", "-o", "none/m.cbqz"), "the folder 'none' does not exist"),
        (("archive", "m.onnx", "--coder", "zip"), "--coder: expected ans or huffman, got 'zip'"),
        (("restore", "none.cbqz"), "none.cbqz: no such file"),
        (("restore", "m.onnx", "-o", "a.onnx"), "m.onnx: cannot be restored: it does not begin with CBQZ"),
        (("restore", "m.cbqz", "-o", "m.cbqz"), "is also another file of this command"),
    ],
)
def test_mistakes_are_explained(
    command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...], expected: str
) -> None:
    monkeypatch.chdir(folder)
    finished = command(*arguments)
    assert (finished.code, finished.out) == (1, "")
    assert expected in finished.err
    assert finished.err.count("\n") == 1
    assert_nothing_lost(folder)


@pytest.mark.parametrize("arguments", [("archive", "m.onnx"), ("restore", "a.cbqz")], ids=["archive", "restore"])
@pytest.mark.parametrize("function", ["os.fsync", "os.replace"])
@pytest.mark.parametrize(
    ("failure", "code", "expected"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 1, "No space left on device; nothing was left behind"),
        (KeyboardInterrupt(), 130, "stopped; no unfinished file was left behind"),
    ],
    ids=["disk-full", "ctrl-c"],
)
def test_a_full_disk_and_ctrl_c_leave_nothing(
    command: Command,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, str],
    function: str,
    failure: BaseException,
    code: int,
    expected: str,
) -> None:
    monkeypatch.setattr(function, raiser(failure))
    finished = command(arguments[0], folder / arguments[1])
    assert (finished.code, finished.out) == (code, "")
    assert expected in finished.err
    assert_nothing_lost(folder)


@pytest.mark.parametrize(("name", "arguments"), [("fit", ("archive", "m.onnx")), ("unpack", ("restore", "a.cbqz"))])
def test_ctrl_c_at_work(
    command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, arguments: tuple[str, str]
) -> None:
    monkeypatch.setattr(archiving, name, raiser(KeyboardInterrupt()))
    finished = command(arguments[0], folder / arguments[1])
    assert finished.code == 130
    assert_nothing_lost(folder)


def raiser(failure: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise failure

    return fail
