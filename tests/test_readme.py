"""What the README and calibration/README.md show is run, and what they state about defaults and keys is held."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from onnx_cbq.calibration import Card, load_card
from onnx_cbq.cli import main
from onnx_cbq.config import CbqConfig
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
CARDS = (ROOT / "calibration" / "README.md").read_text(encoding="utf-8")
TARGETS = (ROOT / "docs" / "targets.md").read_text(encoding="utf-8")
FIRST_COMMAND = "pip install . && onnx-cbq quantize samples/digits_cnn.onnx --data calibration/digits.toml --bits 4"
TEST_COMMAND = "pip install -e '.[test]' -c constraints.txt && pytest -n 2"
CI_COMMANDS = ("pip install -e '.[test]' -c constraints.txt", "pytest -n 2")


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [content for label, content in fences if label == language]


def section(title: str) -> str:
    """The README from a heading to the next one."""
    return re.split(r"^#+ ", README.split(f"# {title}\n")[1], flags=re.MULTILINE)[0]


def commands(text: str) -> list[str]:
    """The commands of all shell blocks, one by one."""
    lines = (line for block in blocks(text, "sh") for line in block.splitlines())
    return [command for line in lines for command in line.split(" && ")]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what the documents refer to, as the current folder."""
    for name in ("samples", "calibration"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.quantized.onnx", "__pycache__"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_command(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One command; a comment behind it may say that its exit code is another than 0."""
    monkeypatch.setattr(sys, "argv", shlex.split(command, comments=True))
    with pytest.raises(SystemExit) as ended:
        main()
    expected = re.search(r"# exit code (\d)", command)
    assert ended.value.code == (int(expected[1]) if expected else 0), command


@pytest.mark.usefixtures("checkout")
@pytest.mark.parametrize("text", [README, CARDS, TARGETS], ids=["README", "calibration", "targets"])
def test_every_command_works(text: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    ours = [command for command in commands(text) if command.startswith("onnx-cbq ")]
    for command in ours:
        run_command(command, monkeypatch)
        printed = capfd.readouterr()
        assert printed.out, command
        assert not printed.err, command
    assert ours


def test_every_other_command_is_run_by_ci_or_here() -> None:
    known = {"pip install .", *CI_COMMANDS}
    others = [c for text in (README, CARDS, TARGETS) for c in commands(text) if not c.startswith("onnx-cbq ")]
    assert {command for command in others if not command.startswith(("python benchmarks/", "python samples/"))} == known


def test_set_up_takes_two_commands() -> None:
    lines = [line for block in blocks(README, "sh") for line in block.splitlines()]
    assert FIRST_COMMAND in lines
    assert TEST_COMMAND in lines


def test_ci_runs_the_test_command_and_the_checks() -> None:
    script = ROOT / ".ci" / "run"
    lines = [line.strip() for line in script.read_text(encoding="utf-8").splitlines()]
    assert TEST_COMMAND in lines
    assert "scripts/check" in lines
    assert os.access(script, os.X_OK)


def test_every_benchmark_says_what_is_missing(tmp_path: Path) -> None:
    shown = commands(README) + commands(TARGETS)
    scripts = [c.removeprefix("python ") for c in shown if c.startswith("python benchmarks/")]
    assert {Path(script).name for script in scripts} == {
        "accuracy.py",
        "main_job.py",
        "scoring.py",
        "latency.py",
        "stepping.py",
        "bytes.py",
        "training.py",
        "targets.py",
    }
    environment = {**os.environ, "ONNX_CBQ_DATA": str(tmp_path)}
    for script in scripts:
        ran = subprocess.run(  # noqa: S603, a script of this project
            [sys.executable, ROOT / script], env=environment, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 1
        assert re.fullmatch(r"\S+ is missing; set ONNX_CBQ_DATA .*\n", ran.stderr)


@pytest.mark.usefixtures("checkout")
@pytest.mark.parametrize("text", [README, CARDS], ids=["README", "calibration"])
def test_every_python_block_runs(text: str) -> None:
    code = blocks(text, "python")
    assert code
    for block in code:
        exec(compile(block, "README", "exec"), {})  # noqa: S102, our own documents


@pytest.mark.usefixtures("checkout")
def test_the_shown_output_is_what_comes(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    run_command(FIRST_COMMAND.split(" && ")[1], monkeypatch)
    block = next(block for block in blocks(README, "") if "top-1 accuracy" in block)
    # Whether it is slower than float depends on the processor.
    printed, shown = (
        [line for line in shape_of(text) if not line.startswith("note: slower")]
        for text in (capfd.readouterr().out, block)
    )
    assert printed[:7] == shown[:7]
    # Which criterion wins may differ by machine.
    assert [line.split()[:1] for line in printed[7:]] == [line.split()[:1] for line in shown[7:]]
    run_command("onnx-cbq inspect samples/digits_cnn.quantized.onnx", monkeypatch)
    printed = shape_of(capfd.readouterr().out)
    shown = shape_of(next(block for block in blocks(README, "") if "made by onnx-cbq" in block))
    assert [line.split()[:3] for line in printed] == [line.split()[:3] for line in shown]


def shape_of(output: str) -> list[str]:
    """The lines without what differs from machine to machine: figures, and the spaces around them."""
    return [re.sub(r"\s+", " ", re.sub(r"\d[\d,.]*", "#", line)).strip() for line in output.splitlines()]


@pytest.mark.usefixtures("checkout")
def test_the_json_keys_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    card = "samples/digits_cnn.onnx --data calibration/digits.toml --quiet --json report.json"
    run_command(f"onnx-cbq quantize {card} --method uniform", monkeypatch)
    written = json.loads(Path("report.json").read_text(encoding="utf-8"))
    table = [line for line in section("The JSON").splitlines() if line.startswith("| `")]
    listed = {name for line in table for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert listed == written.keys()
    inner = next(line for line in table if line.startswith("| `float`"))
    assert {f"`{key}`" for key in written["float"]} <= set(re.findall(r"`\w+`", inner))


def test_the_constants_of_the_search_are_listed_with_their_defaults() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", section("Constants of the threshold search"), re.MULTILINE)
    assert rows == [(field.name, repr(field.default)) for field in fields(CbqConfig)]


def test_every_key_of_a_card_is_listed() -> None:
    table = re.findall(r"^\| `(\w+)` \|", CARDS.split("\n## Order")[0], re.MULTILINE)
    assert table == [field.name for field in fields(Card)]


def test_every_card_shown_is_valid(tmp_path: Path) -> None:
    shown = blocks(CARDS, "toml")
    assert shown
    for block in shown:
        (tmp_path / "card.toml").write_text(block, encoding="utf-8")
        assert load_card(tmp_path / "card.toml").source.is_relative_to(tmp_path)


@pytest.mark.parametrize("name", ["README.md", "calibration/README.md", "samples/README.md", "docs/targets.md"])
def test_every_file_named_exists(name: str) -> None:
    text, folder = (ROOT / name).read_text(encoding="utf-8"), (ROOT / name).parent
    links = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    scripts = re.findall(r"python (\w+/\w+\.py)", text)
    assert all((folder / link).exists() for link in links)
    assert all((ROOT / script).exists() for script in scripts)
