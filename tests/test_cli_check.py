"""`check`, `--target` and what `inspect` says of pairs, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_cbq.targets import TARGETS
from onnx_cbq.verification import prove as proving
from tests.command import Command
from tests.conftest import DIGITS_CARD, DIGITS_MODEL
from tests.graphs import make_model, node
from tests.unsafe import unsafe_file

QUICK = ("--data", DIGITS_CARD, "--samples", 100, "--rounding", "nearest", "--no-equalize", "--quiet")
UNIFORM = (*QUICK, "--method", "uniform", "--bits", 8)


@pytest.mark.parametrize("name", [target.name for target in TARGETS if not target.needs])
def test_what_quantize_writes_for_a_target_passes_its_check(tmp_path: Path, command: Command, name: str) -> None:
    made = tmp_path / "q.onnx"
    assert command("quantize", DIGITS_MODEL, *UNIFORM, "--target", name, "--output", made).code == 0
    finished = command("check", made, "--target", name)
    assert (finished.code, finished.err) == (0, "")
    assert f"{made}: fit for {name} (" in finished.out.replace("\n", "")


@pytest.mark.parametrize(
    "options",
    [
        ("--bits", 3, "--storage", "packed"),
        ("--bits", 4, "--activation-bits", 0),
        ("--bits", 4, "--activation-bits", 0, "--storage", "packed"),
        ("--bits", 8, "--activation-bits", 4, "--method", "uniform"),
        ("--bits", 8, "--codebook", "kmeans"),
        ("--bits", 4, "--codebook", "hessian-kmeans", "--storage", "packed"),
        ("--bits", 6, "--data-free"),
    ],
    ids=lambda options: " ".join(map(str, options)),
)
def test_every_kind_of_file_passes(tmp_path: Path, command: Command, options: tuple[object, ...]) -> None:
    made = tmp_path / "q.onnx"
    given = ("--quiet",) if "--data-free" in options else QUICK
    assert command("quantize", DIGITS_MODEL, *given, *options, "--output", made).code == 0
    finished = command("check", made)
    assert (finished.code, finished.err) == (0, "")
    assert finished.out.splitlines()[0].endswith("; pair-safe")


def test_check_names_what_saturates(tmp_path: Path, command: Command) -> None:
    path, _, _ = unsafe_file(tmp_path)
    finished = command("check", path, "--json", tmp_path / "found.json")
    assert (finished.code, finished.err) == (3, "")
    lines = finished.out.splitlines()
    assert lines[0].startswith("wrong: Conv_p: w: expected codes that meet in 16 bits to add up to 128 at most, found ")
    assert "NOT pair-safe: wrong in onnxruntime on x86 without VNNI" in lines[-2]
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    (violation,) = found["violations"]
    assert (found["target"], violation["node"], violation["tensor"], violation["effect"]) == (
        "cpu",
        "Conv_p",
        "w",
        "wrong",
    )
    assert command("check", path, "--target", "vnni").code == 0


def test_inspect_says_which_layers_are_not_pair_safe(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proving, "saturates", lambda: True)
    made = tmp_path / "q.onnx"
    options = (*UNIFORM, "--target", "vnni", "--output", made)
    refused = command("quantize", DIGITS_MODEL, *options)
    assert refused.code == 3
    assert "use --target cpu, or say --no-run-check" in refused.err
    assert not made.exists()
    assert command("quantize", DIGITS_MODEL, *options, "--no-run-check").code == 0
    finished = command("inspect", made)
    last = finished.out.splitlines()[-1]
    assert last.startswith("NOT pair-safe, wrong on x86 without VNNI; ")
    assert "/3/Conv" in last
    command("quantize", DIGITS_MODEL, *UNIFORM, "--output", made)
    assert command("inspect", made).out.splitlines()[-1] == "pair-safe"


def float_model(_: Path) -> Path:
    return Path(DIGITS_MODEL)


def damaged(folder: Path) -> Path:
    (folder / "bad.onnx").write_bytes(b"no model at all")
    return folder / "bad.onnx"


def truncated(folder: Path) -> Path:
    content = Path(DIGITS_MODEL).read_bytes()
    (folder / "bad.onnx").write_bytes(content[: len(content) // 2])
    return folder / "bad.onnx"


def newer(folder: Path) -> Path:
    proto = make_model([node("Gemm", "x w")], {"x": ["N", 4]}, ["y"], {"w": np.ones((4, 2), np.float32)})
    proto.opset_import[0].version = 99
    (folder / "newer.onnx").write_bytes(proto.SerializeToString())
    return folder / "newer.onnx"


def missing(folder: Path) -> Path:
    return folder / "missing.onnx"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (float_model, "nothing in it is quantized"),
        (damaged, "bad.onnx"),
        (truncated, "bad.onnx"),
        (newer, "opset 99 is later than this version knows"),
        (missing, "missing.onnx"),
    ],
)
def test_what_cannot_be_checked_is_one_line(tmp_path: Path, command: Command, make: object, message: str) -> None:
    finished = command("check", make(tmp_path))  # type: ignore[operator]
    assert (finished.code, finished.out) == (1, "")
    assert finished.err.startswith("onnx-cbq: ")
    assert message in finished.err
    assert finished.err.count("\n") == 1


@pytest.mark.parametrize("name", ["check", "quantize"])
def test_an_unknown_target_lists_the_known_ones(command: Command, name: str) -> None:
    options = QUICK if name == "quantize" else ()
    finished = command(name, DIGITS_MODEL, *options, "--target", "tensort")
    assert finished.code == 1
    assert finished.err == (
        "onnx-cbq: --target: expected cpu or vnni or arm64 or openvino or tensorrt or qnn or xnnpack or vitis, "
        "got tensort; did you mean tensorrt?\n"
    )


def test_a_file_of_a_damaged_weight_is_no_traceback(tmp_path: Path, command: Command) -> None:
    """Codes that are missing: the file names a data file that is not there."""
    path, _, _ = unsafe_file(tmp_path)
    proto = onnx.load(path)
    (weights,) = [tensor for tensor in proto.graph.initializer if tensor.name == "w"]
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="gone.bin")
    path.write_bytes(proto.SerializeToString())
    finished = command("check", path)
    assert finished.code == 1
    assert finished.err.count("\n") == 1
