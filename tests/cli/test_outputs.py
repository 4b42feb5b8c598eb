"""What a command reads is never written: through no option, no link, no other spelling."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from PIL import Image

from onnx_cbq.cli.outputs import beside
from tests.command import Command
from tests.conftest import DIGITS_CARD, DIGITS_MODEL

QUICK = ("--method", "uniform", "--rounding", "nearest", "--no-equalize", "--samples", 20)
REFUSED = "is also another file of this command"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model with its weights in a file, its card and samples, as the current folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    model = onnx.load(DIGITS_MODEL)
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    shutil.copy(DIGITS_CARD.with_name("digits.npz"), folder)
    shutil.copy(DIGITS_CARD, folder / "card.toml")
    (folder / "groups.txt").write_text("0,1,2,3,4\n5,6,7,8,9\n")
    monkeypatch.chdir(folder)
    return folder


def content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


READ = ["model.onnx", "weights.bin", "card.toml", "digits.npz", "groups.txt"]
SPELLINGS: dict[str, Callable[[Path], Path]] = {
    "same": lambda path: path,
    "other-spelling": lambda path: path.parent / ".." / path.parent.name / path.name,
    "link": lambda path: linked(path, "symbolic"),
    "hard-link": lambda path: linked(path, "hard"),
    "linked-folder": lambda path: linked(path.parent, "symbolic") / path.name,
}


def linked(path: Path, kind: str) -> Path:
    link = path.with_name(f"link-{kind}")
    if kind == "hard":
        os.link(path, link)
    else:
        link.symlink_to(path)
    return link


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("option", ["--output", "--json"])
def test_quantize_writes_over_nothing_it_reads(
    folder: Path, command: Command, option: str, name: str, spelling: str
) -> None:
    target = SPELLINGS[spelling](folder / name)
    before = content(folder)
    elsewhere = () if option == "--output" else ("--output", "q.onnx")
    arguments = ("--data", "card.toml", "--clusters", "groups.txt", option, target, *elsewhere)
    done = command("quantize", "model.onnx", *arguments, *QUICK)
    assert (done.code, REFUSED in done.err) == (1, True), done
    assert content(folder) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("evaluate", "model.onnx", "--data", "card.toml", "--json", "digits.npz"),
        ("evaluate", "model.onnx", "--data", "card.toml", "--reference", "other.onnx", "--json", "other.onnx"),
        ("score", "model.onnx", "--data", "card.toml", "--output", "weights.bin"),
        ("check", "model.onnx", "--json", "weights.bin"),
        ("archive", "model.onnx", "--output", "weights.bin"),
        ("restore", "model.onnx", "--output", "model.onnx"),
        ("quantize", "model.onnx", "--data-free", "--output", "weights.bin"),
        ("quantize", "model.onnx", "--data", "q.onnx.data", "--output", "q.onnx"),
    ],
    ids=lambda arguments: " ".join(arguments[:1] + arguments[-2:]),
)
def test_no_command_writes_over_what_it_reads(folder: Path, command: Command, arguments: tuple[str, ...]) -> None:
    """A name that follows from the output's is an output too: `.data`."""
    shutil.copy(DIGITS_MODEL, "other.onnx")
    shutil.copy("card.toml", "q.onnx.data")
    before = content(folder)
    done = command(*arguments)
    assert (done.code, REFUSED in done.err) == (1, True), done
    assert content(folder) == before


@pytest.mark.parametrize("spelling", ["same", "hard-link"])
def test_a_file_of_a_folder_of_samples_is_safe(folder: Path, command: Command, spelling: str) -> None:
    for name in ("cat", "dog"):
        (folder / "images" / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(folder / "images" / name / "1.png")
    (folder / "images.toml").write_text('source = "images"\n')
    target = SPELLINGS[spelling](folder / "images" / "dog" / "1.png")
    before = content(folder)
    done = command("evaluate", "model.onnx", "--data", "images.toml", "--json", target)
    assert (done.code, REFUSED in done.err) == (1, True), done
    assert content(folder) == before


def test_step_replaces_no_model_in_its_folder(folder: Path, command: Command) -> None:
    (folder / "steps").mkdir()
    shutil.copy(DIGITS_MODEL, "steps/step_1.onnx")
    before = content(folder)
    for arguments, expected in (
        (("steps/step_1.onnx", "--output", "steps"), REFUSED),
        (("model.onnx", "--output", "steps", "--json", "steps/stepping.json"), "is inside the folder 'steps' to write"),
    ):
        done = command("step", *arguments, "--data", "card.toml", "--macs", "0.3,0.7", "--updates", 2)
        assert (done.code, expected in done.err) == (1, True), done
    assert content(folder) == before


def test_an_older_result_is_replaced(folder: Path, command: Command) -> None:
    (folder / "q.onnx").write_text("old")
    (folder / "q.json").write_text("old")
    done = command("quantize", "model.onnx", "--data-free", "--output", "q.onnx", "--json", "q.json")
    assert done.code == 0, done
    assert onnx.load("q.onnx").graph.node
    assert (folder / "q.json").read_text().startswith("{")


def test_links_that_lead_in_circles_end(folder: Path, command: Command) -> None:
    """Two links to the folder above are 2^40 ways through it."""
    for name in ("cat", "dog"):
        (folder / "images" / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(folder / "images" / name / "1.png")
        for link in "abc":
            (folder / "images" / name / link).symlink_to("..")
    (folder / "images.toml").write_text('source = "images"\n')
    (folder / "old.json").write_text("{}")
    done = command("evaluate", "model.onnx", "--data", "images.toml", "--json", "old.json")
    assert "class names, but the model has" in done.err


@pytest.mark.parametrize(
    ("source", "expected"),
    [("net.onnx", "net.out"), ("resnet50-v1.5", "resnet50-v1.5.out"), ("NET.ONNX", "NET.out"), (".onnx", ".onnx.out")],
)
def test_only_the_ending_of_a_model_is_taken_off_its_name(source: str, expected: str) -> None:
    """A version number behind a point is no ending: two of one model would become one file."""
    assert beside(Path("folder") / source, ".out") == Path("folder") / expected


@pytest.mark.parametrize("name", [".", "/", ""])
def test_an_output_without_a_name_is_a_folder(folder: Path, command: Command, name: str) -> None:
    """An unset variable of a script is the empty name, which is the current folder."""
    done = command("quantize", folder / "model.onnx", "--data-free", "--output", name)
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "is a folder; give the name of the file" in done.err


def test_links_of_the_system_are_not_replaced(folder: Path, command: Command) -> None:
    """/dev/stdout leads to a file where a shell says so, and as root its link could be replaced for everybody."""
    link = Path("/dev/stdout")
    before = link.readlink() if link.is_symlink() else None
    done = command(
        "quantize", folder / "model.onnx", "--data-free", "--output", folder / "q.onnx", "--json", "/dev/fd/1"
    )
    assert done.code == 1
    assert "is a device or pipe" in done.err
    assert (link.readlink() if link.is_symlink() else None) == before
