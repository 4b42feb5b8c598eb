"""What the README and the pages of docs/ show is run, and what they state about options, defaults and keys is held."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import onnx_cbq
from onnx_cbq import methods, storage, targets
from onnx_cbq.calibration import Card, load_card
from onnx_cbq.calibration.places import is_url
from onnx_cbq.cli.main import COMMANDS, main
from onnx_cbq.cli.options import flags_of
from onnx_cbq.cli.quantize import FIXED, owners
from onnx_cbq.jobs.written_settings import TABLES
from onnx_cbq.methods import criteria
from onnx_cbq.search.cbq import CbqConfig
from onnx_cbq.settings import FIRST
from tests.conftest import ROOT

PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}
README, STEPS, CARDS = PAGES["README.md"], PAGES["docs/first-steps.md"], PAGES["docs/cards.md"]
FIRST_COMMAND = "pip install . && onnx-cbq quantize samples/digits_cnn.onnx --data calibration/digits.toml --bits 4"
TEST_COMMAND = "pip install -e '.[test]' -c constraints.txt && pytest -n 2"
CI_COMMANDS = ("pip install -e '.[test]' -c constraints.txt", "pytest -n 2")
README_LINES = 160
# Files that a reader is told to make.
INVENTED = {"onnx_cbq/methods/alternating.py", "onnx_cbq/storage/stamped.py", "onnx_cbq/targets/rover.py"}
_FENCE = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return [content for label, _, content in _FENCE.findall(text) if label == language]


def section(page: str, title: str) -> str:
    """A page from a heading to the next one."""
    return re.split(r"^#+ ", PAGES[page].split(f"# {title}\n")[1], flags=re.MULTILINE)[0]


def commands(text: str) -> list[str]:
    """The commands of all shell blocks, one by one."""
    lines = (line for block in blocks(text, "sh") for line in block.splitlines())
    return [command for line in lines for command in line.split(" && ")]


def ours(text: str) -> list[str]:
    return [command for command in commands(text) if command.startswith("onnx-cbq ")]


def everything() -> str:
    return "\n".join(PAGES.values())


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what the documents refer to, as the current folder."""
    for name in ("samples", "calibration"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.quantized.onnx", "__pycache__"))
    monkeypatch.chdir(tmp_path)
    # As readers have one, which each page finds empty.
    monkeypatch.setenv("ONNX_CBQ_CACHE", str(tmp_path / "cache"))
    return tmp_path


def run_command(command: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """One command; a comment behind it may say that its exit code is another than 0, which it returns."""
    monkeypatch.setattr(sys, "argv", shlex.split(command, comments=True))
    with pytest.raises(SystemExit) as ended:
        main()
    for handler in logging.getLogger("onnx_cbq").handlers:
        handler.close()
    said = re.search(r"# exit code (\d)", command)
    expected = int(said[1]) if said else 0
    assert ended.value.code == expected, command
    return expected


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if ours(text)])
def test_every_command_works(
    checkout: Path, page: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for _, name, content in _FENCE.findall(PAGES[page]):
        if name:
            (checkout / name).write_text(content, encoding="utf-8")
    for command in ours(PAGES[page]):
        refused = run_command(command, monkeypatch) in (1, 2)
        printed = capfd.readouterr()
        assert bool(printed.out) != (refused or "--quiet" in command), command
        assert bool(printed.err) == refused, command


@pytest.mark.usefixtures("checkout")
def test_a_refused_command_says_what_is_shown(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    page = PAGES["docs/command-line.md"]
    refused = next(command for command in ours(page) if "# exit code 2" in command)
    run_command(refused, monkeypatch)
    said = " ".join(capfd.readouterr().err.replace("│", " ").split())
    assert blocks(page, "")[0].strip() in said


def test_every_other_command_is_run_by_ci_or_here() -> None:
    others = {c for text in PAGES.values() for c in commands(text) if not c.startswith("onnx-cbq ")}
    scripts = {c.removeprefix("python ") for c in others if c.startswith(("python benchmarks/", "python samples/"))}
    assert others == {"pip install .", *CI_COMMANDS, *(f"python {script}" for script in scripts)}
    elsewhere = (ROOT / "tests" / "test_samples.py").read_text(encoding="utf-8")
    assert all(f'"{Path(script).name}"' in elsewhere for script in scripts if script.startswith("samples/"))


def test_set_up_takes_two_commands() -> None:
    lines = [line for block in blocks(README, "sh") for line in block.splitlines()]
    assert FIRST_COMMAND in lines
    assert TEST_COMMAND in lines


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= README_LINES


def test_ci_runs_the_test_command_and_the_checks() -> None:
    script = ROOT / ".ci" / "run"
    lines = [line.strip() for line in script.read_text(encoding="utf-8").splitlines()]
    assert TEST_COMMAND in lines
    assert "scripts/check" in lines
    assert os.access(script, os.X_OK)


def test_every_benchmark_says_what_is_missing(tmp_path: Path) -> None:
    scripts = {c.removeprefix("python ") for c in commands(everything()) if c.startswith("python benchmarks/")}
    assert {Path(script).name for script in scripts} == {
        "accuracy.py",
        "main_job.py",
        "scoring.py",
        "latency.py",
        "peers.py",
        "stepping.py",
        "bytes.py",
        "training.py",
        "targets.py",
        "transformer.py",
    }
    environment = {**os.environ, "ONNX_CBQ_DATA": str(tmp_path)}
    for script in scripts:
        ran = subprocess.run(  # noqa: S603, a script of this project
            [sys.executable, ROOT / script], env=environment, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 1
        assert re.fullmatch(r"\S+ is missing; set ONNX_CBQ_DATA .*\n", ran.stderr)


@pytest.mark.usefixtures("checkout")
@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if blocks(text, "python")])
def test_every_python_block_runs(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(criteria, "CRITERIA", criteria.CRITERIA)  # a page adds one
    for block in blocks(PAGES[page], "python"):
        if ".to_frame()" in block:
            pytest.importorskip("pandas", reason="pandas is not installed")
        example = ModuleType("example")
        monkeypatch.setitem(sys.modules, "example", example)
        code = compile(block, page, "exec", dont_inherit=True)
        exec(code, example.__dict__)  # noqa: S102, our own documents


def test_functions_shown_from_a_file_stand_there() -> None:
    shown = [
        block for block in blocks(PAGES["docs/extending/operator.md"], "python") if block.startswith("# onnx_cbq/")
    ]
    assert shown
    for block in shown:
        where, _, code = block.partition("\n")
        function = code[code.index("\ndef ") :].strip()
        assert function in (ROOT / where.removeprefix("# ")).read_text(encoding="utf-8")


@pytest.mark.usefixtures("checkout")
def test_the_shown_output_is_what_comes(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    run_command(FIRST_COMMAND.split(" && ")[1], monkeypatch)
    # Whether it is slower than float depends on the processor.
    printed = [line for line in shape_of(capfd.readouterr().out) if not line.startswith("note: slower")]
    shown = shape_of(next(block for block in blocks(STEPS, "") if "top-1 accuracy" in block))
    assert printed[:7] == shown[:7]
    # Which criterion wins may differ by machine.
    assert [line.split()[:1] for line in printed[7:]] == [line.split()[:1] for line in shown[7:]]
    rest = iter(printed)
    assert all(line in rest for line in shape_of(blocks(README, "")[0]) if line != "...")
    run_command("onnx-cbq inspect samples/digits_cnn.quantized.onnx", monkeypatch)
    printed = shape_of(capfd.readouterr().out)
    shown = shape_of(next(block for block in blocks(STEPS, "") if "made by onnx-cbq" in block))
    assert [line.split()[:3] for line in printed] == [line.split()[:3] for line in shown]


def shape_of(output: str) -> list[str]:
    """The lines without what differs from machine to machine: figures, the processor, and the spaces around them."""
    plain = re.sub(r"latency, ms \(\w+\)", "latency, ms", output)
    return [re.sub(r"\s+", " ", re.sub(r"\d[\d,.]*", "#", line)).strip() for line in plain.splitlines()]


@pytest.mark.usefixtures("checkout")
def test_the_json_keys_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    card = "samples/digits_cnn.onnx --data calibration/digits.toml --quiet --json report.json"
    run_command(f"onnx-cbq quantize {card} --bits 4", monkeypatch)
    written = json.loads(Path("report.json").read_text(encoding="utf-8"))
    table = [line for line in section("docs/report.md", "The JSON").splitlines() if line.startswith("| `")]
    listed = {name for line in table for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert listed == written.keys()
    for key in ("float", "method"):
        row = next(line for line in table if line.startswith(f"| `{key}`"))
        assert {f"`{inner}`" for inner in written[key]} <= set(re.findall(r"`\w+`", row))


def test_the_constants_of_the_search_are_listed_with_their_defaults() -> None:
    table = section("docs/how-it-works.md", "Constants of the threshold search")
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", table, re.MULTILINE)
    assert rows == [(field.name, repr(field.default)) for field in fields(CbqConfig)]


def test_every_key_of_a_card_is_listed() -> None:
    table = re.findall(r"^\| `(\w+)` \|", CARDS.split("\n## Order")[0], re.MULTILINE)
    assert table == [field.name for field in fields(Card)]


def test_every_card_shown_is_valid(tmp_path: Path) -> None:
    shown = blocks(CARDS, "toml")
    assert shown
    for block in shown:
        (tmp_path / "card.toml").write_text(block, encoding="utf-8")
        source = load_card(tmp_path / "card.toml").source
        assert is_url(str(source)) if isinstance(source, str) else source.is_relative_to(tmp_path)


@pytest.mark.parametrize("page", ["README.md", "docs/command-line.md"])
def test_every_command_is_listed(page: str) -> None:
    assert re.findall(r"^\| `onnx-cbq (\w+) ", PAGES[page], re.MULTILINE) == [command.name for command in COMMANDS]


def test_the_readme_has_the_options_of_the_first_panel() -> None:
    wanted = {flag.option for flag in flags_of(owners()) if flag.setting.option.panel == FIRST}
    wanted |= {f"--{name}" for name, kind in FIXED.items() if kind.__metadata__[0].rich_help_panel == FIRST}
    listed = re.findall(r"^\| `(--[\w-]+)", README, re.MULTILINE)
    assert len(listed) == len(wanted) == 10
    assert set(listed) == wanted


def test_every_option_is_described() -> None:
    options = {f"--{name.replace('_', '-')}" for name in FIXED if name != "model"}
    options |= {flag.option for flag in flags_of(owners())}
    said = set(re.findall(r"`[^`\n]*`", everything()))
    assert {option for option in options if not any(re.search(rf"{option}\b(?!-)", code) for code in said)} == set()


def test_every_member_of_a_table_is_described() -> None:
    listed = {page: set(re.findall(r"^\| `([^`]+)`", text, re.MULTILINE)) for page, text in PAGES.items()}
    assert {f"--method {kind.name}" for kind in methods.METHODS} <= listed["docs/bits.md"]
    assert {f"--storage {kind.name}" for kind in storage.STORAGES} <= listed["docs/storage.md"]
    assert {target.name for target in targets.TARGETS} <= listed["docs/targets.md"]
    assert {f"[{name}]" for name in TABLES} == {name for name in listed["docs/command-line.md"] if name[0] == "["}
    assert all(f"`{kind.name}`" in PAGES["docs/storage.md"] for kind in methods.CODEBOOKS)


def test_the_library_has_every_public_name() -> None:
    shown = [line.split(" ")[1] for line in PAGES["docs/library.md"].splitlines() if line.startswith("::: ")]
    assert {path.rpartition(".")[2] for path in shown} == set(onnx_cbq.__all__)
    for path in shown:
        module, _, name = path.rpartition(".")
        assert getattr(import_module(module), name) is getattr(onnx_cbq, name)


@pytest.mark.parametrize("name", [*PAGES, "calibration/README.md", "samples/README.md"])
def test_every_file_named_exists(name: str) -> None:
    text, folder = (ROOT / name).read_text(encoding="utf-8"), (ROOT / name).parent
    links = re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", text)
    assert [link for link in links if not (folder / link).exists()] == []
    named = re.findall(r"\b(?:onnx_cbq|tests|benchmarks|samples|scripts|calibration)/[\w./]*\w\.(?:py|md|toml)\b", text)
    assert {path for path in named if not (ROOT / path).exists()} <= INVENTED
