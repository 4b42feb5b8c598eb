"""Every command's JSON is what the schema in the package says, so that programs can rely on its keys."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.command import Command
from tests.conftest import DIGITS_CARD, DIGITS_MODEL

SCHEMA: dict[str, Any] = json.loads(files("onnx_cbq.report").joinpath("result.schema.json").read_text("utf-8"))
QUICK = ("--rounding", "nearest", "--samples", "60", "--bits", "4")


def validator(form: str) -> Draft202012Validator:
    """Of one form: what is wrong is then said of it, and not of all."""
    return Draft202012Validator({"$ref": f"#/$defs/{form}", "$defs": SCHEMA["$defs"]})


@pytest.fixture
def quantized(tmp_path: Path, command: Command) -> Path:
    path = tmp_path / "q.onnx"
    quick = ("--data", DIGITS_CARD, "--method", "uniform", *QUICK)
    assert command("quantize", DIGITS_MODEL, *quick, "--output", path, "--quiet").code == 0
    return path


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert {entry["$ref"].rpartition("/")[2] for entry in SCHEMA["oneOf"]} < SCHEMA["$defs"].keys()


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("quantize", ("quantize", DIGITS_MODEL, "--data", DIGITS_CARD, *QUICK)),
        ("quantize", ("quantize", DIGITS_MODEL, "--data", DIGITS_CARD, *QUICK, "--clusters", "3", "--no-run-check")),
        ("quantize", ("quantize", DIGITS_MODEL, "--data", DIGITS_CARD, *QUICK, "--method", "uniform", "--curve")),
        ("quantize", ("quantize", DIGITS_MODEL, "--data", DIGITS_CARD, "--samples", "60", "--storage", "archive")),
        ("quantize", ("quantize", DIGITS_MODEL, "--data", DIGITS_CARD, *QUICK, "--bits", "0.3")),
        (
            "quantize",
            (
                "quantize",
                DIGITS_MODEL,
                "--data",
                DIGITS_CARD,
                *QUICK,
                "--method",
                "differentiable",
                "--width-updates",
                "3",
            ),
        ),
        ("data_free", ("quantize", DIGITS_MODEL, "--data-free", "--scheme", "log", "--bits", "4")),
        ("evaluate", ("evaluate", DIGITS_MODEL, "--data", DIGITS_CARD)),
        ("evaluate", ("evaluate", DIGITS_MODEL, "--data", DIGITS_CARD, "--reference", DIGITS_MODEL)),
        ("compare", ("compare", DIGITS_MODEL, DIGITS_MODEL, "--data", DIGITS_CARD)),
        ("debug", ("debug", DIGITS_MODEL, "Q", "--data", DIGITS_CARD)),
        ("card", ("card", DIGITS_MODEL, "--source", DIGITS_CARD.with_suffix(".npz"), "--samples", "60")),
        ("step", ("step", DIGITS_MODEL, "--data", DIGITS_CARD, "--updates", "4", "--macs", "0.4,0.9")),
    ],
)
def test_what_a_command_writes_has_its_form(
    form: str, words: tuple[object, ...], tmp_path: Path, command: Command, request: pytest.FixtureRequest
) -> None:
    words = tuple(request.getfixturevalue("quantized") if word == "Q" else word for word in words)
    out = () if form in ("evaluate", "compare", "debug") else ("--output", tmp_path / "made")
    finished = command(*words, *out, "--json", tmp_path / "r.json", "--quiet")
    assert (finished.code, finished.err) == (0, "")
    validator(form).validate(json.loads((tmp_path / "r.json").read_text()))


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_checks_and_archives_have_their_forms(quantized: Path, target: str, tmp_path: Path, command: Command) -> None:
    assert command("check", quantized, "--target", target, "--json", tmp_path / "c.json").code in {0, 3}
    validator("check").validate(json.loads((tmp_path / "c.json").read_text()))
    assert command("archive", quantized, "--json", tmp_path / "a.json").code == 0
    validator("archive").validate(json.loads((tmp_path / "a.json").read_text()))
