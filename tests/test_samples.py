"""The samples run as a user runs them, in a copy so that the checkout stays clean."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import onnxruntime
import pytest
from nbclient import NotebookClient

from onnx_cbq.calibration import load_card
from onnx_cbq.model import Array
from tests.command import Command
from tests.conftest import ROOT


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("samples", "calibration"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.quantized.onnx", "__pycache__"))
    return tmp_path


def run(script: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, script, *arguments]
    return subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603


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


def right(model: Path, x: Array, y: Array) -> float:
    """Percent of samples that a model has right, in plain onnxruntime."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    batches = [session.run(None, {session.get_inputs()[0].name: x[i : i + 500]})[0] for i in range(0, len(x), 500)]
    return 100 * float((np.concatenate(batches).argmax(axis=1) == y).mean())


def test_a_text_classifier_keeps_its_accuracy_in_a_sixth_of_its_bytes(tmp_path: Path) -> None:
    """An embedding and an LSTM at 4 bits; of a file whose LSTM stays float, these would be more than a third."""
    pytest.importorskip("torch", reason="torch is not installed")
    short = ("--requests", "5000", "--epochs", "3", "--bits", "4")
    done = run(ROOT / "samples" / "05_text_classifier.py", tmp_path, *short)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    paths = tmp_path / "requests.onnx", tmp_path / "requests_4_bits.onnx"
    sizes = [path.stat().st_size for path in paths]
    assert sizes[1] <= 0.16 * sizes[0]
    with np.load(tmp_path / "unseen.npz") as unseen:
        before, after = (right(path, unseen["x"], unseen["y"]) for path in paths)
        assert len(unseen["y"]) == 6000
    assert before > 90
    assert after >= before - 0.5
    row = next(line for line in done.stdout.splitlines() if line.startswith("4 bits"))
    assert row.split()[2:5] == [f"{sizes[1]:,}", f"{sizes[1] / sizes[0]:.3f}", f"{after:.2f}"]


def test_keywords_are_spotted_from_files_to_the_result(tmp_path: Path) -> None:
    """The card that is found is what the net was trained on, at another rate than the files', and 4 bits are enough.

    Samples are prepared here as training did, and not as the card says.
    """
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("soundfile", reason="needs the extra 'audio'")
    script = ROOT / "samples" / "06_keyword_spotting.py"
    done = run(script, tmp_path, "--each", "60", "--unseen", "100", "--epochs", "8")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    card = load_card(tmp_path / "card.toml")
    assert (card.sample_rate, card.length, card.per_sample) == (8000, 8000, "normalise")
    best = next(line for line in done.stdout.splitlines() if line.endswith("best"))
    assert best.startswith("per sample normalised  8,000 Hz")
    prepare = runpy.run_path(str(script))["prepare"]
    files = sorted((tmp_path / "unseen").glob("*/*.wav"))
    names = sorted({file.parent.name for file in files})
    x = np.stack([prepare(file) for file in files]).astype(np.float32)[:, None]
    y = np.array([names.index(file.parent.name) for file in files])
    paths = tmp_path / "words.onnx", tmp_path / "words_4_bits.onnx"
    before, after = (right(path, x, y) for path in paths)
    assert (len(files), len(names)) == (1000, 10)
    assert before > 75
    assert after >= before - 0.5
    printed = re.findall(r"^top-1 accuracy, %\s+(\S+)\s+(\S+)$", done.stdout, re.M)[-1]
    assert [float(number) for number in printed] == pytest.approx([before, after], abs=0.21)
    assert paths[1].stat().st_size <= 0.16 * paths[0].stat().st_size


def test_running_before_quantizing_says_what_to_do(copy: Path) -> None:
    used = run(copy / "samples" / "03_run_quantized.py")
    assert used.returncode == 1
    assert used.stderr == "digits_cnn.quantized.onnx is missing; run samples/02_quantize_in_python.py first\n"


def test_every_script_is_listed() -> None:
    listing = (ROOT / "samples" / "README.md").read_text()
    assert all(f"`{script.name}`" in listing for script in (ROOT / "samples").glob("*.py"))


def test_the_notebook_runs_to_its_end(copy: Path) -> None:
    """With its pictures, one per plot, its tables, and the accuracy that it asks for."""
    pytest.importorskip("pandas", reason="pandas is not installed")
    path = copy / "samples" / "from_float_to_deployed.ipynb"
    notebook = nbformat.read(path, as_version=4)
    told = {"metadata": {"path": str(path.parent)}}
    # A process of its own, since the kernel's libraries warn of what is not ours.
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=told).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    tables = [table for output in outputs if "<table" in (table := output.get("data", {}).get("text/html", ""))]
    for column, row in (("average_bits", "/7/Conv"), ("chance", "digits_int8.onnx")):
        assert any(column in table and row in table for table in tables), column
    shown = [page for output in outputs if "<iframe" in (page := output.get("data", {}).get("text/html", ""))]
    assert len(shown) == 1, "the result's page"
    assert "Where the bits went" in shown[0]
    assert any(re.search(r"^/7/Conv +\S+ nats, \d+ %, weights$", output.get("text", ""), re.M) for output in outputs)


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
