"""What stands in front of the commands: versions, the log, and how soon the first answer comes."""

from __future__ import annotations

import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest

from onnx_cbq.cli.main import COMMANDS, load
from onnx_cbq.system.processor import processor_kind
from tests.command import Command
from tests.conftest import DIGITS_CARD, DIGITS_MODEL

HEAVY = ("numpy", "onnx", "onnxruntime", "scipy", "torch")


def test_versions_name_what_decides_a_result(command: Command) -> None:
    finished = command("--version")
    assert (finished.code, finished.err) == (0, "")
    lines = finished.out.splitlines()
    packages = ("onnx-cbq", "onnx", "onnxruntime", "numpy", "torch")
    assert lines[:-1] == [f"{package} {version(package)}" for package in packages]
    assert lines[-1] == f"processor {processor_kind()}"


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_an_answer_needs_no_library_that_computes(option: str) -> None:
    """They take most of a second to import."""
    code = (
        "import sys\nfrom onnx_cbq.cli.main import main\n"
        f"sys.argv = ['onnx-cbq', {option!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.splitlines()[-1] == "[]"


def test_an_answer_comes_as_soon_as_a_few_bare_interpreters() -> None:
    """A ratio, since machines differ: 0.15 s beside 0.02 s where it was written."""

    def seconds(*command: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, *command], capture_output=True, check=True)  # noqa: S603
        return time.perf_counter() - start

    bare = min(seconds("-c", "import typer, rich.console") for _ in range(5))
    assert min(seconds("-m", "onnx_cbq", "--version") for _ in range(5)) < 3 * bare


def test_the_list_says_what_each_command_says(command: Command) -> None:
    """The list is made without importing the commands, so it could tell something else."""
    for entry in COMMANDS:
        full = " ".join((load(entry).help or "").split())
        assert full.startswith(entry.about), entry.name
    assert command("--help").code == 0


def test_the_log_tells_stages_and_notes(tmp_path: Path, command: Command) -> None:
    told = ("--log-level", "info", "--log-file", tmp_path / "log")
    quick = ("--data", DIGITS_CARD, "--method", "uniform", "--rounding", "nearest")
    finished = command(*told, "quantize", DIGITS_MODEL, *quick, "--output", tmp_path / "q.onnx")
    assert (finished.code, finished.err) == (0, "")
    log = (tmp_path / "log").read_text()
    assert "INFO verify: " in log
    assert "INFO note: only 500 of the 1000 samples wanted" in log


def test_a_log_that_cannot_be_written_is_an_error_of_usage(tmp_path: Path, command: Command) -> None:
    finished = command("--log-file", tmp_path / "none" / "log", "inspect", DIGITS_MODEL)
    assert finished.code == 2
    assert command("--log-level", "loud", "inspect", DIGITS_MODEL).code == 2


def test_an_unknown_command_names_the_nearest(command: Command) -> None:
    finished = command("quantise", DIGITS_MODEL)
    assert finished.code == 2
    assert "quantize" in finished.err


def test_a_log_never_goes_into_another_file(tmp_path: Path, command: Command) -> None:
    """It is appended to, so a model that it names would be spoiled."""
    model = tmp_path / "m.onnx"
    model.write_bytes(DIGITS_MODEL.read_bytes())
    for log in (model, tmp_path / "q.onnx"):
        told = ("--log-file", log, "quantize", model, "--data-free", "--output", tmp_path / "q.onnx")
        assert command(*told).code == 2
    (tmp_path / "card.toml").write_text("[samples]")
    assert command("--log-file", tmp_path / "card.toml", "inspect", model).code == 2
    assert model.read_bytes() == DIGITS_MODEL.read_bytes()
    for _ in range(2):
        assert command("--log-level", "debug", "--log-file", tmp_path / "log", "inspect", model).code == 0
