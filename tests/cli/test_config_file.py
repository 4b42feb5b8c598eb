"""Options from a file: what stands in it counts unless the command line differs, and any result repeats itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from onnx_cbq import (
    AutoBits,
    CbqConfig,
    DataFreeConfig,
    DifferentiableConfig,
    LearnedConfig,
    QuantizeConfig,
    RateDistortionConfig,
    RefineConfig,
    RoundingConfig,
    ScoringConfig,
    quantize,
    quantize_without_data,
)
from onnx_cbq.jobs.written_settings import as_options
from tests.command import Command
from tests.conftest import DIGITS_CARD, DIGITS_MODEL

QUICK = ("quantize", DIGITS_MODEL, "--data", DIGITS_CARD, "--rounding", "nearest", "--samples", "60", "--quiet")


def run(tmp_path: Path, command: Command, text: str, *more: object, suffix: str = "toml") -> dict[str, Any]:
    """The settings of a run with a file, as its JSON says them."""
    path = tmp_path / f"run.{suffix}"
    path.write_text(text)
    out = ("--output", tmp_path / "q.onnx", "--json", tmp_path / "r.json")
    finished = command(*QUICK, "--config", path, *out, *more)
    assert (finished.code, finished.err) == (0, "")
    found: dict[str, Any] = json.loads((tmp_path / "r.json").read_text())["settings"]
    return found


def test_the_command_line_wins(tmp_path: Path, command: Command) -> None:
    text = 'bits = 3\nmethod = "uniform"\nequalize = false\nkeep = ["12=6", "/0/*=5"]\nclass-weight = "3=2.5"\n'
    common = {"rounding": "nearest", "samples": 60, "method": "uniform", "equalize": False, "class-weight": ["3=2.5"]}
    assert run(tmp_path, command, text) == {**common, "bits": 3.0, "keep": ["12=6", "/0/*=5"]}
    assert run(tmp_path, command, text, "--bits", "5", "--keep", "12=7") == {**common, "bits": 5.0, "keep": ["12=7"]}


def test_underscores_and_what_switches_off_are_names_too(tmp_path: Path, command: Command) -> None:
    found = run(tmp_path, command, "activation_bits = 4\nno-equalize = true\nno-run-check = false\nbits = 2\n")
    assert found == {"rounding": "nearest", "samples": 60, "bits": 2.0, "activation-bits": 4, "equalize": False}


def test_files_and_switches_can_stand_in_it(tmp_path: Path, command: Command) -> None:
    path = tmp_path / "all.toml"
    path.write_text(
        f"data = {str(DIGITS_CARD)!r}\noutput = {str(tmp_path / 'made.onnx')!r}\nquiet = true\ncurve = true\n"
        "method = 'uniform'\nbits = 4\nrounding = 'nearest'\nsamples = 60\n"
    )
    finished = command("quantize", DIGITS_MODEL, "--config", path)
    assert (finished.code, finished.out, finished.err) == (0, "", "")
    assert (tmp_path / "made.onnx").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bitz = 3", "there is no option 'bitz'; did you mean bits?"),
        ("qqqqqqq = 3", "there is no option 'qqqqqqq'; expected one of activation-bits"),
        ("bits = true", "bits: expected a number, got True"),
        ("seed = 1.5", "seed: expected a whole number, got 1.5"),
        ("equalize = 1", "equalize: expected true or false, got 1"),
        ("keep = 3", "keep: expected a list of texts, got 3"),
        ('keep = ["a"]', "--keep a: expected NAME=NUMBER"),
        ("quiet = 'yes'", "quiet: expected true or false, got yes"),
        ("data = 3", "data: expected a path, got 3"),
        ("[search]\nexchange = 3", "search: expected settings held_back or exchanges"),
        ("[search]\nexchanges = 'many'", "search.exchanges: expected int, got 'many'"),
        ("search = 3", "search: expected a table of settings, got 3"),
        ("bits = ", "neither TOML nor JSON"),
        ('{"settings": 3}', "expected options and their values"),
        ('{"bits": }', "neither TOML nor JSON"),
    ],
)
def test_what_means_nothing_is_one_line(tmp_path: Path, command: Command, text: str, said: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    finished = command(*QUICK, "--config", path, "--output", tmp_path / "q.onnx")
    assert (finished.code, finished.err.count("\n")) == (1, 1)
    assert said in finished.err
    assert not (tmp_path / "q.onnx").exists()


def test_a_missing_file_is_one_line(tmp_path: Path, command: Command) -> None:
    finished = command(*QUICK, "--config", tmp_path / "none.toml", "--output", tmp_path / "q.onnx")
    assert finished.code == 1
    assert "No such file or directory; give a file that can be read" in finished.err


def test_the_file_is_never_an_output(tmp_path: Path, command: Command) -> None:
    path = tmp_path / "run.toml"
    path.write_text("bits = 3")
    finished = command(*QUICK, "--config", path, "--output", tmp_path / "q.onnx", "--json", path)
    assert finished.code == 1
    assert "is read; give the output a name of its own" in finished.err
    assert path.read_text() == "bits = 3"


def test_no_file_that_it_names_is_an_output(tmp_path: Path, command: Command) -> None:
    """Not the groups of classes either, which a first version replaced with exit code 0."""
    groups, path = tmp_path / "groups.txt", tmp_path / "run.toml"
    groups.write_text("1,2\n3,4,5\n")
    path.write_text(f"clusters = {str(groups)!r}\n")
    finished = command(*QUICK, "--config", path, "--output", groups)
    assert finished.code == 1
    assert groups.read_text() == "1,2\n3,4,5\n"


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("[cbq]\nstride = 0.1", (), "only for --method cbq; leave out [cbq]"),
        ("[search]\nexchanges = 3", ("--method", "cbq"), "only for --method rate-distortion; leave out [search]"),
        ("[refinement]\nrate = 0.1", (), "only for --refine; leave out [refinement]"),
        ("[learned]\nrate = 0.1", (), "only for --rounding learned; leave out [learned]"),
        ("rounding-updates = 3", (), "only for --rounding learned; leave out --rounding-updates"),
        ("no-equalize = true\nequalize = true", (), "expected one value, got two"),
        ("activation-bits = 4\nactivation_bits = 8", (), "expected one value, got two"),
    ],
)
def test_what_would_be_ignored_is_refused(
    tmp_path: Path, command: Command, text: str, options: tuple[str, ...], said: str
) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    finished = command(*QUICK, "--config", path, "--output", tmp_path / "q.onnx", *options)
    assert finished.code in {1, 2}
    assert said in " ".join(finished.err.replace("\u2502", " ").split())


def test_what_is_typed_wins_over_a_table(tmp_path: Path, command: Command) -> None:
    table = 'method = "differentiable"\n[differentiable]\nupdates = 4\nrate = 0.05\n'
    found = run(tmp_path, command, table, "--width-updates", "2")
    assert (found["width-updates"], found["differentiable"]) == (2, {"rate": 0.05})


@pytest.mark.parametrize("bits", [4.0, 8.0])
def test_a_run_without_data_is_repeated_too(tmp_path: Path, command: Command, bits: float) -> None:
    """Its default in Python is another than that of the command line."""
    quantize_without_data(DIGITS_MODEL, DataFreeConfig(bits)).save(tmp_path / "first")
    (tmp_path / "r.json").write_text(quantize_without_data(DIGITS_MODEL, DataFreeConfig(bits)).to_json())
    told = ("--config", tmp_path / "r.json", "--output", tmp_path / "again", "--quiet")
    assert command("quantize", DIGITS_MODEL, *told).code == 0
    assert (tmp_path / "first").read_bytes() == (tmp_path / "again").read_bytes()


@pytest.mark.parametrize(
    ("stored", "typed", "found"),
    [
        ("refine = true", ("--no-refine",), {}),
        ("no-equalize = true", ("--equalize",), {}),
        ("equalize = true", ("--no-equalize",), {"equalize": False}),
        ("run-check = true", ("--no-run-check",), {"run-check": False}),
    ],
)
def test_a_switch_of_the_file_can_be_turned_on_the_command_line(
    stored: str, typed: tuple[str, ...], found: dict[str, bool], tmp_path: Path, command: Command
) -> None:
    """The command line wins over the file, in what is on or off too."""
    assert run(tmp_path, command, f"{stored}\n", *typed) == {**found, "rounding": "nearest", "samples": 60}


@pytest.mark.parametrize("limit", [("--max-drop", "1"), ("--bytes", "9000", "--storage", "packed")])
def test_bits_beside_what_finds_them_are_refused(limit: tuple[str, ...], command: Command) -> None:
    """They would be ignored in silence."""
    done = command("quantize", DIGITS_MODEL, "--data", DIGITS_CARD, "--bits", "3", *limit)
    assert done.code == 2
    assert f"{limit[0]} finds the bits by itself" in " ".join(done.err.split())


def test_a_switch_and_its_opposite_are_refused(command: Command) -> None:
    done = command("quantize", DIGITS_MODEL, "--data", DIGITS_CARD, "--equalize", "--no-equalize")
    assert done.code == 2
    assert "both --equalize and --no-equalize" in " ".join(done.err.split())


QUICKLY = QuantizeConfig(
    samples=60, search=RateDistortionConfig(exchanges=2), compensation=RoundingConfig(refits=0, sweeps=0, rows=2000)
)


@pytest.mark.parametrize(
    "config",
    [
        replace(QUICKLY, bits=2.5, keep=(("12", 4),), class_weights=(("3", 2.0),), classes=("1", "3"), equalize=False),
        replace(QUICKLY, bits=3, method="cbq", cbq=CbqConfig(pin_ends=False, stride=0.1), samples=None),
        replace(QUICKLY, method="uniform", bits=3, clusters=(("1", "2"), ("3",)), scoring=ScoringConfig(relative=True)),
        replace(QUICKLY, storage="archive", coder="huffman", bits=2, max_class_drop=90.0),
        replace(QUICKLY, storage="archive", codebook="ecsq", codebook_scope="net", bits=2.0),
        replace(QUICKLY, storage="packed", bytes=13_000, target="openvino", activation_bits=6),
        replace(QUICKLY, method="uniform", bits=4, activation_bits=AutoBits(4.5, (4, 8))),
        replace(QUICKLY, method="differentiable", differentiable=DifferentiableConfig("layer", 3, rate=0.05), bits=3),
        replace(
            QUICKLY, method="uniform", bits=2, rounding="learned", learned=LearnedConfig(2, batch=16, check_every=1)
        ),
        replace(
            QUICKLY, method="uniform", bits=2, refine=RefineConfig(updates=2, views=2, augment=("flip",), check_every=1)
        ),
    ],
    ids=["classes", "cbq", "clusters", "archive", "ecsq", "bytes", "auto", "differentiable", "learned", "refine"],
)
def test_a_result_is_repeated_from_its_own_report(config: QuantizeConfig, tmp_path: Path, command: Command) -> None:
    """Whatever was set in Python, among it what is no option of the command line."""
    if config.refine is not None or config.method == "differentiable":
        config = replace(config, differentiable=replace(config.differentiable, augment=()))
    result = quantize(DIGITS_MODEL, DIGITS_CARD, config)
    result.save(tmp_path / "first")
    (tmp_path / "r.json").write_text(result.to_json())
    told = ("--config", tmp_path / "r.json", "--output", tmp_path / "again", "--json", tmp_path / "again.json")
    finished = command("quantize", DIGITS_MODEL, "--data", DIGITS_CARD, "--quiet", *told)
    assert (finished.code, finished.err) == (0, "")
    assert (tmp_path / "first").read_bytes() == (tmp_path / "again").read_bytes()
    assert json.loads((tmp_path / "again.json").read_text())["settings"] == as_options(config)
