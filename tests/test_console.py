"""What a finished command prints cannot undo it: names are text, and a stream that takes nothing is one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnx_cbq
from onnx_cbq.quantize import fit
from tests.command import Command
from tests.conftest import DIGITS_CARD, DIGITS_MODEL
from tests.graphs import make_model, node

NAMES = ["[/red]", "[bold]w", ":smile:", "a[0]"]


def model_of_a_layer(name: str, path: Path) -> Path:
    constants = {name: np.ones((4, 3), np.float32)}
    onnx.save(make_model([node("MatMul", f"x {name}", "y")], {"x": ["N", 4]}, ["y"], constants), path)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_names_are_shown_as_they_are(tmp_path: Path, command: Command, name: str) -> None:
    path = model_of_a_layer(name, tmp_path / "m.onnx")
    for arguments in (("inspect", path), ("inspect", path, "--weights"), ("quantize", path, "--data-free")):
        done = command(*arguments)
        assert done.code == 0, done
        assert name in done.out


@pytest.mark.parametrize("name", NAMES)
def test_names_of_classes_are_shown_as_they_are(tmp_path: Path, command: Command, name: str) -> None:
    card = tmp_path / "card.toml"
    source = DIGITS_CARD.with_name("digits.npz")
    classes = [name, *"123456789"]
    card.write_text(f'source = "{source}"\nlayout = "NHWC"\nscale = 0.0625\nclasses = {classes!r}\n')
    done = command("evaluate", DIGITS_MODEL, "--data", card)
    assert (done.code, name in done.out) == (0, True), done


def run(*arguments: object, **settings: object) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONIOENCODING": str(settings.pop("encoding", "utf-8"))}
    command = [sys.executable, "-m", "onnx_cbq", *map(str, arguments)]
    return subprocess.run(command, env=environment, stderr=subprocess.PIPE, check=False, **settings)  # type: ignore[call-overload, no-any-return]  # noqa: S603


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_stdout_is_one_line_and_the_file_is_there(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = run("quantize", DIGITS_MODEL, "--data-free", "--output", tmp_path / "q.onnx", stdout=full)
    assert done.returncode == 1
    expected = b"onnx-cbq: stdout: cannot be written: No space left on device; every file of this command is complete\n"
    assert done.stderr == expected
    assert onnx.load(tmp_path / "q.onnx").graph.node


def test_a_reader_that_has_gone_is_no_error(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = run("quantize", DIGITS_MODEL, "--data-free", "--output", tmp_path / "q.onnx", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
    assert onnx.load(tmp_path / "q.onnx").graph.node


def test_an_encoding_without_the_characters_is_no_error(tmp_path: Path) -> None:
    path = model_of_a_layer("größe", tmp_path / "ü.onnx")
    done = run(
        "quantize", path, "--data-free", "--output", tmp_path / "ö.onnx", encoding="ascii", stdout=subprocess.PIPE
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"gr\xf6\xdfe" in done.stdout
    assert (tmp_path / "ö.onnx").exists()


def test_what_nobody_foresaw_is_one_line_too(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr("onnx_cbq.jobs.inspect.inspect", fail)
    done = command("inspect", DIGITS_MODEL)
    assert done.code == 1
    assert done.err.startswith("onnx-cbq: unforeseen RuntimeError at test_console.py:")
    assert done.err.count("\n") == 1


def test_a_folder_of_the_same_name_does_not_hide_what_is_public() -> None:
    assert fit.__name__ == "onnx_cbq.quantize.fit"
    assert callable(onnx_cbq.quantize)


def test_all_that_is_public_is_there() -> None:
    """It is imported when it is asked for; a name that nobody asks for could be wrong unseen."""
    for name in onnx_cbq.__all__:
        assert getattr(onnx_cbq, name).__name__ == name
    assert set(onnx_cbq.__all__) <= set(dir(onnx_cbq))
    with pytest.raises(AttributeError, match="has no attribute 'missing'"):
        onnx_cbq.missing  # noqa: B018


def test_no_library_keeps_records_of_what_is_run(tmp_path: Path) -> None:
    """onnxruntime keeps events in the home folder from 1.32 on, and warns on stderr where it cannot."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "onnx_cbq", "inspect", str(DIGITS_MODEL)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)  # noqa: S603
    assert done.stderr == ""
    assert list(tmp_path.rglob("*")) == []
