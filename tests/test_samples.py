"""The samples run as a user runs them, in a copy so that the checkout stays clean."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.command import Command
from tests.conftest import ROOT


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("samples", "calibration"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.quantized.onnx", "__pycache__"))
    return tmp_path


def run(script: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)  # noqa: S603


def test_a_model_is_quantized_in_python_and_then_runs_without_the_package(copy: Path) -> None:
    made = run(copy / "samples" / "02_quantize_in_python.py")
    assert made.returncode == 0, made.stderr
    assert made.stdout.count("class 9:") == 2
    assert (copy / "samples" / "digits_cnn.quantized.onnx").exists()
    used = run(copy / "samples" / "03_run_quantized.py")
    assert used.returncode == 0, used.stderr
    hits, total = (int(word) for word in used.stdout.split()[:3:2])
    assert total == 297
    assert hits >= 0.9 * total


def test_weights_only_are_the_same_in_every_way(copy: Path) -> None:
    used = run(copy / "samples" / "04_weights_only.py")
    assert used.returncode == 0, used.stderr
    *lines, last = used.stdout.splitlines()
    assert [line.split(":")[0].split(",")[0] for line in lines] == [
        "float model", "--storage int8", "the same with session.disable_quant_qdq", "--storage packed",
    ]  # fmt: skip
    assert float(last.split()[-1]) < 1e-4


def test_running_before_quantizing_says_what_to_do(copy: Path) -> None:
    used = run(copy / "samples" / "03_run_quantized.py")
    assert used.returncode == 1
    assert used.stderr == "digits_cnn.quantized.onnx is missing; run samples/02_quantize_in_python.py first\n"


def test_every_script_is_listed() -> None:
    listing = (ROOT / "samples" / "README.md").read_text()
    assert all(f"`{script.name}`" in listing for script in (ROOT / "samples").glob("*.py"))


def test_the_notebook_runs_to_its_end(copy: Path) -> None:
    """With its pictures: one per plot, and the accuracy that its last cell asks for."""
    path = copy / "samples" / "from_float_to_deployed.ipynb"
    notebook = nbformat.read(path, as_version=4)
    told = {"metadata": {"path": str(path.parent)}}
    # A process of its own, since the kernel's libraries warn of what is not ours.
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=told).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4


def test_the_gate_passes_on_the_sample_and_fails_where_a_class_drops(
    copy: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its commands as they stand in the workflow; the same gate at bits that cannot do exits with 3."""
    monkeypatch.chdir(copy)
    text = (copy / "samples" / "ci_gate.yml").read_text().replace("\\\n", " ")
    lines = [shlex.split(line) for line in re.findall(r"^.*\bonnx-cbq ((?:quantize|check|evaluate) .*)$", text, re.M)]
    assert [line[0] for line in lines] == ["quantize", "check", "evaluate"]
    assert [command(*line).code for line in lines] == [0, 0, 0]
    quantize = ["0.15" if word == "4" else word for word in lines[0]]
    finished = command(*quantize, "--samples", "60")
    assert finished.code == 3
    assert "--max-class-drop 3 cannot be met with --bits 0.15" in finished.err


def test_a_workflow_of_olive_takes_the_pass(copy: Path) -> None:
    pytest.importorskip("olive", reason="olive-ai is not installed")
    done = run(copy / "samples" / "olive_pass.py")
    assert done.returncode == 0, done.stderr
    assert "% of the card's samples right" in done.stdout
