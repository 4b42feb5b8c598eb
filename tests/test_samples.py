"""The samples run as a user runs them, in a copy so that the checkout stays clean."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
